//! A guest's memory and registers as an ELF core file, which `gdb IMAGE FILE` opens as it does that of a Linux program: its cores are threads, the one that
//! has faulted is the first.
//!
//! The file has no more than what a guest holds: pages of zeros are left out unless its start says something else. It is written from the first byte
//! to the last, in pieces, by whatever can be written to. Memory that a guest uses in many small pieces is joined to fewer, with the zeros in between.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use foraker_cell::{End, Guest, InspectError, Inspection, Rights, Saved};
use object::elf::{
    self, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_CORE, EV_CURRENT, FileHeader64, Ident, PF_R, PF_W,
    PF_X, PT_LOAD, PT_NOTE, ProgramFlags, ProgramHeader64,
};
use object::endian::{LittleEndian as LE, U16, U32, U64};
use object::pod::bytes_of;

use crate::signal;

const PAGE: u64 = 4096;
/// What is read at a time, bytes.
const PIECE: usize = 64 << 10;
/// Most parts of the file: their headers stay below 64 Ki in number and below 256 KiB in size.
const MOST_PARTS: usize = 4096;

/// Why a guest cannot be dumped.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It cannot be looked into.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It has ended without a fault, and nothing is left to be seen.
    #[error("the guest has ended without a fault: nothing is known of its cores")]
    Nothing,
    /// The file would be larger than it may be.
    #[error("the dump takes {needed} bytes and may have {most}")]
    TooLarge {
        /// Its size, bytes.
        needed: u64,
        /// Most that it may have, bytes.
        most: u64,
    },
    /// It cannot be written.
    #[error("cannot write the dump: {0}")]
    Write(#[from] io::Error),
}

/// What a dump holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the guest's memory in it.
    pub memory: u64,
    /// Cores.
    pub cores: usize,
}

/// Writes a dump of at most `most` bytes, of a guest that runs, is paused, or has ended with a fault and has not been dropped.
///
/// One that runs is held for as long as it takes; `patience` is how long it may take to leave its cores. Of one that has faulted, nothing is known of the
/// vector registers, and of other cores than the one that did, unless it was started with `keep_core`. What its network puts into its
/// memory meanwhile may be in the dump or not.
///
/// # Errors
/// Somebody else looks into the guest, it does not leave its cores in time, it has ended without a fault, the file would be too large (then
/// nothing is written), or it cannot be written.
pub fn dump(guest: &Arc<Guest>, patience: Duration, most: u64, to: impl Write) -> Result<Dumped, DumpError> {
    Ok(prepare(guest, patience, most)?.write(to)?)
}

/// Holds a guest and finds out what its dump will have, for who wants to know its size before its first byte.
///
/// # Errors
/// As those of [`dump()`], but for what happens while it is written.
pub fn prepare(guest: &Arc<Guest>, patience: Duration, most: u64) -> Result<Prepared, DumpError> {
    let inspection = guest.inspect(patience)?;
    let notes = notes(&inspection)?;
    let parts = parts(&inspection);
    let headers = size_of::<FileHeader64<LE>>() + (1 + parts.len()) * size_of::<ProgramHeader64<LE>>();
    let memory: u64 = parts.iter().map(|part| part.file_bytes).sum();
    let data = ((headers + notes.bytes.len()) as u64).next_multiple_of(PAGE);
    let dumped = Dumped { bytes: data + memory, memory, cores: notes.cores };
    if dumped.bytes > most {
        return Err(DumpError::TooLarge { needed: dumped.bytes, most });
    }
    Ok(Prepared { inspection, notes, parts, headers, dumped })
}

/// A dump that is about to be written. Its guest is held until this is dropped or written.
pub struct Prepared {
    inspection: Inspection,
    notes: Notes,
    parts: Vec<Part>,
    /// Bytes of the headers.
    headers: usize,
    dumped: Dumped,
}

