//! A machine: a KVM VM with its memory slots, and its cores.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use foraker_abi::hypercall::DOORBELL_PORT;
use foraker_abi::layout::{
    GDT, IDT, KERNEL_CODE, KERNEL_DATA, SYSCALL_STUB, TASK_STATE_SIZE, TASK_STATES, USER_CODE, USER_DATA,
    VECTORS,
};
use foraker_memory::GuestMemory;
use foraker_memory::shared::TASK_STATE_LIMIT;
use kvm_bindings::{
    KVM_MEM_READONLY, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, SyncReg, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::attention::Attention;
use crate::exit::{self, Exit, Raw};
use crate::host::Host;

const MSR_TSC: u32 = 0x10;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;
/// Flags that `syscall` clears on its way to the stub: trap, interrupt, direction, IOPL, nested task, alignment check.
const FMASK: u64 = 0x4_7700;

/// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// CR4: PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
/// EFER: LME, LMA and NXE.
const EFER: u64 = 1 << 8 | 1 << 10 | 1 << 11;
/// RFLAGS of a guest: the reserved bit, and IF, which nothing looks at but which a guest can read, so that it is the same on every back
/// end. IOPL stays 0: the I/O bitmap alone opens the ports of the contract, so that another port, `cli` and `sti` are faults everywhere.
const RFLAGS: u64 = 1 << 1 | 1 << 9;
/// Bits of RFLAGS that an upcall clears: trap, direction, alignment check.
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 18;

/// The host could not make or set up a machine.
#[derive(Debug, thiserror::Error)]
#[error("KVM: cannot {what}: {source}")]
pub struct MachineError {
    what: &'static str,
    source: std::io::Error,
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |e| MachineError { what, source: std::io::Error::from_raw_os_error(e.errno()) }
}

/// A VM with one guest's memory.
#[derive(Debug)]
pub struct Machine {
    vm: VmFd,
    host: Arc<Host>,
    /// Keeps the memory of the slots.
    memory: Arc<GuestMemory>,
}

/// How a core starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub entry: u64,
    /// Stack pointer.
    pub stack: u64,
    /// Content of RDI.
    pub argument: u64,
}

impl Machine {
    /// Makes a VM for a guest with this memory, which [`Self::map_memory`] gives it.
    ///
    /// # Errors
    /// The host has no more VMs or descriptors to give.
    pub fn new(host: &Arc<Host>, memory: &Arc<GuestMemory>) -> Result<Machine, MachineError> {
        let vm = host.kvm.create_vm().map_err(failed("create a virtual machine"))?;
        Ok(Machine { vm, host: Arc::clone(host), memory: Arc::clone(memory) })
    }

    /// Gives the VM its guest's memory: once, before a core runs. May be done while cores are made.
    ///
    /// # Errors
    /// The host refuses.
    pub fn map_memory(&self) -> Result<(), MachineError> {
        for (slot, s) in (0u32..).zip(self.memory.slots()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: if s.read_only { KVM_MEM_READONLY } else { 0 },
                guest_phys_addr: s.address,
                memory_size: s.size,
                userspace_addr: s.host as u64,
            };
            // SAFETY: the memory lives as long as `memory`, which this value holds for longer than its VM.
            unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("set a memory slot"))?;
        }
        Ok(())
    }

    /// Lets the asynchronous doorbell signal `event` without leaving the kernel.
    ///
    /// # Errors
    /// The host refuses.
    pub fn register_doorbell(&self, event: &EventFd) -> Result<(), MachineError> {
        let address = IoEventAddress::Pio(u64::from(DOORBELL_PORT));
        self.vm.register_ioevent(event, &address, NoDatamatch).map_err(failed("register the doorbell"))
    }

    /// Makes core `index` of the guest; it runs from `start` on.
    ///
    /// # Errors
    /// The host has no more virtual CPUs to give.
    pub fn create_core(&self, index: u32, start: Start) -> Result<Core, MachineError> {
        let mut fd = self.vm.create_vcpu(u64::from(index)).map_err(failed("create a virtual CPU"))?;
        fd.set_cpuid2(&self.host.cpuid).map_err(failed("set CPUID"))?;
        fd.set_xcrs(&xcrs(self.host.xcr0)).map_err(failed("set XCR0"))?;
        let msrs = [(MSR_STAR, u64::from(KERNEL_CODE) << 32), (MSR_LSTAR, SYSCALL_STUB), (MSR_FMASK, FMASK)];
        let entries: Vec<_> = msrs
            .iter()
            .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries).expect("three entries fit");
        let written = fd.set_msrs(&msrs).map_err(failed("set MSRs"))?;
        if written != entries.len() {
            return Err(failed("set all MSRs")(kvm_ioctls::Error::new(libc::EIO)));
        }
        let special = special_registers(index, self.memory.page_tables(), self.host.task_state_type());
        fd.set_sregs(&special).map_err(failed("set segment registers"))?;
        fd.set_sync_valid_reg(SyncReg::Register);
        let mut core = Core { fd };
        core.restart(start);
        Ok(core)
    }
}

