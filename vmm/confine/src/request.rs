//! Requests of `ioctl`, made of the kernel's structures, so that no number is copied by hand.

use kvm_bindings::{
    kvm_cpuid2, kvm_debugregs, kvm_enable_cap, kvm_ioeventfd, kvm_msrs, kvm_sregs,
    kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use crate::call::{Condition, Rule, rule};

/// The kernel's `KVMIO`.
const KVM: u32 = 0xae;
/// The kernel's `UFFDIO`.
const UFFD: u32 = 0xaa;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC` of the kernel.
const fn request(direction: u32, kind: u32, number: u32, size: usize) -> u32 {
    assert!(size < 1 << 14, "the size has 14 bits");
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let size = size as u32;
    direction << 30 | size << 16 | kind << 8 | number
}

macro_rules! requests {
    ($(#[$doc:meta] $name:ident = $direction:expr, $kind:expr, $number:expr, $size:expr;)*) => {
        $(
            #[$doc]
            pub(crate) const $name: Rule =
                rule!(stringify!($name), Condition::is(1, request($direction, $kind, $number, $size)));
        )*
    };
}

requests! {
    /// Enters a guest.
    KVM_RUN = NONE, KVM, 0x80, 0;
    /// Makes a VM.
    KVM_CREATE_VM = NONE, KVM, 0x01, 0;
    /// What KVM can do.
    KVM_CHECK_EXTENSION = NONE, KVM, 0x03, 0;
    /// Size of what is shared with a virtual CPU.
    KVM_GET_VCPU_MMAP_SIZE = NONE, KVM, 0x04, 0;
    /// Makes a virtual CPU.
    KVM_CREATE_VCPU = NONE, KVM, 0x41, 0;
    /// Maps memory.
    KVM_SET_USER_MEMORY_REGION = WRITE, KVM, 0x46, size_of::<kvm_userspace_memory_region>();
    /// The doorbell.
    KVM_IOEVENTFD = WRITE, KVM, 0x79, size_of::<kvm_ioeventfd>();
    /// Segment and control registers.
    KVM_GET_SREGS = READ, KVM, 0x83, size_of::<kvm_sregs>();
    /// The same.
    KVM_SET_SREGS = WRITE, KVM, 0x84, size_of::<kvm_sregs>();
    /// Model-specific registers.
    KVM_GET_MSRS = READ | WRITE, KVM, 0x88, size_of::<kvm_msrs>();
    /// The same.
    KVM_SET_MSRS = WRITE, KVM, 0x89, size_of::<kvm_msrs>();
    /// What a guest's processor can do.
    KVM_SET_CPUID2 = WRITE, KVM, 0x90, size_of::<kvm_cpuid2>();
    /// Pending events.
    KVM_SET_VCPU_EVENTS = WRITE, KVM, 0xa0, size_of::<kvm_vcpu_events>();
    /// Debug registers.
    KVM_SET_DEBUGREGS = WRITE, KVM, 0xa2, size_of::<kvm_debugregs>();
    /// Frequency of the time-stamp counter.
    KVM_GET_TSC_KHZ = NONE, KVM, 0xa3, 0;
    /// Quirks that are switched off.
    KVM_ENABLE_CAP = WRITE, KVM, 0xa3, size_of::<kvm_enable_cap>();
    /// Vector state.
    KVM_GET_XSAVE = READ, KVM, 0xa4, size_of::<kvm_xsave>();
    /// The same.
    KVM_SET_XSAVE = WRITE, KVM, 0xa5, size_of::<kvm_xsave>();
    /// Which of it there is.
    KVM_SET_XCRS = WRITE, KVM, 0xa7, size_of::<kvm_xcrs>();
    /// Wakes whoever waits for a page.
    UFFDIO_WAKE = READ, UFFD, 0x02, 16;
    /// Fills a page with a copy.
    UFFDIO_COPY = READ | WRITE, UFFD, 0x03, 40;
    /// Fills a page with zeros.
    UFFDIO_ZEROPAGE = READ | WRITE, UFFD, 0x04, 32;
}

/// A descriptor that does not wait.
pub(crate) const FIONBIO: Rule = rule!("FIONBIO", Condition::is(1, 0x5421));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Value;

    #[test]
    fn requests_are_the_kernels() {
        for (rule, number) in [
            (KVM_RUN, 0xae80),
            (KVM_SET_USER_MEMORY_REGION, 0x4020_ae46),
            (KVM_SET_SREGS, 0x4138_ae84),
            (KVM_SET_XSAVE, 0x5000_aea5),
            (KVM_SET_VCPU_EVENTS, 0x4040_aea0),
            (KVM_ENABLE_CAP, 0x4068_aea3),
            (KVM_IOEVENTFD, 0x4040_ae79),
            (UFFDIO_COPY, 0xc028_aa03),
            (UFFDIO_ZEROPAGE, 0xc020_aa04),
            (UFFDIO_WAKE, 0x8010_aa02),
        ] {
            assert_eq!(rule.conditions[0].value, Value::Number(number), "{}", rule.text);
        }
    }
}
