//! gdb's remote protocol for a guest, over a Unix socket: `gdb IMAGE -ex 'target remote SOCKET'`.
//!
//! Cores are threads, which stop and go together unless gdb wants it otherwise. Breakpoints, single steps, Ctrl-C, reading and writing registers and
//! memory are there; hardware watchpoints are not, so that gdb steps through a program to watch a variable.

mod registers;
mod target;
mod wire;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use foraker_cell::{Debugger, End, Guest, InspectError};
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub};

use target::{Debugged, Reason};
use wire::Wire;

/// How a session of debugging ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// gdb has left, or its connection was closed. The guest goes on.
    Detached,
    /// gdb has ended the guest.
    Killed,
    /// The guest has ended.
    Ended,
}

/// Why a guest cannot be debugged, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// It cannot be looked into.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It is no more.
    #[error("the guest has ended: a dump shows how it was then")]
    Ended,
    /// The connection cannot be used.
    #[error("the connection to gdb: {0}")]
    Connection(#[from] io::Error),
    /// gdb has said something that cannot be understood, or the other way round.
    #[error("gdb's protocol: {0}")]
    Protocol(String),
}

/// Stops a guest and has gdb, at the other end of the stream, debug it until gdb leaves, the stream is closed or the guest ends. The guest goes on then, without
/// breakpoints, unless it is paused. There is one debugger of a guest at a time, and none while it is dumped.
///
/// A fault of the guest stops it; whether it ends with it is for gdb to say, which passes the signal on or not. `patience` is how long the
/// guest may take to leave its cores whenever it is stopped, which on a busy cell is as long as a round of all guests. Blocks: to end a session
/// from outside, shut the stream down.
///
/// # Errors
/// Somebody else looks into the guest, it has ended, it does not leave its cores in time, or gdb and this do not understand each other.
pub fn serve(guest: &Arc<Guest>, stream: UnixStream, patience: Duration) -> Result<Session, DebugError> {
    attach(guest, patience)?.serve(stream)
}

/// Stops a guest for a debugger that is yet to speak.
///
/// # Errors
/// Somebody else looks into the guest, it has ended, or it does not leave its cores in time.
pub fn attach(guest: &Arc<Guest>, patience: Duration) -> Result<Attached, DebugError> {
    if guest.has_ended() {
        return Err(DebugError::Ended);
    }
    let debugged = Debugged::new(Debugger::attach(guest, patience)?, patience);
    Ok(Attached { guest: Arc::clone(guest), debugged })
}

/// A guest that stands for its debugger. It goes on when this is dropped or has been served.
pub struct Attached {
    guest: Arc<Guest>,
    debugged: Debugged,
}

impl Attached {
    /// Has gdb, at the other end of the stream, debug the guest: see [`serve()`].
    ///
    /// # Errors
    /// It does not leave its cores in time, or gdb and this do not understand each other.
    pub fn serve(mut self, stream: UnixStream) -> Result<Session, DebugError> {
        let guest = Arc::clone(&self.guest);
        let wire = Wire::new(stream, move || guest.has_ended())?;
        match GdbStub::new(wire).run_blocking::<Loop>(&mut self.debugged) {
            Ok(DisconnectReason::Disconnect) => Ok(Session::Detached),
            Ok(DisconnectReason::Kill) => {
                self.guest.finish(End::Killed("its debugger ended it".to_owned()));
                Ok(Session::Killed)
            }
            Ok(DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_)) => {
                Ok(Session::Ended)
            }
            Err(e) if e.is_connection_error() => match e.into_connection_error() {
                Some((e, _)) if is_closed(&e) && self.guest.has_ended() => Ok(Session::Ended),
                // Whoever closes the stream leaves.
                Some((e, _)) if is_closed(&e) => Ok(Session::Detached),
                Some((e, _)) => Err(e.into()),
                None => Err(DebugError::Protocol("the connection failed".to_owned())),
            },
            Err(e) if e.is_target_error() => Err(match e.into_target_error() {
                Some(e) => e.into(),
                None => DebugError::Protocol("the guest cannot be debugged".to_owned()),
            }),
            Err(e) => Err(DebugError::Protocol(e.to_string())),
        }
    }
}

fn is_closed(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

enum Loop {}

impl BlockingEventLoop for Loop {
    type Target = Debugged;
    type Connection = Wire;
    type StopReason = Reason;

    fn wait_for_stop_reason(
        debugged: &mut Debugged,
        wire: &mut Wire,
    ) -> Result<Event<Reason>, WaitForStopReasonError<InspectError, io::Error>> {
        loop {
            let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut entries = [entry(wire.descriptor()), entry(debugged.debugger().event())];
            let timeout = if wire.has_read() { 0 } else { -1 };
            // SAFETY: two valid structures for the call.
            unsafe { libc::poll(entries.as_mut_ptr(), 2, timeout) };
            let [gdb, guest] = entries.map(|entry| entry.revents != 0);
            if guest && let Some(reason) = debugged.reason().map_err(WaitForStopReasonError::Target)? {
                return Ok(Event::TargetStopped(reason));
            }
            if gdb || wire.has_read() {
                return wire.read().map(Event::IncomingData).map_err(WaitForStopReasonError::Connection);
            }
        }
    }

    fn on_interrupt(debugged: &mut Debugged) -> Result<Option<Reason>, InspectError> {
        debugged.interrupt().map(Some)
    }
}
