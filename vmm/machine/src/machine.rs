//! A machine: a KVM VM with its memory slots, and its cores. Guests come and go; between two of them everything is reset.

use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foraker_abi::hypercall::DOORBELL_PORT;
use foraker_abi::layout::{
    GDT, IDT, KERNEL_CODE, KERNEL_DATA, SYSCALL_STUB, TASK_STATE_SIZE, TASK_STATES, USER_CODE, USER_DATA,
    VECTORS, VISIT,
};
use foraker_memory::shared::TASK_STATE_LIMIT;
use foraker_memory::{GuestMemory, Shared, Slot};
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave,
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
/// Bits of RFLAGS that are a program's own: arithmetic, direction, alignment check, identification.
const RFLAGS_OF_PROGRAM: u64 = 0x8d5 | 1 << 10 | 1 << 18 | 1 << 21;
/// The trap flag: the processor raises a debug exception after the next instruction.
const RFLAGS_TRAP: u64 = 1 << 8;
/// Bits of RFLAGS that an upcall clears: trap, direction, alignment check.
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 18;

/// The host could not make or set up a machine.
#[derive(Debug, thiserror::Error)]
#[error("KVM: cannot {what}: {source}")]
pub struct MachineError {
    what: &'static str,
    source: std::io::Error,
}

pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |e| MachineError { what, source: std::io::Error::from_raw_os_error(e.errno()) }
}

/// A VM that guests run on, one after the other.
#[derive(Debug)]
pub struct Machine {
    vm: VmFd,
    pub(crate) host: Arc<Host>,
    attached: Mutex<Attached>,
}

/// What a machine has of its guest.
#[derive(Debug, Default)]
struct Attached {
    /// Keeps the memory of the slots: dropped only after the VM has let go of it.
    memory: Option<Arc<GuestMemory>>,
    /// The part that guests of an image share, which of the same image finds in place.
    shared: Option<Arc<Shared>>,
    doorbell: bool,
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
    /// Makes a VM without memory.
    ///
    /// # Errors
    /// The host has no more VMs or descriptors to give.
    pub fn new(host: &Arc<Host>) -> Result<Arc<Machine>, MachineError> {
        Ok(Arc::new(Machine { vm: host.create_vm()?, host: Arc::clone(host), attached: Mutex::default() }))
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the VM a guest's memory, before a core runs; the former guest's was taken away by [`Self::detach`]. May be done while cores
    /// are made.
    ///
    /// # Errors
    /// The host refuses.
    pub fn attach(&self, memory: &Arc<GuestMemory>) -> Result<(), MachineError> {
        let mut attached = self.attached();
        self.share(&mut attached, memory)?;
        let [_, own] = memory.slots();
        self.set_slot(1, &own, own.size)?;
        attached.memory = Some(Arc::clone(memory));
        Ok(())
    }

    /// Gives the VM what its guest, whose memory it has, shares with others, if that is no longer what it was: the guest has a copy of its own now. No core
    /// may be running.
    ///
    /// # Errors
    /// The host refuses.
    pub fn share_anew(&self, memory: &GuestMemory) -> Result<(), MachineError> {
        self.share(&mut self.attached(), memory)
    }

    fn share(&self, attached: &mut Attached, memory: &GuestMemory) -> Result<(), MachineError> {
        let [common, _] = memory.slots();
        let shared = memory.shared();
        if attached.shared.as_ref().is_none_or(|there| !Arc::ptr_eq(there, shared)) {
            if attached.shared.is_some() {
                self.set_slot(0, &common, 0)?;
            }
            self.set_slot(0, &common, common.size)?;
            attached.shared = Some(Arc::clone(shared));
        }
        Ok(())
    }

    /// Whether it has this shared part: what KVM knows of it is then in place for the next guest.
    #[must_use]
    pub fn has(&self, shared: &Arc<Shared>) -> bool {
        self.attached().shared.as_ref().is_some_and(|there| Arc::ptr_eq(there, shared))
    }

    /// Takes the guest's memory away. No core may be running.
    ///
    /// # Errors
    /// The host refuses; the memory stays held.
    pub fn detach(&self) -> Result<(), MachineError> {
        let mut attached = self.attached();
        if let Some(memory) = &attached.memory {
            let [common, own] = memory.slots();
            self.set_slot(1, &own, 0)?;
            // Nobody else has this.
            if attached.shared.as_ref().is_some_and(|there| there.is_private()) {
                self.set_slot(0, &common, 0)?;
                attached.shared = None;
            }
            attached.memory = None;
        }
        Ok(())
    }

    /// Sets a slot to `size` bytes of its memory; 0 takes it away.
    fn set_slot(&self, slot: u32, s: &Slot, size: u64) -> Result<(), MachineError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: s.address,
            memory_size: size,
            userspace_addr: s.host as u64,
        };
        // SAFETY: the memory lives as long as `attached` holds it, which is until its slot is taken away or the VM is gone.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("set a memory slot"))
    }

    /// Lets the asynchronous doorbell signal `event` without leaving the kernel: once for all guests of the machine.
    ///
    /// # Errors
    /// The host refuses.
    pub fn register_doorbell(&self, event: &EventFd) -> Result<(), MachineError> {
        let mut attached = self.attached();
        if !attached.doorbell {
            let address = IoEventAddress::Pio(u64::from(DOORBELL_PORT));
            self.vm
                .register_ioevent(event, &address, NoDatamatch)
                .map_err(failed("register the doorbell"))?;
            attached.doorbell = true;
        }
        Ok(())
    }

    /// Makes core `index`; it runs once it was told where to begin.
    ///
    /// # Errors
    /// The host has no more virtual CPUs to give.
    pub fn create_core(self: &Arc<Self>, index: u32) -> Result<Core, MachineError> {
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
        fd.set_sync_valid_reg(SyncReg::Register);
        Ok(Core { fd, index, machine: Arc::clone(self) })
    }
}

