//! ICMP echo: asking. (Echo requests to this guest are answered by the stack itself.)

use super::error::Error;
use super::{neighbor, with, with_running};
use alloc::vec;
use core::future::poll_fn;
use core::net::IpAddr;
use core::task::Poll;
use core::time::Duration;
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress};

/// Pings at a time.
const MOST: usize = 64;
/// What is sent along.
const PAYLOAD: &[u8] = b"foraker echo request";

/// Sends an echo request to `address` and returns the time until its answer.
///
/// # Errors
/// [`Error::TimedOut`], [`Error::Unreachable`], [`Error::Exhausted`] with too many at a time, [`Error::NoDevice`].
pub async fn ping(address: IpAddr, patience: Duration) -> Result<Duration, Error> {
    neighbor(address).await?;
    let echo = Echo::open()?;
    let start = crate::now();
    echo.send(address)?;
    let answered = crate::task::timeout(patience, echo.answer(address)).await;
    answered.map_err(|_| Error::TimedOut)??;
    Ok(Duration::from_nanos(crate::now().saturating_sub(start)))
}

/// An ICMP socket among the stack's others.
struct Echo {
    handle: SocketHandle,
    ident: u16,
}

impl Echo {
    fn open() -> Result<Self, Error> {
        with(|stack| {
            if stack.others_used >= MOST {
                return Err(Error::Exhausted);
            }
            let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 4], vec![0; 512]);
            let mut socket = Socket::new(buffer(), buffer());
            let ident = stack.free_port(|_, _| true)?;
            socket.bind(Endpoint::Ident(ident)).map_err(|_| Error::Exhausted)?;
            stack.others_used += 1;
            Ok(Echo { handle: stack.others.add(socket), ident })
        })?
    }

    fn send(&self, address: IpAddr) -> Result<(), Error> {
        let source = crate::registers().net.ipv6;
        let checksums = ChecksumCapabilities::default();
        with(|stack| {
            stack.others_dirty = true;
            let socket = stack.others.get_mut::<Socket<'_>>(self.handle);
            match address {
                IpAddr::V4(_) => {
                    let repr = Icmpv4Repr::EchoRequest { ident: self.ident, seq_no: 1, data: PAYLOAD };
                    let room = socket
                        .send(repr.buffer_len(), IpAddress::from(address))
                        .map_err(|_| Error::Invalid)?;
                    repr.emit(&mut Icmpv4Packet::new_unchecked(room), &checksums);
                }
                IpAddr::V6(to) => {
                    let repr = Icmpv6Repr::EchoRequest { ident: self.ident, seq_no: 1, data: PAYLOAD };
                    let room = socket
                        .send(repr.buffer_len(), IpAddress::from(address))
                        .map_err(|_| Error::Invalid)?;
                    let packet = &mut Icmpv6Packet::new_unchecked(room);
                    repr.emit(&source.into(), &to, packet, &checksums);
                }
            }
            Ok(())
        })?
    }

    async fn answer(&self, address: IpAddr) -> Result<(), Error> {
        poll_fn(|context| {
            let answer = with(|stack| {
                let socket = stack.others.get_mut::<Socket<'_>>(self.handle);
                while let Ok((_, from)) = socket.recv() {
                    if IpAddr::from(from) == address {
                        return Poll::Ready(());
                    }
                }
                socket.register_recv_waker(context.waker());
                Poll::Pending
            });
            match answer {
                Ok(answer) => answer.map(Ok),
                Err(e) => Poll::Ready(Err(e)),
            }
        })
        .await
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        with_running(|stack| {
            stack.others_used -= 1;
            stack.others.remove(self.handle)
        });
    }
}
