//! The launcher: a process that starts cells, and nothing else.
//!
//! The supervisor hears clients and cells, and is confined: it cannot run a program. What a cell needs for its set-up it could not give away either, as filters and
//! given-up rights are inherited. So it takes its state directory, starts this process before anything else, and asks it for cells. What there is to ask for is little: a cell by its number,
//! whose command line was settled at the start; the end of one; what one weighs. Cells are this process' children, at most one for each number at a time.
//!
//! Requests are packets over a pair of sockets; the answer to a start has the cell's channel, its console and a descriptor of its process with it. The
//! launcher ends with the supervisor, whose end closes the socket, and sees to it that no cell and no control group stays behind.

mod client;
mod process;

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use foraker_policy::demand::Asked;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub(crate) use client::Started;
pub use client::{Ending, Launcher};
pub use process::run;

/// The cells that a launcher may start, settled when it is.
#[derive(Clone, Debug)]
pub struct Cells {
    /// How many.
    pub count: usize,
    /// The first one's subnet of 16 bits; the next ones follow.
    pub first_subnet: Ipv4Addr,
    /// What the command line of each begins with; its number, its subnet and the range of all subnets are appended.
    pub arguments: Vec<OsString>,
    /// The control socket, which is removed when the supervisor ends in order; none if it is somebody else's.
    pub socket: Option<PathBuf>,
}

impl Cells {
    /// The command line of a cell.
    fn command_line(&self, number: usize) -> Vec<OsString> {
        let [a, b, ..] = self.first_subnet.octets();
        let (first, last) = (usize::from(b), usize::from(b) + self.count.saturating_sub(1));
        let (subnet, all) =
            (format!("{a}.{}.0.0/16", first + number), format!("{a}.{b}.0.0-{a}.{last}.255.255"));
        let own =
            ["--number", &number.to_string(), "--subnet", &subnet, "--subnets", &all].map(OsString::from);
        self.arguments.iter().cloned().chain(own).collect()
    }
}

/// What the supervisor asks for: one packet each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Request {
    /// Start a cell.
    Start(usize),
    /// End a cell that does not end by itself.
    Kill(usize),
    /// A cell's guests ask for so much of the processors.
    Weigh(usize, Asked),
    /// The supervisor ends in order.
    End,
}

/// The answer to a start: the process, or the error's number.
type Answer = Result<u32, i32>;

/// Longest packet, bytes.
const PACKET: usize = 256;
/// Descriptors that come with a cell: its channel, its console, its process.
const DESCRIPTORS: usize = 3;

fn send<T: Serialize>(to: &UnixStream, message: &T, descriptors: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    to.send_with_fds(&[bytes.as_slice()], descriptors).map_err(host_error)?;
    Ok(())
}

/// Receives a packet, and its descriptors. None when the other side has gone.
fn receive<T: DeserializeOwned>(from: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (mut bytes, mut descriptors) = ([0u8; PACKET], [-1; DESCRIPTORS]);
    let mut part = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    let received = loop {
        // SAFETY: the part is a valid buffer of this function, which any bytes may be written to.
        match unsafe { from.recv_with_fds(&mut part, &mut descriptors) }.map_err(host_error) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // What was never read by the other side before its end.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            other => break other?,
        }
    };
    let (length, count) = received;
    // SAFETY: the kernel has just made these for this process, and nobody else knows them.
    let own = |fd: &RawFd| unsafe { OwnedFd::from_raw_fd(*fd) };
    let descriptors = descriptors.iter().take(count).map(own).collect();
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
    Ok(Some((message, descriptors)))
}

fn host_error(e: vmm_sys_util::errno::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}

/// A process, as something that can be waited for: readable when it has ended.
fn watch(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: a call with numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until some of these descriptors are readable or closed, at most so long, and returns which; none when the time is over. Those below 0 are left out.
fn wait_for(descriptors: &[RawFd], time: Option<Duration>) -> io::Result<Vec<bool>> {
    let deadline = time.map(|time| Instant::now() + time);
    let entry = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut entries: Vec<_> = descriptors.iter().map(entry).collect();
    loop {
        let left = deadline.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis()).map_or(i32::MAX, |ms| ms.saturating_add(1))
        });
        // SAFETY: the entries are valid for the call, which is told how many there are.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, left) };
        if ready >= 0 {
            return Ok(entries.iter().map(|entry| entry.revents != 0).collect());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

#[cfg(test)]
mod tests;
