//! The network: TCP, UDP, DNS and ICMP echo over the virtual ethernet.
//!
//! Addresses stand in the virtual registers; there is nothing to configure and no address to obtain. The device is
//! set up at the first use. All of it belongs to core 0.

mod checksum;
mod device;
mod dns;
mod error;
mod frame;
mod nal;
mod neighbors;
mod ping;
mod ring;
mod stack;
mod stamps;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub use device::Counters;
pub use dns::{Family, resolve, resolve_all};
pub use error::Error;
pub use nal::Network;
pub use ping::ping;
pub use stamps::{Stamps, enable_stamps, stamps};
pub use tcp::{Config, TcpListener, TcpStream};
pub use udp::UdpSocket;

use crate::core_local::core_local;
use alloc::boxed::Box;
use core::cell::RefCell;
use core::future::poll_fn;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::task::Poll;
use core::time::Duration;
use frame::Mac;
use neighbors::Addresses;
use ring::{Receiver, Transmitter};
use stack::{Parts, Stack};

core_local! {
    static STACK: RefCell<Option<Box<Stack>>> = RefCell::new(None);
}

/// Bytes of a receive buffer: a frame of an MTU of 1500 with its header, or a part of a larger one.
const RX_BUFFER: usize = 2048;
/// As many receive buffers as the largest frame fills, and some: least that there may be.
const RX_LEAST: u16 = 40;
/// Receive buffers at first: a request and some acknowledgements, in two pages. They are used in turn, so that all of them are touched by the end of a
/// guest's first connection, and none of what comes after finds a page that is not there.
const RX_FIRST: u16 = 4;

/// Lends the stack, set up at the first time.
fn with<R>(f: impl FnOnce(&mut Stack) -> R) -> Result<R, Error> {
    STACK.with(|stack| {
        let mut stack = stack.borrow_mut();
        if stack.is_none() {
            *stack = Some(Box::new(set_up()?));
        }
        stack.as_mut().map(|stack| f(stack)).ok_or(Error::NoDevice)
    })
}

/// Lends the stack if it was set up.
#[inline]
fn with_running<R>(f: impl FnOnce(&mut Stack) -> R) -> Option<R> {
    STACK.with(|stack| stack.borrow_mut().as_mut().map(|stack| f(stack)))
}

#[cold]
fn set_up() -> Result<Stack, Error> {
    let registers = crate::registers();
    let net = &registers.net;
    if net.present == 0 {
        return Err(Error::NoDevice);
    }
    let heap = registers.memory_end.saturating_sub(registers.heap_start) as usize;
    // An eighth of the heap, at most, for received frames, and another for large ones to be sent.
    let most = u16::try_from(heap / 8 / RX_BUFFER).unwrap_or(u16::MAX).clamp(RX_LEAST, 256);
    let large = (heap / 8 / (64 << 10)).min(64);
    let (rx, tx) = rings();
    // SAFETY: the architecture's rings, and this is the only driver: the stack is set up once.
    let receiver = unsafe { Receiver::new(rx, RX_BUFFER, RX_FIRST, most) }.ok_or(Error::Exhausted)?;
    // SAFETY: as above.
    let transmitter = unsafe { Transmitter::new(tx, large) };
    let parts = Parts {
        receiver,
        transmitter,
        addresses: addresses(),
        mtu: net.mtu,
        features: net.features,
        with_large: large > 1,
        seed: seed(),
    };
    Ok(Stack::new(parts, crate::now()))
}

/// This guest's addresses, as the virtual registers have them now.
fn addresses() -> Addresses {
    let net = &crate::registers().net;
    Addresses {
        mac: net.mac,
        v4: Ipv4Addr::from(net.ipv4),
        prefix4: net.prefix4,
        gateway4: Ipv4Addr::from(net.gateway4),
        v6: Ipv6Addr::from(net.ipv6),
        prefix6: net.prefix6,
        gateway6: Ipv6Addr::from(net.gateway6),
    }
}

