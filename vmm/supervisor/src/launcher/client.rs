//! The supervisor's side of the launcher.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use foraker_policy::demand::Asked;

use super::{Answer, DESCRIPTORS, Request, receive, send, wait_for, watch};

/// How long the launcher may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way to the launcher.
#[derive(Debug)]
pub struct Launcher {
    socket: UnixStream,
    /// Held from a start's request to its answer.
    starting: Mutex<()>,
    process: Ending,
}

/// When a process ends.
#[derive(Debug)]
pub struct Ending {
    number: u32,
    descriptor: OwnedFd,
}

/// A cell that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Ending,
    pub(crate) channel: UnixStream,
    pub(crate) console: File,
}

impl Ending {
    /// The process' number.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.number
    }

    /// Waits for it at most so long. Returns whether it has ended.
    ///
    /// # Errors
    /// The host refuses to wait.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        Ok(wait_for(&[self.descriptor.as_raw_fd()], Some(time))?.contains(&true))
    }

    /// The same for somebody else.
    ///
    /// # Errors
    /// The host has no descriptor to give.
    pub fn try_clone(&self) -> io::Result<Ending> {
        Ok(Ending { number: self.number, descriptor: self.descriptor.try_clone()? })
    }
}

impl AsRawFd for Ending {
    /// Readable when it has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl Launcher {
    /// Starts it: a program with its command line, which calls [`super::run`] on its standard input. Call this first: it inherits what this process may do, and the mark of
    /// [`Directory`](crate::Directory).
    ///
    /// # Errors
    /// The host gives no process.
    pub fn start(program: &Path, arguments: &[OsString]) -> io::Result<Launcher> {
        let (ours, theirs) = pair()?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(theirs))
            // The supervisor's own, which others may read to its end.
            .stdout(Stdio::null())
            .spawn()?;
        Launcher::of(UnixStream::from(ours), child.id())
    }

    pub(super) fn of(socket: UnixStream, process: u32) -> io::Result<Launcher> {
        let process = Ending { number: process, descriptor: watch(process)? };
        Ok(Launcher { socket, starting: Mutex::default(), process })
    }

    #[cfg(test)]
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// The launcher's own process.
    #[must_use]
    pub fn process(&self) -> &Ending {
        &self.process
    }

    /// Has a cell started.
    pub(crate) fn start_cell(&self, number: usize) -> io::Result<Started> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the launcher has gone");
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        send(&self.socket, &Request::Start(number), &[]).map_err(|_| gone())?;
        let (answer, descriptors) = receive::<Answer>(&self.socket)?.ok_or_else(gone)?;
        let number = answer.map_err(io::Error::from_raw_os_error)?;
        let [channel, console, process]: [OwnedFd; DESCRIPTORS] =
            descriptors.try_into().map_err(|_| io::Error::other("the launcher has sent no cell"))?;
        Ok(Started {
            process: Ending { number, descriptor: process },
            channel: UnixStream::from(channel),
            console: File::from(console),
        })
    }

    /// Has a cell ended that does not end by itself.
    pub(crate) fn kill(&self, number: usize) -> io::Result<()> {
        send(&self.socket, &Request::Kill(number), &[])
    }

    /// Says what a cell's guests ask for.
    pub(crate) fn weigh(&self, number: usize, asked: Asked) {
        // Whoever waits for the launcher's end hears of it.
        if let Err(e) = send(&self.socket, &Request::Weigh(number, asked), &[]) {
            log::debug!("cell {number} has no weight: {e}");
        }
    }

    /// Ends it, when the cells are gone. Returns when it has ended.
    pub(crate) fn end(&self) {
        let asked = send(&self.socket, &Request::End, &[]);
        match asked.and_then(|()| self.process.wait(PATIENCE)) {
            Ok(true) => {}
            Ok(false) => log::warn!("the launcher, process {}, does not end", self.process.number),
            Err(e) => log::debug!("the launcher has gone: {e}"),
        }
    }
}

/// Two ends of a stream of packets.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: two new descriptors that nobody else knows.
    let [ours, theirs] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    Ok((ours, theirs))
}
