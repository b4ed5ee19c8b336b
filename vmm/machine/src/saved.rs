//! What a core holds of its guest, apart from its machine: to start others from there, or to go on elsewhere.

use kvm_bindings::{kvm_regs, kvm_xsave};
use kvm_ioctls::SyncReg;

use crate::machine::{Core, MachineError, checked_flags, failed, initial_xsave, special_registers};

/// A core's state: general registers, segment bases, x87 and vectors.
#[derive(Clone, Debug)]
pub struct Saved {
    registers: kvm_regs,
    fs_base: u64,
    gs_base: u64,
    /// The XSAVE area without the zeros at its end: most guests use little of it.
    xsave: Box<[u32]>,
}

impl Saved {
    /// A state of which the general registers are all that is known.
    #[must_use]
    pub fn of_registers(registers: kvm_regs) -> Saved {
        Saved { registers, fs_base: 0, gs_base: 0, xsave: Box::default() }
    }

    /// The general registers.
    #[must_use]
    pub fn registers(&self) -> &kvm_regs {
        &self.registers
    }

    /// Sets the general registers. Of the flags, what is not a program's own stays what the architecture says.
    pub fn set_registers(&mut self, registers: kvm_regs) {
        self.registers = kvm_regs { rflags: checked_flags(registers.rflags), ..registers };
    }

    /// Bases of FS and GS.
    #[must_use]
    pub fn bases(&self) -> (u64, u64) {
        (self.fs_base, self.gs_base)
    }

    /// The XSAVE area in its standard form, of which the legacy region is the first 512 bytes.
    #[must_use]
    pub fn xsave(&self) -> kvm_xsave {
        if self.xsave.is_empty() {
            return initial_xsave();
        }
        let mut xsave = kvm_xsave::default();
        for (to, from) in xsave.region.iter_mut().zip(&self.xsave) {
            *to = *from;
        }
        xsave
    }

    /// Sets the XSAVE area.
    pub fn set_xsave(&mut self, xsave: &kvm_xsave) {
        let used = xsave.region.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        self.xsave = xsave.region.iter().take(used).copied().collect();
    }

    /// Sets the result of the hypercall with which the core has exited.
    pub fn set_result(&mut self, result: i64) {
        self.registers.rax = result.cast_unsigned();
    }

    /// Bytes that this takes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Saved>() + size_of_val(&*self.xsave)
    }
}

impl Core {
    /// The core's state after a hypercall.
    ///
    /// # Errors
    /// The host refuses.
    pub fn save(&mut self) -> Result<Saved, MachineError> {
        self.complete_exit()?;
        let special = self.fd.get_sregs().map_err(failed("read segment registers"))?;
        let xsave = self.fd.get_xsave().map_err(failed("read the vector state"))?;
        let mut saved = Saved::of_registers(*self.registers());
        (saved.fs_base, saved.gs_base) = (special.fs.base, special.gs.base);
        saved.set_xsave(&xsave);
        Ok(saved)
    }

    /// Has a core without a state of its own go on from `saved`, with these page tables.
    ///
    /// # Errors
    /// The host refuses.
    pub fn resume(&mut self, page_tables: u64, saved: &Saved) -> Result<(), MachineError> {
        let mut special = special_registers(self.index, page_tables, self.machine.host.task_state_type());
        special.fs.base = saved.fs_base;
        special.gs.base = saved.gs_base;
        self.fd.set_sregs(&special).map_err(failed("set segment registers"))?;
        self.load_xsave(saved.xsave()).map_err(failed("set the vector state"))?;
        self.fd.sync_regs_mut().regs = saved.registers;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        Ok(())
    }
}
