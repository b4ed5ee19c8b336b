//! `/dev/kvm`: opened once, asked once.

use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::OnceLock;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_CAP_DISABLE_QUIRKS2, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::machine::{Core, MachineError, failed, host_time_stamp};

/// Why this host cannot run guests, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no `/dev/kvm`.
    #[error(
        "there is no /dev/kvm: enable virtualization in the firmware (or nested virtualization on the host) and load a KVM module, such as kvm_intel, kvm_amd or kvm_pvm"
    )]
    Missing,
    /// It may not be opened.
    #[error("no right to open /dev/kvm: run as root, or add the user to the group kvm")]
    Denied,
    /// It cannot be used.
    #[error("/dev/kvm cannot be used: {0}")]
    Unusable(std::io::Error),
    /// The kernel's KVM lacks something.
    #[error("this kernel's KVM lacks {0}: a kernel of version 6.1 or later is needed")]
    Lacks(&'static str),
}

/// The state components that a guest may use: x87, SSE, AVX, AVX-512.
const XCR0_MASK: u64 = 0xe7;
/// The state component of protection keys' rights.
const PROTECTION_KEYS: u32 = 1 << 9;

/// Unless it is disabled, taking one memory slot away takes every slot's pages from the shadow or nested page tables of the VM (Linux 6.12 and later have
/// the choice).
const QUIRK_SLOT_ZAP_ALL: u64 = 1 << 7;

/// `/dev/kvm`, and what machines of this process have in common.
#[derive(Debug)]
pub struct Host {
    pub(crate) kvm: Kvm,
    pub(crate) cpuid: CpuId,
    pub(crate) xcr0: u64,
    /// The component of protection keys, if KVM keeps it.
    protection_keys: u32,
    cpu_features: u64,
    tsc_khz: OnceLock<u32>,
    /// Guests see the host's time-stamp counter.
    shares_tsc: OnceLock<bool>,
    /// Quirks of KVM that its VMs can do without, and are to.
    quirks: u64,
    /// The kernel's version.
    release: (u32, u32),
}