fn xcrs(xcr0: u64) -> kvm_xcrs {
    let mut x = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    x.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value: xcr0 };
    x
}

pub(crate) fn special_registers(index: u32, page_tables: u64, task_state_type: u8) -> kvm_sregs {
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

/// Flags of which what is not a program's own is as the architecture has it.
pub(crate) fn checked_flags(rflags: u64) -> u64 {
    rflags & RFLAGS_OF_PROGRAM | RFLAGS
}

/// One virtual CPU.
#[derive(Debug)]
pub struct Core {
    pub(crate) fd: VcpuFd,
    pub(crate) index: u32,
    pub(crate) machine: Arc<Machine>,
}

impl Core {
    /// Its machine.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Points the core to a guest's page tables and first instruction.
    ///
    /// # Errors
    /// The host refuses.
    pub fn begin(&mut self, page_tables: u64, start: Start) -> Result<(), MachineError> {
        let special = special_registers(self.index, page_tables, self.machine.host.task_state_type());
        self.fd.set_sregs(&special).map_err(failed("set segment registers"))?;
        self.restart(start);
        Ok(())
    }

    /// Completes the instruction that exited. It would be at the next entry, on whatever registers there are then.
    pub(crate) fn complete_exit(&mut self) -> Result<(), MachineError> {
        self.fd.set_kvm_immediate_exit(1);
        let entered = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match entered {
            Err(e) if e.errno() == libc::EINTR => Ok(()),
            _ => Err(failed("complete an exit")(kvm_ioctls::Error::new(libc::EIO))),
        }
    }

    /// Sets the state of x87, vectors and protection keys.
    ///
    /// Rights of protection keys (PKRU) are named always: KVM leaves those as they are of which an area says nothing, and a guest has them in its reach
    /// where a back end runs it with the host's own XCR0 and CR4, whatever its machine's say.
    pub(crate) fn load_xsave(&mut self, mut xsave: kvm_xsave) -> Result<(), kvm_ioctls::Error> {
        xsave.region[XSAVE_PRESENT] |= self.machine.host.protection_keys();
        // SAFETY: the structure holds all state that XCR0 enables, which was cut to what fits, and a state of four bytes beside it.
        unsafe { self.fd.set_xsave(&xsave) }
    }

    /// Clears everything that a guest leaves in a core: x87, SSE, AVX and AVX-512 state, debug registers, pending exceptions, segment bases. General
    /// registers and flags are set when it begins; model-specific registers are out of a guest's reach.
    ///
    /// # Errors
    /// The host refuses: the core must not be used again.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.complete_exit()?;
        self.load_xsave(initial_xsave()).map_err(failed("reset the vector state"))?;
        self.fd.set_debug_regs(&kvm_debugregs::default()).map_err(failed("reset the debug registers"))?;
        self.fd.set_vcpu_events(&kvm_vcpu_events::default()).map_err(failed("reset pending events"))?;
        let special = special_registers(self.index, 0, self.machine.host.task_state_type());
        self.fd.set_sregs(&special).map_err(failed("reset segment registers"))?;
        self.change(|r| *r = kvm_regs { rflags: RFLAGS, ..Default::default() });
        Ok(())
    }

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

    /// Has a core that no guest has read a byte at each address of a list in its memory, up to a 0, so that they are in KVM's page tables before a guest
    /// needs them. What the core holds afterwards is no guest's.
    ///
    /// # Errors
    /// The host refuses, or the core came out for another reason than that it was done: it must not be used again.
    pub fn visit(&mut self, page_tables: u64, list: u64, attention: &Attention) -> Result<(), MachineError> {
        self.begin(page_tables, Start { entry: VISIT, stack: 0, argument: list })?;
        match self.run(attention) {
            Exit::Hypercall => self.complete_exit(),
            _ => Err(failed("visit memory")(kvm_ioctls::Error::new(libc::EFAULT))),
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

    /// Has the core raise a debug exception after its next instruction, or no longer.
    pub fn set_trap(&mut self, trap: bool) {
        self.change(|r| {
            r.rflags &= !RFLAGS_TRAP;
            if trap {
                r.rflags |= RFLAGS_TRAP;
            }
        });
    }

    /// The instruction that exited is done, and the debug exception that the trap flag has it raise is not: some back ends deliver that at the next
    /// entry.
    ///
    /// # Errors
    /// The host refuses.
    pub fn forget_trap(&mut self) -> Result<(), MachineError> {
        self.set_trap(false);
        self.complete_exit()?;
        self.fd.set_vcpu_events(&kvm_vcpu_events::default()).map_err(failed("reset pending events"))
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

/// Where an XSAVE area says which states are in it, in words of four bytes.
const XSAVE_PRESENT: usize = 128;

/// The state of the x87 and vector registers as the architecture has it after start: all of it in its initial state but the two control words,
/// which are named so that they are loaded, not kept.
pub(crate) fn initial_xsave() -> kvm_xsave {
    const X87_CONTROL: usize = 0;
    const MXCSR: usize = 6;
    let mut xsave = kvm_xsave::default();
    xsave.region[X87_CONTROL] = 0x37f;
    xsave.region[MXCSR] = 0x1f80;
    // x87 and SSE.
    xsave.region[XSAVE_PRESENT] = 3;
    xsave
}

/// The host's time-stamp counter.
#[must_use]
pub fn host_time_stamp() -> u64 {
    // SAFETY: the instruction exists on every x86-64 processor and has no other effect.
    unsafe { std::arch::x86_64::_rdtsc() }
}