impl Prepared {
    /// What it will hold.
    #[must_use]
    pub fn size(&self) -> Dumped {
        self.dumped
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(self, mut to: impl Write) -> io::Result<Dumped> {
        let Prepared { inspection, notes, parts, headers, dumped } = self;
        let data = dumped.bytes - dumped.memory;
        to.write_all(bytes_of(&file_header(1 + parts.len())))?;
        let note = program_header(PT_NOTE, ProgramFlags(0), headers as u64, 0..0, notes.bytes.len() as u64);
        to.write_all(bytes_of(&note))?;
        let mut offset = data;
        for part in &parts {
            let header = program_header(PT_LOAD, part.flags, offset, part.memory.clone(), part.file_bytes);
            to.write_all(bytes_of(&header))?;
            offset += part.file_bytes;
        }
        to.write_all(&notes.bytes)?;
        let padding = data - (headers + notes.bytes.len()) as u64;
        to.write_all(vec![0; usize::try_from(padding).unwrap_or(0)].as_slice())?;
        let mut piece = vec![0; PIECE];
        for part in &parts {
            let mut at = part.memory.start;
            let end = at + part.file_bytes;
            while at < end {
                let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let Some(buffer) = piece.get_mut(..length) else { break };
                // What cannot be read any longer is zeros: the headers have said how much there is.
                let read = inspection.read(at, buffer);
                if let Some(rest) = buffer.get_mut(read..) {
                    rest.fill(0);
                }
                to.write_all(buffer)?;
                at += length as u64;
            }
        }
        to.flush()?;
        Ok(dumped)
    }
}

/// A part of the guest's memory.
struct Part {
    memory: Range<u64>,
    /// Bytes that are in the file; the rest are zeros.
    file_bytes: u64,
    flags: ProgramFlags,
}

fn parts(inspection: &Inspection) -> Vec<Part> {
    let memory = &inspection.guest().memory;
    let ranges: Vec<_> = memory.visible().collect();
    let mut parts = Vec::new();
    for (range, rights) in &ranges {
        let flags = match rights {
            Rights::Execute => PF_R | PF_X,
            Rights::Read => PF_R,
            Rights::Write => PF_R | PF_W,
        };
        let runs = runs(inspection, range.clone(), MOST_PARTS / ranges.len().max(1));
        let mut at = range.start;
        let ends = runs.iter().skip(1).map(|next| next.start).chain([range.end]);
        if runs.first().is_none_or(|first| first.start > at) {
            let end = runs.first().map_or(range.end, |first| first.start);
            parts.push(Part { memory: at..end, file_bytes: 0, flags });
            at = end;
        }
        for (run, end) in runs.iter().zip(ends) {
            parts.push(Part { memory: at..end, file_bytes: run.end - run.start, flags });
            at = end;
        }
    }
    parts
}

/// What of a range is written: everything that may not be zeros, in `most` runs or few more.
fn runs(inspection: &Inspection, range: Range<u64>, most: usize) -> Vec<Range<u64>> {
    let memory = &inspection.guest().memory;
    let mut runs: Runs = Runs { all: Vec::new(), gap: 0, most: most.max(2) };
    let mut at = range.start;
    let mut page = [0; 4096];
    while let Some(next) = memory.next_content(at..range.end) {
        at = next.start;
        while at < next.end {
            let end = (at + 1).next_multiple_of(PAGE).min(next.end);
            let length = usize::try_from(end - at).unwrap_or(0);
            let Some(buffer) = page.get_mut(..length) else { break };
            let read = inspection.read(at, buffer);
            let written = buffer.get(..read).is_some_and(|read| read.iter().any(|byte| *byte != 0));
            if written || memory.started_with_content(at & !(PAGE - 1)) {
                runs.add(at..end);
            }
            at = end;
        }
    }
    runs.all
}

/// Runs of pages, joined as far as it takes to have few of them.
struct Runs {
    all: Vec<Range<u64>>,
    /// Runs with no more than this between them are one.
    gap: u64,
    most: usize,
}

impl Runs {
    fn add(&mut self, next: Range<u64>) {
        match self.all.last_mut() {
            Some(last) if next.start - last.end <= self.gap => last.end = next.end,
            _ => self.all.push(next),
        }
        while self.all.len() > self.most {
            self.gap = (self.gap * 2).max(PAGE);
            let gap = self.gap;
            self.all.dedup_by(|next, kept| {
                let joined = next.start - kept.end <= gap;
                if joined {
                    kept.end = next.end;
                }
                joined
            });
        }
    }
}

fn file_header(parts: usize) -> FileHeader64<LE> {
    let size = |bytes: usize| U16::new(LE, u16::try_from(bytes).unwrap_or(0));
    FileHeader64 {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, ET_CORE),
        e_machine: U16::new(LE, EM_X86_64),
        e_version: U32::new(LE, u32::from(EV_CURRENT.0)),
        e_entry: U64::new(LE, 0),
        e_phoff: U64::new(LE, size_of::<FileHeader64<LE>>() as u64),
        e_shoff: U64::new(LE, 0),
        e_flags: U32::new(LE, elf::FileFlags(0)),
        e_ehsize: size(size_of::<FileHeader64<LE>>()),
        e_phentsize: size(size_of::<ProgramHeader64<LE>>()),
        e_phnum: size(parts),
        e_shentsize: size(0),
        e_shnum: size(0),
        e_shstrndx: U16::new(LE, elf::SHN_UNDEF),
    }
}

fn program_header(
    kind: elf::ProgramType,
    flags: ProgramFlags,
    offset: u64,
    memory: Range<u64>,
    file_bytes: u64,
) -> ProgramHeader64<LE> {
    let number = |n| U64::new(LE, n);
    ProgramHeader64 {
        p_type: U32::new(LE, kind),
        p_flags: U32::new(LE, flags),
        p_offset: number(offset),
        p_vaddr: number(memory.start),
        p_paddr: number(0),
        p_filesz: number(file_bytes),
        p_memsz: number(memory.end - memory.start),
        p_align: number(if kind == PT_LOAD { PAGE } else { 4 }),
    }
}

