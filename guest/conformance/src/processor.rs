//! Processor features: what the virtual registers say is what the processor does.

use core::arch::{asm, x86_64};

use foraker_abi::registers::{CPU_AES, CPU_AVX, CPU_AVX2, CPU_AVX512, CPU_ERMS, CPU_FSGSBASE, CPU_RDRAND};
use guest_libos::{hypercall, println, registers};

use crate::report::Report;

pub(crate) fn run(report: &mut Report) {
    features(report);
    if registers().cpu_features & CPU_FSGSBASE != 0 {
        segment_bases(report);
    }
    if registers().cpu_features & CPU_AVX != 0 {
        // SAFETY: the processor has AVX, and its state is enabled.
        unsafe { avx(report) };
    }
    if registers().cpu_features & CPU_RDRAND != 0 {
        // SAFETY: the processor has RDRAND.
        unsafe { random(report) };
    }
    x87(report);
    string_move(report);
}

/// XCR0, as CPL 3 reads it.
fn extended_state() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is part of the architecture.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn features(report: &mut Report) {
    let said = registers().cpu_features;
    let known = CPU_AVX | CPU_AVX2 | CPU_AES | CPU_RDRAND | CPU_FSGSBASE | CPU_ERMS | CPU_AVX512;
    report.check("cpu.features_known", said & !known == 0, format_args!("{said:#x}"));
    let state = extended_state();
    report.check("cpu.sse_state", state & 3 == 3, format_args!("XCR0 {state:#x}"));
    report.check("cpu.avx_state", said & CPU_AVX == 0 || state & 4 == 4, format_args!("XCR0 {state:#x}"));
    report.check(
        "cpu.avx512_state",
        said & CPU_AVX512 == 0 || state & 0xe0 == 0xe0,
        format_args!("XCR0 {state:#x}"),
    );
    report.check("cpu.fsgsbase", said & CPU_FSGSBASE != 0, format_args!("not announced, but CR4 has it"));
    let leaf1 = x86_64::__cpuid(1);
    let leaf7 = x86_64::__cpuid_count(7, 0);
    println!("note cpu features {said:#x} XCR0 {state:#x} leaf 1 {:#x} leaf 7 {:#x}", leaf1.ecx, leaf7.ebx);
    let pairs = [
        ("cpu.avx", CPU_AVX, leaf1.ecx >> 28 & 1),
        ("cpu.aes", CPU_AES, leaf1.ecx >> 25 & 1),
        ("cpu.rdrand", CPU_RDRAND, leaf1.ecx >> 30 & 1),
        ("cpu.avx2", CPU_AVX2, leaf7.ebx >> 5 & 1),
        ("cpu.erms", CPU_ERMS, leaf7.ebx >> 9 & 1),
    ];
    for (name, bit, has) in pairs {
        // What is announced must be there.
        report.check(name, said & bit == 0 || has == 1, format_args!("announced, but CPUID says no"));
    }
}

fn segment_bases(report: &mut Report) {
    for value in [0u64, 0x1234_5678_9000, 0x1001_0000] {
        let (fs, gs): (u64, u64);
        // SAFETY: this program uses neither base; both are put back to 0 below.
        unsafe {
            asm!("wrfsbase {v}", "wrgsbase {w}", v = in(reg) value, w = in(reg) value ^ 0x8000, options(nostack));
        }
        hypercall::nop();
        hypercall::idle(1);
        // SAFETY: reads.
        unsafe { asm!("rdfsbase {f}", "rdgsbase {g}", f = out(reg) fs, g = out(reg) gs, options(nostack)) };
        report.equal("cpu.fs_base", fs, value);
        report.equal("cpu.gs_base", gs, value ^ 0x8000);
    }
    let word = 0x0dd0_feed_u64;
    let read: u64;
    // SAFETY: reads a local variable through FS.
    unsafe {
        asm!("wrfsbase {a}", "mov {r}, fs:[0]", a = in(reg) &raw const word, r = out(reg) read, options(nostack));
    }
    report.equal("cpu.fs_access", read, word);
    // SAFETY: as above.
    unsafe { asm!("wrfsbase {z}", "wrgsbase {z}", z = in(reg) 0u64, options(nostack)) };
}

/// # Safety
/// The processor has AVX.
unsafe fn avx(report: &mut Report) {
    let a = [1.5f32, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5];
    let mut sum = [0f32; 8];
    // SAFETY: AVX, as the caller promises; the operands are as long as a YMM register.
    unsafe {
        asm!(
            "vmovups ymm0, [{a}]",
            "vaddps ymm1, ymm0, ymm0",
            "vmovups [{s}], ymm1",
            "vzeroupper",
            a = in(reg) a.as_ptr(), s = in(reg) sum.as_mut_ptr(),
            out("ymm0") _, out("ymm1") _, options(nostack),
        );
    }
    report.equal("cpu.avx_adds", sum, a.map(|x| x + x));
}

/// # Safety
/// The processor has RDRAND.
unsafe fn random(report: &mut Report) {
    let mut values = [0u64; 4];
    for value in &mut values {
        let mut carry: u8 = 0;
        for _ in 0..100 {
            // SAFETY: RDRAND, as the caller promises.
            unsafe {
                asm!("rdrand {v}", "setc {c}", v = out(reg) *value, c = out(reg_byte) carry, options(nostack))
            };
            if carry == 1 {
                break;
            }
        }
    }
    let differ = values.iter().any(|&v| v != values[0]);
    report.check("cpu.rdrand_gives", differ, format_args!("{values:x?}"));
}

fn x87(report: &mut Report) {
    let mut result = 0f64;
    // SAFETY: leaves the x87 stack as it was.
    unsafe {
        asm!("fldpi", "fldpi", "faddp", "fstp qword ptr [{r}]", r = in(reg) &raw mut result, out("st(0)") _,
            out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _,
            out("st(7)") _, options(nostack));
    }
    report.check("cpu.x87", (result - core::f64::consts::TAU).abs() < 1e-12, format_args!("{result}"));
}

fn string_move(report: &mut Report) {
    let from = [0xabu8; 300];
    let mut to = [0u8; 300];
    // SAFETY: both arrays are as long as the count.
    unsafe {
        asm!("rep movsb", inout("rsi") from.as_ptr() => _, inout("rdi") to.as_mut_ptr() => _,
            inout("rcx") from.len() => _, options(nostack, preserves_flags));
    }
    report.check("cpu.rep_movsb", from == to, format_args!("copy differs"));
}
