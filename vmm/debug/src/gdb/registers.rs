//! A core's registers as gdb names them.

use foraker_cell::Saved;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

const CODE: u32 = 0x23;
const DATA: u32 = 0x1b;

/// Places in the legacy region of an XSAVE area, and in its header.
const CONTROL: usize = 0;
const STATUS: usize = 2;
const TAGS: usize = 4;
const OPCODE: usize = 6;
const INSTRUCTION: usize = 8;
const OPERAND: usize = 16;
const MXCSR: usize = 24;
const STACK: usize = 32;
const VECTORS: usize = 160;
const PRESENT: usize = 512;
/// Bits of MXCSR that exist everywhere: another one could not be loaded.
const MXCSR_BITS: u32 = 0xffff;
/// x87 and SSE.
const LEGACY: u8 = 3;

/// The XSAVE area as bytes.
struct Area(Vec<u8>);

impl Area {
    fn of(state: &Saved) -> Area {
        Area(state.xsave().region.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    fn set<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        if let Some(place) = self.0.get_mut(at..at + N) {
            place.copy_from_slice(&bytes);
        }
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    fn half(&self, at: usize) -> u32 {
        u32::from(u16::from_le_bytes(self.get(at)))
    }

    fn set_half(&mut self, at: usize, value: u32) {
        self.set(at, u16::try_from(value & 0xffff).unwrap_or(0).to_le_bytes());
    }
}

/// What gdb is shown. Only empty places of the x87 stack are told from others in its tags.
pub(crate) fn shown(state: &Saved) -> X86_64CoreRegs {
    let (r, area) = (state.registers(), Area::of(state));
    let mut shown = X86_64CoreRegs {
        regs: [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ],
        // The upper half is not used.
        eflags: u32::try_from(r.rflags & 0xffff_ffff).unwrap_or(0),
        rip: r.rip,
        mxcsr: area.word(MXCSR),
        ..Default::default()
    };
    let s = &mut shown.segments;
    (s.cs, s.ss, s.ds, s.es, s.fs, s.gs) = (CODE, DATA, DATA, DATA, DATA, DATA);
    for (st, at) in shown.st.iter_mut().zip((STACK..).step_by(16)) {
        *st = area.get(at);
    }
    for (xmm, at) in shown.xmm.iter_mut().zip((VECTORS..).step_by(16)) {
        *xmm = u128::from_le_bytes(area.get(at));
    }
    let [tags] = area.get(TAGS);
    let f = &mut shown.fpu;
    (f.fctrl, f.fstat, f.fop) = (area.half(CONTROL), area.half(STATUS), area.half(OPCODE));
    f.ftag = (0..8).filter(|place| tags >> place & 1 == 0).map(|place| 3 << (2 * place)).sum();
    (f.fioff, f.fiseg) = (area.word(INSTRUCTION), area.half(INSTRUCTION + 4));
    (f.fooff, f.foseg) = (area.word(OPERAND), area.half(OPERAND + 4));
    shown
}

/// Changes a core's state to what gdb wants it to be. Segments cannot be changed, nor flags that are not a program's.
pub(crate) fn change(state: &mut Saved, wanted: &X86_64CoreRegs) {
    let mut r = *state.registers();
    [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ] = wanted.regs;
    r.rip = wanted.rip;
    r.rflags = u64::from(wanted.eflags);
    state.set_registers(r);
    let mut area = Area::of(state);
    for (st, at) in wanted.st.iter().zip((STACK..).step_by(16)) {
        area.set(at, *st);
    }
    for (xmm, at) in wanted.xmm.iter().zip((VECTORS..).step_by(16)) {
        area.set(at, xmm.to_le_bytes());
    }
    area.set(MXCSR, (wanted.mxcsr & MXCSR_BITS).to_le_bytes());
    let f = &wanted.fpu;
    area.set_half(CONTROL, f.fctrl);
    area.set_half(STATUS, f.fstat);
    area.set_half(OPCODE, f.fop & 0x7ff);
    area.set(
        TAGS,
        [(0..8u8).filter(|place| f.ftag >> (2 * place) & 3 != 3).map(|place| 1 << place).sum::<u8>()],
    );
    area.set(INSTRUCTION, f.fioff.to_le_bytes());
    area.set_half(INSTRUCTION + 4, f.fiseg);
    area.set(OPERAND, f.fooff.to_le_bytes());
    area.set_half(OPERAND + 4, f.foseg);
    let [present] = area.get(PRESENT);
    area.set(PRESENT, [present | LEGACY]);
    let mut xsave = state.xsave();
    for (word, bytes) in xsave.region.iter_mut().zip(area.0.chunks_exact(4)) {
        *word = bytes.try_into().map_or(0, u32::from_le_bytes);
    }
    state.set_xsave(&xsave);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gdb_writes_it_reads_again_within_what_a_program_may_have() {
        let mut state = Saved::of_registers(Default::default());
        let first = shown(&state);
        assert_eq!((first.fpu.fctrl, first.fpu.ftag, first.mxcsr), (0x37f, 0xffff, 0x1f80));
        let mut wanted = first.clone();
        wanted.regs = std::array::from_fn(|n| n as u64 + 1);
        wanted.rip = 0x21_0000;
        wanted.eflags = u32::MAX;
        wanted.segments.cs = 8;
        wanted.mxcsr = u32::MAX;
        wanted.st = std::array::from_fn(|n| [u8::try_from(n).unwrap(); 10]);
        wanted.xmm = std::array::from_fn(|n| n as u128 * 3);
        wanted.fpu.ftag = 0x3fff;
        change(&mut state, &wanted);
        let got = shown(&state);
        assert_eq!((got.regs, got.rip, got.st, got.xmm), (wanted.regs, wanted.rip, wanted.st, wanted.xmm));
        assert_eq!((got.segments.cs, got.mxcsr, got.fpu.ftag), (CODE, 0xffff, 0x3fff));
        // No trap flag, no IOPL, no virtual 8086 mode; the interrupt flag is always set.
        assert_eq!(got.eflags, 0x24_0ed7);
        assert_eq!(state.registers().rsp, 8);
    }
}
