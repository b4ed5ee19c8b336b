//! What a core holds of its guest, apart from its machine: to start others from there, or to go on elsewhere.

use kvm_bindings::{kvm_regs, kvm_xsave};
use kvm_ioctls::SyncReg;

use crate::machine::{Core, MachineError, failed, initial_xsave, special_registers};

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
        let used = xsave.region.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        Ok(Saved {
            registers: *self.registers(),
            fs_base: special.fs.base,
            gs_base: special.gs.base,
            xsave: xsave.region.iter().take(used).copied().collect(),
        })
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
        let mut xsave = kvm_xsave::default();
        for (to, from) in xsave.region.iter_mut().zip(&saved.xsave) {
            *to = *from;
        }
        if saved.xsave.is_empty() {
            xsave = initial_xsave();
        }
        // SAFETY: the structure holds all state that XCR0 enables, which was cut to what fits.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(failed("set the vector state"))?;
        self.fd.sync_regs_mut().regs = saved.registers;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        Ok(())
    }
}