struct Notes {
    bytes: Vec<u8>,
    cores: usize,
}

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_X86_XSTATE: u32 = 0x202;

/// The registers of all cores, the one that has faulted first.
fn notes(inspection: &Inspection) -> Result<Notes, DumpError> {
    let guest = inspection.guest();
    let fault = match guest.end() {
        Some(End::Faulted(fault)) => Some(fault),
        _ => None,
    };
    let mut cores = inspection.cores();
    cores.sort_by_key(|core| fault.is_none_or(|fault| fault.core != *core));
    if cores.is_empty() {
        return Err(DumpError::Nothing);
    }
    let mut bytes = Vec::new();
    note(&mut bytes, b"CORE\0", NT_PRPSINFO, &program_of(&guest.name));
    for core in &cores {
        let state = inspection.core(*core)?;
        let signal = fault.filter(|fault| fault.core == *core).map_or(0, |fault| signal::of(fault));
        note(&mut bytes, b"CORE\0", NT_PRSTATUS, &status_of(*core, signal, &state));
        let xsave = xsave_of(&state);
        note(&mut bytes, b"CORE\0", NT_FPREGSET, xsave.get(..512).unwrap_or_default());
        note(&mut bytes, b"LINUX\0", NT_X86_XSTATE, &xsave);
    }
    Ok(Notes { bytes, cores: cores.len() })
}

fn note(to: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
    for word in [size(name), size(content), kind] {
        to.extend_from_slice(&word.to_le_bytes());
    }
    for part in [name, content] {
        to.extend_from_slice(part);
        to.resize(to.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prpsinfo`, of which the name is all that a guest has.
fn program_of(name: &str) -> [u8; 136] {
    let mut info = [0; 136];
    for (at, most) in [(40, 15), (56, 79)] {
        for (to, from) in info.iter_mut().skip(at).zip(name.bytes().take(most)) {
            *to = from;
        }
    }
    info
}

/// Size of `struct elf_prstatus`, of which little is a guest's, and where the registers are in it.
const STATUS: usize = 336;
const REGISTERS: usize = 112;

fn status_of(core: u32, signal: u8, state: &Saved) -> Vec<u8> {
    const USER_CODE: u64 = 0x23;
    const USER_DATA: u64 = 0x1b;
    let r = state.registers();
    let (fs, gs) = state.bases();
    // In the order of `struct user_regs_struct`; no system call is to be restarted.
    let registers = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        u64::MAX,
        r.rip,
        USER_CODE,
        r.rflags,
        r.rsp,
        USER_DATA,
        fs,
        gs,
        USER_DATA,
        USER_DATA,
        USER_DATA,
        USER_DATA,
    ];
    let mut bytes = Vec::with_capacity(STATUS);
    let signal = u32::from(signal);
    // The signal, twice; masks; its own, its parent's, its group's and its session's number.
    for word in [signal, 0, 0, signal, 0, 0, 0, 0, core + 1, 0, 1, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.resize(REGISTERS, 0);
    for register in registers {
        bytes.extend_from_slice(&register.to_le_bytes());
    }
    // It has vector registers.
    bytes.extend_from_slice(&1u64.to_le_bytes());
    debug_assert_eq!(bytes.len(), STATUS);
    bytes
}

/// The XSAVE area as far as AVX, with its components where Linux says which there are.
fn xsave_of(state: &Saved) -> Vec<u8> {
    const SIZE: usize = 832;
    const COMPONENTS: usize = 464;
    // x87, SSE and AVX.
    const XCR0: u64 = 7;
    let mut bytes: Vec<u8> =
        state.xsave().region.iter().flat_map(|word| word.to_le_bytes()).take(SIZE).collect();
    for (to, from) in bytes.iter_mut().skip(COMPONENTS).zip(XCR0.to_le_bytes()) {
        *to = from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_runs_are_joined_to_few() {
        let mut runs = Runs { all: Vec::new(), gap: 0, most: 10 };
        // Every other page.
        for page in (0..1000).step_by(2) {
            runs.add(page * PAGE..(page + 1) * PAGE);
        }
        // Far away.
        runs.add((1 << 40)..(1 << 40) + PAGE);
        assert!(runs.all.len() <= 10, "{}", runs.all.len());
        assert!(runs.all.windows(2).all(|pair| pair[0].end < pair[1].start));
        for page in (0..1000).step_by(2) {
            assert!(runs.all.iter().any(|run| run.contains(&(page * PAGE))));
        }
        assert_eq!(runs.all.last(), Some(&((1 << 40)..(1 << 40) + PAGE)));
    }

    #[test]
    fn a_note_is_padded_to_words() {
        let mut bytes = Vec::new();
        note(&mut bytes, b"CORE\0", 1, &[7; 6]);
        assert_eq!(bytes[..12], [5, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[12..], *b"CORE\0\0\0\0\x07\x07\x07\x07\x07\x07\0\0");
    }
}