impl Host {
    /// Opens `/dev/kvm` and asks what it offers.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn open() -> Result<Host, HostError> {
        let fd = Kvm::open_with_cloexec(true).map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => HostError::Missing,
            libc::EACCES | libc::EPERM => HostError::Denied,
            n => HostError::Unusable(std::io::Error::from_raw_os_error(n)),
        })?;
        // SAFETY: the descriptor was just opened and is owned by nobody else.
        let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version < 0 {
            return Err(HostError::Unusable(std::io::Error::last_os_error()));
        }
        if version.cast_unsigned() != KVM_API_VERSION {
            return Err(HostError::Lacks("API version 12"));
        }
        for (capability, name) in [
            (Cap::UserMemory, "memory slots"),
            (Cap::SyncRegs, "synchronized registers (KVM_CAP_SYNC_REGS)"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::Xcrs, "KVM_CAP_XCRS"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(HostError::Lacks(name));
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| HostError::Unusable(std::io::Error::from_raw_os_error(e.errno())))?;
        let leaf =
            |function, index| cpuid.as_slice().iter().find(|e| e.function == function && e.index == index);
        let xcr0 = leaf(0xd, 0).map_or(3, |e| (u64::from(e.edx) << 32 | u64::from(e.eax)) & XCR0_MASK);
        let protection_keys = leaf(0xd, 0).map_or(0, |e| e.eax & PROTECTION_KEYS);
        let own = |leaf| std::arch::x86_64::__cpuid_count(leaf, 0);
        let rdrand = leaf(1, 0).is_some_and(|e| e.ecx & 1 << 30 != 0);
        let cpu_features = features(own(1).ecx, own(7).ebx, xcr0, rdrand);
        // Negative where the kernel does not know the question.
        let known = kvm.check_extension_raw(u64::from(KVM_CAP_DISABLE_QUIRKS2));
        Ok(Host {
            kvm,
            cpuid,
            xcr0,
            protection_keys,
            cpu_features,
            tsc_khz: OnceLock::new(),
            shares_tsc: OnceLock::new(),
            quirks: u64::try_from(known).unwrap_or(0) & QUIRK_SLOT_ZAP_ALL,
            release: release(),
        })
    }

    /// A VM that is what this program expects, and does not do what older ones did.
    pub(crate) fn create_vm(&self) -> Result<VmFd, MachineError> {
        let vm = self.kvm.create_vm().map_err(failed("create a virtual machine"))?;
        if self.quirks != 0 {
            let disable = kvm_enable_cap {
                cap: KVM_CAP_DISABLE_QUIRKS2,
                args: [self.quirks, 0, 0, 0],
                ..Default::default()
            };
            vm.enable_cap(&disable).map_err(failed("disable quirks"))?;
        }
        Ok(vm)
    }

    /// `CPU_*` bits of the virtual registers.
    #[must_use]
    pub fn cpu_features(&self) -> u64 {
        self.cpu_features
    }

    /// The XSAVE component of protection keys' rights, if KVM keeps it: no guest is offered it, and each may reach it.
    pub(crate) fn protection_keys(&self) -> u32 {
        self.protection_keys
    }

    /// Type of the task state segment in TR. VMX enters 64-bit code with a busy one (11) only. AMD processors do not show the busy bit
    /// of a loaded TR, and emulators of them (QEMU's) look at the I/O bitmap of an available one (9) only.
    pub(crate) fn task_state_type(&self) -> u8 {
        const AUTH: u32 = u32::from_le_bytes(*b"Auth");
        let amd = self.cpuid.as_slice().iter().any(|e| e.function == 0 && e.ebx == AUTH);
        if amd { 9 } else { 11 }
    }

    /// Frequency of guests' time-stamp counters, kHz: the same for all, so that the first core is asked and no other.
    ///
    /// # Errors
    /// The host does not know.
    pub fn tsc_khz(&self, core: &Core) -> Result<u32, MachineError> {
        if let Some(khz) = self.tsc_khz.get() {
            return Ok(*khz);
        }
        let khz = core.tsc_khz()?;
        Ok(*self.tsc_khz.get_or_init(|| khz))
    }

    /// A new core's time-stamp counter, and the host's, at one moment.
    ///
    /// Back ends that virtualize the counter start each machine's near 0, and must be asked each time. On others it is the host's own, as the
    /// first core shows.
    ///
    /// # Errors
    /// The host refuses.
    pub fn time_stamps(&self, core: &Core) -> Result<(u64, u64), MachineError> {
        if self.shares_tsc.get() == Some(&true) {
            let now = host_time_stamp();
            return Ok((now, now));
        }
        let (guest, host) = core.time_stamps()?;
        // Less than a millisecond at any frequency; a virtualized counter is as far off as the host has been up.
        let _ = self.shares_tsc.set(guest.abs_diff(host) < 1 << 20);
        Ok((guest, host))
    }

    /// Whether a core may run on one thread now and on another one then at no cost. Before Linux 6.13 the second one waits for a grace period of the kernel:
    /// milliseconds.
    #[must_use]
    pub fn runs_on_any_thread(&self) -> bool {
        self.release >= (6, 13)
    }

    /// Most virtual CPUs of one machine.
    #[must_use]
    pub fn max_cores(&self) -> usize {
        self.kvm.get_max_vcpus()
    }
}

/// Version of the running kernel; zeros if it does not say.
fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `CPU_*` bits, by the processor's own leaves: an unprivileged instruction works in a guest when the processor has it and its
/// state is enabled, whatever KVM says in the guest's CPUID (`kvm-pvm` says little). RDRAND alone can be made to fail
/// there, so that KVM is asked; FSGSBASE is enabled in CR4, or no machine could be made.
fn features(leaf1_ecx: u32, leaf7_ebx: u32, xcr0: u64, rdrand: bool) -> u64 {
    use foraker_abi::registers as r;
    let avx = xcr0 & 4 != 0 && leaf1_ecx & 1 << 28 != 0;
    [
        (avx, r::CPU_AVX),
        (avx && leaf7_ebx & 1 << 5 != 0, r::CPU_AVX2),
        (leaf1_ecx & 1 << 25 != 0, r::CPU_AES),
        (rdrand && leaf1_ecx & 1 << 30 != 0, r::CPU_RDRAND),
        (leaf7_ebx & 1 != 0, r::CPU_FSGSBASE),
        (leaf7_ebx & 1 << 9 != 0, r::CPU_ERMS),
        (xcr0 & 0xe0 == 0xe0 && leaf7_ebx & 1 << 16 != 0, r::CPU_AVX512),
    ]
    .into_iter()
    .filter(|(has, _)| *has)
    .fold(0, |all, (_, bit)| all | bit)
}
