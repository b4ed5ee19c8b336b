//! TCP: listeners and streams.

use super::error::Error;
use super::stack::{Buffers, Flow};
use super::{neighbor, with, with_running};
use core::future::poll_fn;
use core::marker::PhantomData;
use core::net::{IpAddr, SocketAddr};
use core::task::{Context, Poll};
use core::time::Duration;
use smoltcp::socket::tcp::{RecvError, Socket, State};

/// How a listener's or a connection's buffers are made.
///
/// Pages of a buffer cost nothing until data fills them. For bulk transfer take a mebibyte: what is on its way at a
/// time is what the other side's, or this side's, buffer holds.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes that may be received and not read yet: the window offered to the other side. 1 to 2^30.
    pub receive_buffer: usize,
    /// Bytes that may be written and not acknowledged yet. At least 1.
    pub send_buffer: usize,
    /// Connections that a listener keeps before they are accepted, established or not; more are turned away.
    pub backlog: usize,
    /// Whether who connects speaks first, as in HTTP. A listener may then learn of a connection only with the first data on it, or a second later, and
    /// a guest that rests is woken once less for each.
    pub client_speaks_first: bool,
}

impl Config {
    /// 4 KiB to receive, 16 KiB to send, a backlog of 1024.
    pub const DEFAULT: Config =
        Config { receive_buffer: 4 << 10, send_buffer: 16 << 10, backlog: 1024, client_speaks_first: false };
    /// 1 MiB each way, for bulk transfer.
    pub const BULK: Config =
        Config { receive_buffer: 1 << 20, send_buffer: 1 << 20, backlog: 64, client_speaks_first: false };

    fn buffers(&self) -> Buffers {
        Buffers { receive: self.receive_buffer, send: self.send_buffer }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config::DEFAULT
    }
}

/// Marks what cannot leave core 0.
type CoreZero = PhantomData<*const ()>;

/// Takes connections at a port, on every address of this guest.
///
/// When it is dropped, the port is closed, and connections that were not accepted are reset.
pub struct TcpListener {
    port: u16,
    core_zero: CoreZero,
}

impl TcpListener {
    /// Listens at `port`.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::InUse`]; [`Error::Invalid`] for port 0 or a size of 0.
    pub fn bind(port: u16, config: Config) -> Result<Self, Error> {
        with(|stack| stack.listen(port, config.backlog, config.client_speaks_first, config.buffers()))??;
        Ok(TcpListener { port, core_zero: PhantomData })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for a connection.
    pub async fn accept(&self) -> TcpStream {
        poll_fn(|context| self.poll_accept(context)).await
    }

    /// A connection, if there is one.
    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<TcpStream> {
        match with_running(|stack| stack.accept(self.port, context.waker())).flatten() {
            Some(id) => Poll::Ready(TcpStream { id, core_zero: PhantomData }),
            None => Poll::Pending,
        }
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        with_running(|stack| stack.unlisten(self.port));
    }
}

/// A TCP connection.
///
/// When it is dropped, what was written is still sent and the connection is closed in order; what was received and not
/// read is lost. [`abort`](Self::abort) resets it instead.
pub struct TcpStream {
    id: usize,
    core_zero: CoreZero,
}

impl TcpStream {
    /// Connects to `port` at `address`.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Refused`], [`Error::TimedOut`] after 15 seconds; [`Error::NoDevice`].
    pub async fn connect(address: IpAddr, port: u16) -> Result<Self, Error> {
        Self::connect_with(address, port, Config::DEFAULT).await
    }

    /// Connects with buffers of `config`'s sizes (its backlog does not matter).
    ///
    /// # Errors
    /// As for [`connect`](Self::connect); [`Error::Invalid`] for port 0.
    pub async fn connect_with(address: IpAddr, port: u16, config: Config) -> Result<Self, Error> {
        let mac = neighbor(address).await?;
        let start = crate::now();
        let id = with(|stack| stack.connect(address, port, mac, config.buffers()))??;
        let stream = TcpStream { id, core_zero: PhantomData };
        poll_fn(|context| {
            stream.socket(|socket| match socket.state() {
                State::SynSent | State::SynReceived => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                State::Closed => {
                    let waited = Duration::from_nanos(crate::now().saturating_sub(start));
                    let timed_out = waited >= Duration::from_secs(14);
                    Poll::Ready(Err(if timed_out { Error::TimedOut } else { Error::Refused }))
                }
                _ => {
                    socket.set_timeout(None);
                    Poll::Ready(Ok(()))
                }
            })
        })
        .await?;
        Ok(stream)
    }

