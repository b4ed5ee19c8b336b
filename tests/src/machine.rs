//! What is below the guests, as far as the outcome of an instruction depends on it.

use std::arch::x86_64::__cpuid;
use std::path::Path;

/// The processor and the kind of KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Who made the processor, or whom it imitates.
    pub vendor: Vendor,
    /// Guests run without the processor's virtualization.
    pub pvm: bool,
    /// QEMU carries out each instruction in software.
    pub emulated: bool,
}

/// Makers of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, and those who follow it.
    Amd,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Machine {
        let vendor = __cpuid(0);
        let intel = text([vendor.ebx, vendor.edx, vendor.ecx]) == *b"GenuineIntel";
        let hypervisor_is_there = __cpuid(1).ecx >> 31 == 1;
        // The leaf where hypervisors introduce themselves.
        let hypervisor = __cpuid(0x4000_0000);
        let name = text([hypervisor.ebx, hypervisor.ecx, hypervisor.edx]);
        Machine {
            vendor: if intel { Vendor::Intel } else { Vendor::Amd },
            pvm: Path::new("/sys/module/kvm_pvm").exists(),
            emulated: hypervisor_is_there && name == *b"TCGTCGTCGTCG",
        }
    }
}

/// The letters in three registers.
fn text(registers: [u32; 3]) -> [u8; 12] {
    let mut letters = [0; 12];
    for (to, register) in letters.chunks_exact_mut(4).zip(registers) {
        to.copy_from_slice(&register.to_le_bytes());
    }
    letters
}
