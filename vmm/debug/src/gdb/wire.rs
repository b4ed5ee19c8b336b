//! The stream to gdb, with what was read or is yet to be written kept here: gdbstub takes and gives single bytes.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use gdbstub::conn::{Connection, ConnectionExt};

/// Most bytes that are kept before they are written.
const FULL: usize = 8 << 10;

/// How often whoever waits for gdb looks whether there is still a guest, milliseconds.
const LOOK: libc::c_int = 200;

pub(crate) struct Wire {
    stream: UnixStream,
    /// Whether there is no guest any more to be spoken of.
    over: Box<dyn Fn() -> bool>,
    read: [u8; 4096],
    /// What of it is not taken yet.
    there: std::ops::Range<usize>,
    unwritten: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: UnixStream, over: impl Fn() -> bool + 'static) -> io::Result<Wire> {
        stream.set_nonblocking(false)?;
        Ok(Wire { stream, over: Box::new(over), read: [0; 4096], there: 0..0, unwritten: Vec::new() })
    }

    /// Whether a byte is there already; otherwise the descriptor says when one is.
    pub(crate) fn has_read(&self) -> bool {
        !self.there.is_empty()
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.there.next()?;
        self.read.get(byte).copied()
    }

    fn send(&mut self) -> io::Result<()> {
        let sent = Write::write_all(&mut self.stream, &self.unwritten);
        self.unwritten.clear();
        sent
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unwritten.extend_from_slice(bytes);
        if self.unwritten.len() >= FULL { self.send() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl ConnectionExt for Wire {
    fn read(&mut self) -> io::Result<u8> {
        while self.there.is_empty() {
            let mut entry = libc::pollfd { fd: self.descriptor(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid structure for the call.
            if unsafe { libc::poll(&raw mut entry, 1, LOOK) } <= 0 {
                if (self.over)() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            match Read::read(&mut self.stream, &mut self.read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => self.there = 0..bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.there.is_empty() {
            self.stream.set_nonblocking(true)?;
            let read = Read::read(&mut self.stream, &mut self.read);
            self.stream.set_nonblocking(false)?;
            match read {
                Ok(bytes) => self.there = 0..bytes,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.read.get(self.there.start).copied().filter(|_| !self.there.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_gdb_without_a_guest() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(here, || true).unwrap();
        Write::write_all(&mut there, b"a").unwrap();
        assert_eq!(wire.read().unwrap(), b'a');
        assert_eq!(wire.read().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(there);
    }

    #[test]
    fn bytes_come_in_order_and_the_end_is_an_error() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(here, || false).unwrap();
        assert_eq!(wire.peek().unwrap(), None);
        Write::write_all(&mut there, b"ab").unwrap();
        assert_eq!((wire.peek().unwrap(), wire.read().unwrap()), (Some(b'a'), b'a'));
        assert!(wire.has_read());
        assert_eq!((wire.read().unwrap(), wire.has_read()), (b'b', false));
        wire.write(b'x').unwrap();
        wire.write_all(b"yz").unwrap();
        wire.flush().unwrap();
        let mut got = [0; 3];
        there.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"xyz");
        drop(there);
        assert_eq!(wire.read().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