    /// Uses the socket, without a look at what it may then have to send.
    #[inline]
    fn socket<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        self.flow(|flow| f(flow.socket()))
    }

    /// Uses the connection, likewise.
    #[inline]
    fn flow<R>(&self, f: impl FnOnce(&mut Flow) -> R) -> R {
        match with_running(|stack| f(stack.flow(self.id))) {
            Some(result) => result,
            None => unreachable!("a stream without a stack"),
        }
    }

    /// Uses the socket, which may then have something to send.
    #[inline]
    fn change<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        let result = with_running(|stack| {
            let result = f(stack.flow(self.id).socket());
            stack.mark(self.id);
            result
        });
        match result {
            Some(result) => result,
            None => unreachable!("a stream without a stack"),
        }
    }

    /// Waits for data and hands the contiguous part of it to `f`, which returns how many bytes it has taken and a
    /// result of its own. An empty slice says that the other side has closed its direction. `f` may not use the network.
    ///
    /// # Errors
    /// [`Error::Reset`].
    pub async fn read_with<R>(&mut self, mut f: impl FnMut(&[u8]) -> (usize, R)) -> Result<R, Error> {
        poll_fn(|context| self.poll_read_with(context, &mut f)).await
    }

    /// As [`read_with`](Self::read_with).
    ///
    /// # Errors
    /// [`Error::Reset`], when ready.
    #[inline]
    pub fn poll_read_with<R>(
        &mut self,
        context: &mut Context<'_>,
        mut f: impl FnMut(&[u8]) -> (usize, R),
    ) -> Poll<Result<R, Error>> {
        let result = with_running(|stack| {
            let socket = stack.flow(self.id).socket();
            if socket.can_recv() {
                let result = socket.recv(|data| {
                    let (taken, result) = f(data);
                    (taken.min(data.len()), result)
                });
                // There may be a larger window to tell of.
                stack.mark(self.id);
                return Poll::Ready(result.map_err(|_| Error::Reset));
            }
            if socket.may_recv() {
                socket.register_recv_waker(context.waker());
                return Poll::Pending;
            }
            Poll::Ready(match socket.recv(|_| (0, ())) {
                Err(RecvError::Finished) => Ok(f(&[]).1),
                _ => Err(Error::Reset),
            })
        });
        result.unwrap_or(Poll::Ready(Err(Error::NoDevice)))
    }

    /// Reads into `buffer`, at least one byte; 0 says that the other side has closed its direction.
    ///
    /// # Errors
    /// [`Error::Reset`].
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        poll_fn(|context| self.poll_read(context, buffer)).await
    }

    /// As [`read`](Self::read).
    ///
    /// # Errors
    /// [`Error::Reset`], when ready.
    #[inline]
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, Error>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_read_with(context, |data| {
            let length = data.len().min(buffer.len());
            buffer[..length].copy_from_slice(&data[..length]);
            (length, length)
        })
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// [`Error::Reset`]; [`Error::Closed`] when the other side closes its direction before.
    pub async fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            match self.read(buffer).await? {
                0 => return Err(Error::Closed),
                n => buffer = &mut buffer[n..],
            }
        }
        Ok(())
    }

    /// Writes as much of `data` as there is room for, at least one byte.
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::Closed`].
    pub async fn write(&mut self, data: &[u8]) -> Result<usize, Error> {
        poll_fn(|context| self.poll_write(context, data)).await
    }

    /// As [`write`](Self::write).
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::Closed`], when ready.
    #[inline]
    pub fn poll_write(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let result = with_running(|stack| {
            let flow = stack.flow(self.id);
            let socket = flow.socket();
            if !socket.may_send() {
                let closed = matches!(socket.state(), State::FinWait1 | State::FinWait2 | State::Closing);
                return Poll::Ready(Err(if closed { Error::Closed } else { Error::Reset }));
            }
            if !socket.can_send() {
                flow.wait_for_acknowledgement(context.waker());
                return Poll::Pending;
            }
            let written = socket.send_slice(data).map_err(|_| Error::Reset);
            stack.mark(self.id);
            Poll::Ready(written)
        });
        result.unwrap_or(Poll::Ready(Err(Error::NoDevice)))
    }

    /// Writes all of `data`. It leaves at the end of the executor's round, together with what else is written.
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::Closed`].
    pub async fn write_all(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            let written = self.write(data).await?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Waits for room and hands the contiguous part of it to `f`, which returns how many bytes it has written and a
    /// result of its own. `f` may not use the network.
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::Closed`].
    pub async fn write_with<R>(&mut self, mut f: impl FnMut(&mut [u8]) -> (usize, R)) -> Result<R, Error> {
        poll_fn(|context| {
            let ready = self.flow(|flow| {
                let socket = flow.socket();
                let ready = !socket.may_send() || socket.can_send();
                if !ready {
                    flow.wait_for_acknowledgement(context.waker());
                }
                ready
            });
            if !ready {
                return Poll::Pending;
            }
            let result = self.change(|socket| {
                socket.send(|room| {
                    let length = room.len();
                    let (written, result) = f(room);
                    (written.min(length), result)
                })
            });
            Poll::Ready(result.map_err(|_| Error::Closed))
        })
        .await
    }

    /// Bytes that can be written without waiting.
    #[must_use]
    pub fn room(&self) -> usize {
        self.socket(|socket| if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 })
    }

    /// Waits until the other side has acknowledged all that was written.
    ///
    /// # Errors
    /// [`Error::Reset`].
    pub async fn acknowledged(&mut self) -> Result<(), Error> {
        poll_fn(|context| {
            self.flow(|flow| {
                let socket = flow.socket();
                if socket.send_queue() == 0 {
                    return Poll::Ready(Ok(()));
                }
                if matches!(socket.state(), State::Closed | State::TimeWait) {
                    return Poll::Ready(Err(Error::Reset));
                }
                flow.wait_for_acknowledgement(context.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Closes this side's direction once everything written is sent; reading goes on.
    pub fn shutdown(&mut self) {
        self.change(Socket::close);
    }

    /// Closes the connection in order and waits until the other side has done the same, or has gone, 30 seconds at most.
    pub async fn close(mut self) {
        self.shutdown();
        let drained = async {
            while matches!(self.read_with(|data| (data.len(), data.len())).await, Ok(1..)) {}
            let _ = self.acknowledged().await;
        };
        let _ = crate::task::timeout(Duration::from_secs(30), drained).await;
    }

    /// Resets the connection.
    pub fn abort(self) {
        with_running(|stack| stack.release(self.id, true));
        core::mem::forget(self);
    }

    /// Has the other side asked, when nothing was heard of it for `interval`, whether it is still there; `None` for never.
    pub fn set_keep_alive(&mut self, interval: Option<Duration>) {
        self.change(|socket| socket.set_keep_alive(interval.map(Into::into)));
    }

    /// Has the connection reset when nothing was heard of the other side for `time`, silence of an idle one included
    /// (unless it is kept alive); `None` for never.
    pub fn set_timeout(&mut self, time: Option<Duration>) {
        self.change(|socket| socket.set_timeout(time.map(Into::into)));
    }

    /// Whether small pieces wait for acknowledgements of earlier ones (Nagle's algorithm). Off at first.
    pub fn set_nagle(&mut self, enabled: bool) {
        self.change(|socket| socket.set_nagle_enabled(enabled));
    }

    /// How long an acknowledgement may wait for data to ride on; `None`, as it is at first, for the end of the executor's
    /// round: long enough for what a task answers at once.
    pub fn set_ack_delay(&mut self, delay: Option<Duration>) {
        self.change(|socket| socket.set_ack_delay(delay.map(Into::into)));
    }

    /// The other side's address; `None` once the connection is gone.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.socket(|socket| socket.remote_endpoint()).map(|end| SocketAddr::new(end.addr.into(), end.port))
    }

    /// This side's address; `None` once the connection is gone.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        self.socket(|socket| socket.local_endpoint()).map(|end| SocketAddr::new(end.addr.into(), end.port))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        with_running(|stack| stack.release(self.id, false));
    }
}

impl embedded_io_async::ErrorType for TcpStream {
    type Error = Error;
}

impl embedded_io_async::Read for TcpStream {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        TcpStream::read(self, buffer).await
    }
}

impl embedded_io_async::Write for TcpStream {
    async fn write(&mut self, data: &[u8]) -> Result<usize, Error> {
        TcpStream::write(self, data).await
    }

    /// What was written leaves at the end of the round by itself, so that there is nothing to wait for; for the other
    /// side's acknowledgement see [`acknowledged`](TcpStream::acknowledged).
    async fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl core::fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TcpStream").field("local", &self.local()).field("peer", &self.peer()).finish()
    }
}
