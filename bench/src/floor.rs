//! The raw floor: the least that anybody can do with KVM and still run CPL 3 code in long mode to an exit.
//!
//! One VM, one memory slot of six pages, one vCPU, one CPUID table, two register ioctls. No irqchip, no thread, no
//! channel, no image to load, no reset. What a virtual machine monitor does on top of this is its overhead.
//! The page tables, a task state with an I/O bitmap, and two instructions of code are the whole guest:
//!
//! ```text
//! again: out 0x7e, al
//!        jmp again
//! ```

use std::io;
use std::ptr;

use anyhow::{Context, Result, bail};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};

const PAGE: usize = 4096;
/// First guest-physical address of the slot; page 0 stays absent.
const BASE: u64 = 0x1000;
/// Page tables (four levels), task state, code.
const PAGES: usize = 6;
const TASK_STATE: u64 = BASE + 4 * PAGE as u64;
const CODE: u64 = BASE + 5 * PAGE as u64;
/// `out 0x7e, al; jmp` back to it.
const PROGRAM: [u8; 4] = [0xe6, 0x7e, 0xeb, 0xfc];
const PORT: u16 = 0x7e;

/// Bytes of an instance that are the guest's own memory.
pub const GUEST_BYTES: usize = PAGES * PAGE;

/// What a process sets up once: the device, and the CPUID table, which alone costs half a millisecond to ask for.
#[derive(Debug)]
pub struct Floor {
    kvm: Kvm,
    cpuid: CpuId,
    sregs: Option<kvm_sregs>,
}

/// A virtual machine that has reached its first exit.
#[derive(Debug)]
pub struct Instance {
    // Dropped in this order: the vCPU and the VM before the memory that they use.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Memory,
}

impl Floor {
    /// Opens `/dev/kvm` and asks for the supported CPUID table.
    ///
    /// # Errors
    /// When KVM is missing, not permitted, or lacks the synchronised registers.
    pub fn open() -> Result<Floor> {
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        Ok(Floor { kvm, cpuid, sregs: None })
    }

    /// Creates a virtual machine and runs it to its first exit.
    ///
    /// # Errors
    /// When KVM refuses a step, or the first exit is not the program's `out`.
    pub fn launch(&mut self) -> Result<Instance> {
        let vm = self.kvm.create_vm().context("KVM_CREATE_VM")?;
        let memory = Memory::new()?;
        memory.fill();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: BASE,
            memory_size: GUEST_BYTES as u64,
            userspace_addr: memory.address as u64,
        };
        // SAFETY: the region is a mapping of exactly `memory_size` bytes which `Instance` keeps until the VM is gone.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        vcpu.set_cpuid2(&self.cpuid).context("KVM_SET_CPUID2")?;
        // What a fresh vCPU reports is the same each time: asked for once.
        let sregs = match self.sregs {
            Some(sregs) => sregs,
            None => *self.sregs.insert(long_mode(vcpu.get_sregs().context("KVM_GET_SREGS")?)),
        };
        vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        // IOPL 3: stock KVM asks the flags, others the I/O bitmap.
        let regs = kvm_regs { rip: CODE, rflags: 0x3002, ..Default::default() };
        vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        let mut instance = Instance { vcpu, _vm: vm, _memory: memory };
        instance.run()?;
        Ok(instance)
    }
}

impl Instance {
    fn run(&mut self) -> Result<()> {
        match self.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(PORT, _) => Ok(()),
            other => bail!("the floor's guest ended with an unexpected exit: {other:?}"),
        }
    }

    /// One round trip as a hypercall makes it: the argument is read from the synchronised registers, a result is
    /// written to them, the guest is entered and runs to its next `out`. Returns the argument.
    ///
    /// # Errors
    /// When the next exit is anything else.
    pub fn round_trip(&mut self) -> Result<u64> {
        let regs = &mut self.vcpu.sync_regs_mut().regs;
        let argument = regs.rax;
        regs.rax = argument.wrapping_add(1);
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        self.run()?;
        Ok(argument)
    }
}

/// The state in which CPL 3 code runs in long mode without any other.
fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x23,
        type_: 11,
        present: 1,
        dpl: 3,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 0x1b, type_: 3, db: 1, l: 0, ..code };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        base: TASK_STATE,
        limit: TASK_STATE_BYTES as u32 - 1,
        selector: 0x28,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = BASE;
    // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
    sregs.efer = 0x500;
    sregs
}

/// 104 bytes of the TSS, 16 of I/O bitmap for ports below 0x80, and the closing byte.
const TASK_STATE_BYTES: usize = 104 + 16 + 1;

/// The guest's pages.
#[derive(Debug)]
struct Memory {
    address: *mut u8,
}

impl Memory {
    fn new() -> Result<Memory> {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
        );
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(ptr::null_mut(), GUEST_BYTES, prot, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("cannot map the guest's memory");
        }
        Ok(Memory { address: address.cast() })
    }

    /// Writes page tables, task state and code.
    fn fill(&self) {
        // SAFETY: the mapping is GUEST_BYTES long, page-aligned, and no vCPU runs on it yet.
        let words = unsafe { std::slice::from_raw_parts_mut(self.address.cast::<u64>(), GUEST_BYTES / 8) };
        let entries = PAGE / 8;
        // Present, writable, user, accessed, dirty.
        let table = 0x67;
        for level in 0..3 {
            words[level * entries] = (BASE + (level as u64 + 1) * PAGE as u64) | table;
        }
        // The task state is the supervisor's; the code is the user's.
        words[3 * entries + (TASK_STATE as usize / PAGE)] = TASK_STATE | 0x63;
        words[3 * entries + (CODE as usize / PAGE)] = CODE | 0x65;
        // SAFETY: as above; the word slice is not used again.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.address, GUEST_BYTES) };
        let task_state = (TASK_STATE - BASE) as usize;
        bytes[task_state + 102..task_state + 104].copy_from_slice(&104u16.to_le_bytes());
        bytes[task_state + TASK_STATE_BYTES - 1] = 0xff;
        let code = (CODE - BASE) as usize;
        bytes[code..code + PROGRAM.len()].copy_from_slice(&PROGRAM);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once; the VM that used it is closed before (field order).
        unsafe { libc::munmap(self.address.cast(), GUEST_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_counts_its_round_trips() {
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("no /dev/kvm: not run");
            return;
        }
        let mut floor = Floor::open().unwrap();
        let mut instance = floor.launch().unwrap();
        for n in 0..100 {
            assert_eq!(instance.round_trip().unwrap(), n, "RAX travels both ways");
        }
    }
}