fn xcrs(xcr0: u64) -> kvm_xcrs {
    let mut x = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    x.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value: xcr0 };
    x
}

fn special_registers(index: u32, page_tables: u64, task_state_type: u8) -> kvm_sregs {
    let segment = |selector: u16, type_: u8, dpl: u8, code: bool| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let data = segment(USER_DATA, 3, 3, false);
    let table = |base, limit| kvm_dtable { base, limit, padding: [0; 3] };
    kvm_sregs {
        cs: segment(USER_CODE, 11, 3, true),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: kvm_segment {
            base: TASK_STATES + u64::from(index) * TASK_STATE_SIZE,
            limit: TASK_STATE_LIMIT,
            selector: KERNEL_DATA,
            type_: task_state_type,
            present: 1,
            ..Default::default()
        },
        ldt: kvm_segment { unusable: 1, ..Default::default() },
        gdt: table(GDT, 5 * 8 - 1),
        // Vectors are few; the limit is what turns `int n` beyond them into a fault.
        idt: table(IDT, u16::try_from(VECTORS * 16 - 1).expect("a small table")),
        cr0: CR0,
        cr3: page_tables,
        cr4: CR4,
        efer: EFER,
        // Where the architecture puts the local APIC, enabled; core 0 is the bootstrap processor.
        apic_base: 0xfee0_0800 | if index == 0 { 0x100 } else { 0 },
        ..Default::default()
    }
}

/// One virtual CPU.
#[derive(Debug)]
pub struct Core {
    fd: VcpuFd,
}

impl Core {
    /// Runs the core until it exits. Registers that were changed since are loaded first.
    pub fn run(&mut self, attention: &Attention) -> Exit {
        let run: *mut kvm_bindings::kvm_run = self.fd.get_kvm_run();
        // SAFETY: the `kvm_run` page stays mapped as long as the descriptor's wrapper, which outlives this call; the byte is only
        // ever accessed as an atomic here, and by the kernel.
        let immediate_exit = unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) };
        let entered = attention.enter(immediate_exit, || exit::raw(self.fd.run()));
        match entered {
            None => Exit::Interrupted,
            Some(Raw::Done(exit)) => exit,
            Some(Raw::Out(port, bytes)) => exit::of_port(port, bytes, self.registers().rip),
        }
    }

    /// The registers as they were at the exit.
    #[must_use]
    pub fn registers(&mut self) -> &kvm_regs {
        &self.fd.sync_regs_mut().regs
    }

    /// Changes registers; they are loaded at the next entry.
    pub fn change(&mut self, change: impl FnOnce(&mut kvm_regs)) {
        change(&mut self.fd.sync_regs_mut().regs);
        self.fd.set_sync_dirty_reg(SyncReg::Register);
    }

    /// Sets the result of a hypercall.
    pub fn set_result(&mut self, result: i64) {
        self.change(|r| r.rax = result.cast_unsigned());
    }

    /// Sets all registers for a start.
    pub fn restart(&mut self, start: Start) {
        self.change(|r| {
            *r = kvm_regs {
                rip: start.entry,
                rsp: start.stack,
                rdi: start.argument,
                rflags: RFLAGS,
                ..Default::default()
            };
        });
    }

    /// Sends the core to `handler` with the stack at `stack`, as at an upcall.
    pub fn divert(&mut self, handler: u64, stack: u64) {
        self.change(|r| {
            r.rip = handler;
            r.rsp = stack;
            r.rflags &= !RFLAGS_CLEARED;
        });
    }

    /// The address of the last page fault (CR2).
    ///
    /// # Errors
    /// The host refuses.
    pub fn fault_address(&self) -> Result<u64, MachineError> {
        Ok(self.fd.get_sregs().map_err(failed("read CR2"))?.cr2)
    }

    /// The guest's time-stamp counter, and the host's right after it was read.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn time_stamps(&self) -> Result<(u64, u64), MachineError> {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: MSR_TSC, ..Default::default() }])
            .expect("one entry fits");
        let read = self.fd.get_msrs(&mut msrs).map_err(failed("read the time-stamp counter"))?;
        let host = host_time_stamp();
        match (read, msrs.as_slice()) {
            (1, [entry]) => Ok((entry.data, host)),
            _ => Err(failed("read the time-stamp counter")(kvm_ioctls::Error::new(libc::EIO))),
        }
    }

    /// Frequency of the guest's time-stamp counter, kHz.
    ///
    /// # Errors
    /// The host does not know.
    pub(crate) fn tsc_khz(&self) -> Result<u32, MachineError> {
        self.fd.get_tsc_khz().map_err(failed("read the frequency of the time-stamp counter"))
    }
}

/// The host's time-stamp counter.
#[must_use]
pub fn host_time_stamp() -> u64 {
    // SAFETY: the instruction exists on every x86-64 processor and has no other effect.
    unsafe { std::arch::x86_64::_rdtsc() }
}
