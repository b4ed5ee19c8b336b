//! The library OS as `picoserve` wants to see it.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use guest_libos::net::{Error, TcpStream};
use guest_libos::task;
use picoserve::io::{BaseWrite, ErrorType, Read, Write};
use picoserve::mem::{BorrowedBuffer, BorrowedCursor};
use picoserve::{Timeouts, Timer, time};

/// Bytes that are collected before they are written: a head and a small body.
const COLLECTED: usize = 2048;

/// The runtime, and its timer.
pub(crate) struct Libos;

impl Timer<Libos> for Libos {
    /// The clock is read when somebody waits, not for what is ready at once.
    async fn delay(&self, duration: time::Duration) {
        task::sleep(core::time::Duration::from_millis(duration.as_millis())).await;
    }
}

/// A connection in two halves.
pub(crate) struct Socket {
    stream: RefCell<TcpStream>,
    out: Vec<u8>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Socket { stream: RefCell::new(stream), out: alloc::vec![0; COLLECTED] }
    }
}

impl picoserve::io::Socket<Libos> for Socket {
    type Error = Error;
    type ReadHalf<'a> = Reader<'a>;
    type WriteHalf<'a> = Writer<'a>;

    fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        (Reader(&self.stream), Writer { stream: &self.stream, out: &mut self.out, used: 0 })
    }

    async fn abort<T: Timer<Libos>>(self, _: &Timeouts, _: &T) -> Result<(), picoserve::Error<Error>> {
        self.stream.into_inner().abort();
        Ok(())
    }

    async fn shutdown<T: Timer<Libos>>(self, _: &Timeouts, _: &T) -> Result<(), picoserve::Error<Error>> {
        self.stream.into_inner().close().await;
        Ok(())
    }
}

pub(crate) struct Reader<'a>(&'a RefCell<TcpStream>);

impl ErrorType for Reader<'_> {
    type Error = Error;
}

impl Read for Reader<'_> {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        poll_fn(|context| self.0.borrow_mut().poll_read(context, buffer)).await
    }
}

/// Small pieces are collected until they are to be flushed: `picoserve` writes each header field by itself.
pub(crate) struct Writer<'a> {
    stream: &'a RefCell<TcpStream>,
    out: &'a mut [u8],
    used: usize,
}

async fn write_all(stream: &RefCell<TcpStream>, mut data: &[u8]) -> Result<(), Error> {
    while !data.is_empty() {
        let written = poll_fn(|context| stream.borrow_mut().poll_write(context, data)).await?;
        data = &data[written..];
    }
    Ok(())
}

impl ErrorType for Writer<'_> {
    type Error = Error;
}

impl BaseWrite for Writer<'_> {
    async fn write(&mut self, data: &[u8]) -> Result<usize, Error> {
        if data.len() > self.out.len() - self.used {
            self.flush().await?;
            if data.len() > self.out.len() {
                return poll_fn(|context| self.stream.borrow_mut().poll_write(context, data)).await;
            }
        }
        self.out[self.used..][..data.len()].copy_from_slice(data);
        self.used += data.len();
        Ok(data.len())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let used = core::mem::take(&mut self.used);
        write_all(self.stream, &self.out[..used]).await
    }
}

impl Write for Writer<'_> {
    async fn write_with<F: FnOnce(BorrowedCursor<'_>) -> R, R>(&mut self, f: F) -> Result<R, Error> {
        if self.used == self.out.len() {
            self.flush().await?;
        }
        let mut room = BorrowedBuffer::new(&mut self.out[self.used..]);
        let result = f(room.unfilled());
        self.used += room.len();
        Ok(result)
    }
}