/// What the network's choices are made from: different in each incarnation.
fn seed() -> u64 {
    use rand_core::Rng;
    crate::random::Generator::new(u64::from_le_bytes(*b"network\0")).next_u64()
}

/// This is another guest now, that starts from where the former was ready.
pub(crate) fn take_identity() {
    let mtu = crate::registers().net.mtu;
    with_running(|stack| stack.take_identity(addresses(), mtu, seed(), crate::now()));
}

#[cfg(not(test))]
fn rings() -> (*mut u8, *mut u8) {
    (foraker_abi::layout::NET_RX as *mut u8, foraker_abi::layout::NET_TX as *mut u8)
}

#[cfg(test)]
use crate::testing::rings;

// ---- for the executor

/// An interrupt has said that there is something to receive: a frame, or one that needs more buffers.
#[inline]
pub(crate) fn interrupted() {
    with_running(|stack| stack.look_for_starved(RX_LEAST));
}

/// Processes frames that were received; true if more wait.
#[inline]
pub(crate) fn receive(now: u64) -> bool {
    with_running(|stack| stack.receive(now)).unwrap_or(false)
}

/// Sends what tasks have written.
#[inline]
pub(crate) fn transmit(now: u64) {
    with_running(|stack| stack.transmit(now));
}

/// Rings the doorbell if it must be rung for what was sent.
#[inline]
pub(crate) fn kick() {
    with_running(Stack::kick);
}

#[inline]
pub(crate) fn has_frames() -> bool {
    with_running(|stack| stack.has_frames()).unwrap_or(false)
}

/// The network has nothing to do before this.
#[inline]
pub(crate) fn next_timer() -> Option<u64> {
    with_running(|stack| stack.next_timer()).flatten()
}

/// The acknowledgement for which the guest need not be woken, and until when the network may rest once that has come.
#[inline]
pub(crate) fn awaited() -> Option<(u64, u64)> {
    with_running(Stack::awaited).flatten()
}

/// Sends everything that can be sent at once; used before the guest ends.
pub(crate) fn flush() {
    for _ in 0..16 {
        transmit(crate::now());
        if with_running(|stack| stack.is_flushed()).unwrap_or(true) {
            return;
        }
        crate::hypercall::doorbell(foraker_abi::hypercall::DEVICE_NET);
    }
}

// ---- for everyone

/// This guest's IPv4 address, if it has one.
#[must_use]
pub fn ipv4() -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(crate::registers().net.ipv4)).filter(|address| !address.is_unspecified())
}

/// This guest's IPv6 address, if it has one.
#[must_use]
pub fn ipv6() -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(crate::registers().net.ipv6)).filter(|address| !address.is_unspecified())
}

/// Counters of the network; all 0 before its first use.
#[must_use]
pub fn counters() -> Counters {
    with_running(|stack| stack.counters()).unwrap_or_default()
}

/// Waits until the ethernet address for packets to `address` is known.
async fn neighbor(address: IpAddr) -> Result<Mac, Error> {
    for _ in 0..neighbors::ATTEMPTS {
        if let Some(mac) = with(|stack| stack.device.neighbors.lookup(address))? {
            return Ok(mac);
        }
        let hop =
            with(|stack| stack.device.neighbors.addresses().next_hop(address))?.ok_or(Error::Unreachable)?;
        with(|stack| stack.ask(hop))?;
        let answer = poll_fn(|context| {
            let found = with(|stack| {
                let found = stack.device.neighbors.lookup(address);
                if found.is_none() {
                    stack.device.neighbors.wait(context.waker());
                }
                found
            });
            match found {
                Ok(None) => Poll::Pending,
                Ok(Some(mac)) => Poll::Ready(Ok(mac)),
                Err(e) => Poll::Ready(Err(e)),
            }
        });
        if let Ok(result) = crate::task::timeout(Duration::from_nanos(neighbors::ASK_AGAIN), answer).await {
            return result;
        }
    }
    Err(Error::Unreachable)
}
