//! A guest as gdbstub sees it: its cores are threads, numbered from 1.

use std::io::Write;
use std::num::NonZeroUsize;
use std::time::Duration;

use foraker_cell::{Debugger, End, Fault, Go, InspectError, Why};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{Breakpoints, BreakpointsOps, SwBreakpoint, SwBreakpointOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

use super::registers;
use crate::signal;

pub(crate) type Reason = MultiThreadStopReason<u64>;

/// What gdb is told when something cannot be done: "bad address".
const EFAULT: u8 = 14;

/// A guest under gdb.
pub(crate) struct Debugged {
    debugger: Debugger,
    /// How long the guest may take to leave its cores.
    patience: Duration,
    going: Vec<(u32, Go)>,
    /// Cores that nothing was said about stay.
    others_stay: bool,
    /// The fault for which it stands, and whether that is to end it.
    fault: Option<Box<Fault>>,
    given_in: bool,
}

impl Debugged {
    pub(crate) fn new(debugger: Debugger, patience: Duration) -> Debugged {
        Debugged { debugger, patience, going: Vec::new(), others_stay: false, fault: None, given_in: false }
    }

    pub(crate) fn debugger(&self) -> &Debugger {
        &self.debugger
    }

    /// Why it stands or is no more, if it does or is.
    pub(crate) fn reason(&mut self) -> Result<Option<Reason>, InspectError> {
        if let Some(end) = self.debugger.inspection().guest().end() {
            return Ok(Some(match end {
                End::Exited(status) => Reason::Exited(u8::try_from(status & 0xff).unwrap_or(0)),
                End::Faulted(fault) => Reason::Terminated(signal_of(fault)),
                End::Killed(_) => Reason::Terminated(Signal::SIGKILL),
            }));
        }
        let Some(stop) = self.debugger.stopped(self.patience)? else { return Ok(None) };
        let tid = thread(stop.core);
        Ok(Some(match stop.why {
            Why::Breakpoint => Reason::SwBreak(tid),
            Why::Step => Reason::SignalWithThread { tid, signal: Signal::SIGTRAP },
            Why::Fault(fault) => {
                let signal = signal_of(&fault);
                self.fault = Some(fault);
                Reason::SignalWithThread { tid, signal }
            }
        }))
    }

    /// gdb wants it to stop.
    pub(crate) fn interrupt(&mut self) -> Result<Reason, InspectError> {
        if !self.debugger.inspection().guest().has_ended() {
            self.debugger.stop(self.patience)?;
        }
        let interrupted = || {
            let tid = thread(self.debugger.inspection().cores().first().copied().unwrap_or(0));
            Reason::SignalWithThread { tid, signal: Signal::SIGINT }
        };
        let interrupted = interrupted();
        // It may have stopped by itself just before.
        Ok(self.reason()?.unwrap_or(interrupted))
    }

    fn set_going(&mut self, tid: Tid, go: Go, signal: Option<Signal>) {
        let core = core(tid);
        self.going.retain(|(other, _)| *other != core);
        self.going.push((core, go));
        // The signal that it has stopped for: gdb passes it on, or drops it.
        let passed =
            |fault: &Fault| signal.is_some_and(|signal| fault.core == core && signal == signal_of(fault));
        self.given_in |= self.fault.as_deref().is_some_and(passed);
    }
}

fn thread(core: u32) -> Tid {
    NonZeroUsize::MIN.saturating_add(usize::try_from(core).unwrap_or(0))
}

fn core(thread: Tid) -> u32 {
    u32::try_from(thread.get() - 1).unwrap_or(u32::MAX)
}

/// gdb has its own numbers for signals.
fn signal_of(fault: &Fault) -> Signal {
    match signal::of(fault) {
        signal::SIGILL => Signal::SIGILL,
        signal::SIGTRAP => Signal::SIGTRAP,
        signal::SIGBUS => Signal::SIGBUS,
        signal::SIGFPE => Signal::SIGFPE,
        _ => Signal::SIGSEGV,
    }
}

/// What is refused is refused; the guest and its debugger go on.
fn refused<T>(result: Result<T, InspectError>) -> TargetResult<T, Debugged> {
    result.map_err(|_| TargetError::Errno(EFAULT))
}

impl Target for Debugged {
    type Arch = X86_64_SSE;
    type Error = InspectError;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, InspectError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged {
    fn read_registers(&mut self, to: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        *to = registers::shown(&refused(self.debugger.inspection().core(core(tid)))?);
        Ok(())
    }

    fn write_registers(&mut self, from: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let mut state = refused(self.debugger.inspection().core(core(tid)))?;
        registers::change(&mut state, from);
        refused(self.debugger.inspection_mut().set_core(core(tid), &state))
    }

    fn read_addrs(&mut self, address: u64, to: &mut [u8], _: Tid) -> TargetResult<usize, Self> {
        match self.debugger.inspection().read(address, to) {
            0 => Err(TargetError::Errno(EFAULT)),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, address: u64, from: &[u8], _: Tid) -> TargetResult<(), Self> {
        refused(self.debugger.inspection_mut().write(address, from))
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), InspectError> {
        self.debugger.inspection().cores().into_iter().for_each(|core| active(thread(core)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Debugged {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, InspectError> {
        let room = buffer.len();
        let mut rest = buffer;
        // What does not fit is left out.
        let _ = write!(rest, "core {} of {}", core(tid), self.debugger.inspection().guest().name);
        Ok(room - rest.len())
    }
}

impl MultiThreadResume for Debugged {
    fn resume(&mut self) -> Result<(), InspectError> {
        let others = if self.others_stay { Go::Stay } else { Go::Run };
        let mut all = vec![others; self.debugger.inspection().guest().cores()];
        for (core, go) in &self.going {
            if let Some(place) = usize::try_from(*core).ok().and_then(|core| all.get_mut(core)) {
                *place = *go;
            }
        }
        if let Some(fault) = self.fault.take().filter(|_| self.given_in) {
            self.debugger.give_in(*fault);
        }
        self.debugger.go(all);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), InspectError> {
        self.going.clear();
        (self.others_stay, self.given_in) = (false, false);
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, signal: Option<Signal>) -> Result<(), InspectError> {
        self.set_going(tid, Go::Run, signal);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged {
    fn set_resume_action_step(&mut self, tid: Tid, signal: Option<Signal>) -> Result<(), InspectError> {
        self.set_going(tid, Go::Step, signal);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debugged {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), InspectError> {
        self.others_stay = true;
        Ok(())
    }
}

impl Breakpoints for Debugged {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        refused(self.debugger.set_breakpoint(address)).map(|()| true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        refused(self.debugger.clear_breakpoint(address))
    }
}
