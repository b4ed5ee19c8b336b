//! Streams that are handed to a cell beside a message on its channel: a descriptor goes with the message's first byte (`SCM_RIGHTS`, `man 7 unix`).

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::channel::{ToCell, receive};

/// Sends the bytes of a message and a stream beside them.
///
/// # Errors
/// The other side is gone.
pub(crate) fn send(mut to: &UnixStream, bytes: &[u8], beside: &UnixStream) -> io::Result<()> {
    let sent = loop {
        match to.send_with_fd(bytes, beside.as_raw_fd()) {
            Ok(sent) => break sent,
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(e.into()),
        }
    };
    to.write_all(bytes.get(sent..).unwrap_or_default())
}

/// A cell's end of its channel.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: UnixStream,
    /// What came beside the message that is being read.
    beside: Option<OwnedFd>,
}

impl Receiver {
    pub(crate) fn new(stream: UnixStream) -> Receiver {
        Receiver { stream, beside: None }
    }

    /// Receives a message with what came beside it. None when the other side has closed the stream between two of them.
    ///
    /// # Errors
    /// The stream broke, or what came is no message.
    pub(crate) fn receive(&mut self) -> io::Result<Option<ToCell>> {
        let mut message = receive(self)?;
        let beside = self.beside.take();
        if let Some(ToCell::Look { stream, .. }) = &mut message {
            *stream = beside.map(UnixStream::from);
        }
        Ok(message)
    }
}

/// Room for the header of a control message and one descriptor.
#[repr(C, align(8))]
struct Control([u8; 24]);

impl Read for Receiver {
    /// The kernel ends what it gives at a descriptor, so that no more than one comes at a time. One for which this process has no room is lost, and nothing
    /// else: `vmm_sys_util` would take that for an error, with what was read.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut part = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
        let mut control = Control([0; 24]);
        // SAFETY: all-zero is a valid header: nothing is pointed to.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut control.0).cast();
        header.msg_controllen = control.0.len();
        // SAFETY: the header's parts are valid for the call, and as long as it says.
        let read = unsafe { libc::recvmsg(self.stream.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel has written the header's control part, and its length.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        if first.is_null() {
            return Ok(read);
        }
        // SAFETY: it points into `control`, which has room for a whole header and is aligned for it.
        let what = unsafe { first.read() };
        // SAFETY: a computation.
        let of_one = unsafe { libc::CMSG_LEN(4) } as usize;
        if (what.cmsg_level, what.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS)
            && what.cmsg_len == of_one
        {
            // SAFETY: as above: its data follow the header, within `control`.
            let data = unsafe { libc::CMSG_DATA(first) };
            // SAFETY: a descriptor is there, as the length says.
            let descriptor = unsafe { data.cast::<libc::c_int>().read_unaligned() };
            // SAFETY: the kernel has made it for this process, and nobody else knows it.
            self.beside = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        Ok(read)
    }
}
