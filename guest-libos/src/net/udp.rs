//! UDP.

use super::error::Error;
use super::{neighbor, with, with_running};
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::marker::PhantomData;
use core::net::SocketAddr;
use core::task::Poll;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp::{BindError, PacketBuffer, PacketMetadata, RecvError, SendError, Socket};
use smoltcp::wire::{IpAddress, IpEndpoint};

/// Datagrams that a socket keeps, each way.
const DATAGRAMS: usize = 64;
/// Bytes that they may have together.
const BYTES: usize = 64 << 10;

/// A UDP socket: datagrams to and from any address. What finds its buffer full is dropped, as on any network.
pub struct UdpSocket {
    port: u16,
    handle: SocketHandle,
    core_zero: PhantomData<*const ()>,
}

impl UdpSocket {
    /// Opens a socket at `port`; 0 for a free one.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::InUse`], [`Error::Exhausted`] when no port is free.
    pub fn bind(port: u16) -> Result<Self, Error> {
        with(|stack| {
            let port = match port {
                0 => stack.free_port(|stack, port| !stack.udp.contains_key(&port))?,
                port => port,
            };
            if stack.udp.contains_key(&port) {
                return Err(Error::InUse);
            }
            let buffer =
                || PacketBuffer::new(vec![PacketMetadata::EMPTY; DATAGRAMS], crate::heap::buffer(BYTES));
            let mut socket = Socket::new(buffer(), buffer());
            socket.bind(port).map_err(|e| match e {
                BindError::InvalidState => Error::InUse,
                BindError::Unaddressable => Error::Invalid,
            })?;
            let mut sockets = SocketSet::new(Vec::with_capacity(1));
            let handle = sockets.add(socket);
            stack.udp.insert(port, sockets);
            Ok(UdpSocket { port, handle, core_zero: PhantomData })
        })?
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    fn socket<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> Result<R, Error> {
        let port = self.port;
        let handle = self.handle;
        with(|stack| stack.udp.get_mut(&port).map(|sockets| f(sockets.get_mut(handle))))?.ok_or(Error::Closed)
    }

    /// Waits for a datagram; returns its length and where it came from. What does not fit into `buffer` is cut off.
    ///
    /// # Errors
    /// [`Error::NoDevice`] never happens once the socket is open.
    pub async fn receive_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), Error> {
        poll_fn(|context| {
            let received = self.socket(|socket| match socket.recv() {
                Ok((data, from)) => {
                    let length = data.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&data[..length]);
                    let from = SocketAddr::new(from.endpoint.addr.into(), from.endpoint.port);
                    Poll::Ready(Ok((length, from)))
                }
                Err(RecvError::Truncated) => Poll::Ready(Err(Error::Invalid)),
                Err(RecvError::Exhausted) => {
                    socket.register_recv_waker(context.waker());
                    Poll::Pending
                }
            });
            received.unwrap_or_else(|e| Poll::Ready(Err(e)))
        })
        .await
    }

    /// Sends a datagram; waits while the socket's buffer is full.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Invalid`] for port 0, an unspecified address or a datagram longer than the MTU allows.
    pub async fn send_to(&self, data: &[u8], to: SocketAddr) -> Result<(), Error> {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        if data.len() + headers > usize::from(crate::registers().net.mtu) {
            return Err(Error::Invalid);
        }
        neighbor(to.ip()).await?;
        let endpoint = IpEndpoint::new(IpAddress::from(to.ip()), to.port());
        poll_fn(|context| {
            let sent = self.socket(|socket| match socket.send_slice(data, endpoint) {
                Ok(()) => Poll::Ready(Ok(())),
                Err(SendError::Unaddressable) => Poll::Ready(Err(Error::Invalid)),
                Err(SendError::BufferFull) => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
            });
            let _ = with(|stack| {
                if !stack.udp_dirty.contains(&self.port) {
                    stack.udp_dirty.push(self.port);
                }
            });
            sent.unwrap_or_else(|e| Poll::Ready(Err(e)))
        })
        .await
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        // What was sent in this round still has to leave.
        with_running(|stack| {
            stack.transmit(crate::now());
            stack.udp.remove(&self.port)
        });
    }
}
