//! The virtual ethernet: one TAP device and one switch for all guests of a cell, and two rings for each guest.
//!
//! ```no_run
//! use std::{net::Ipv4Addr, sync::Arc};
//! use foraker_net::*;
//! # use vm_memory::GuestMemoryMmap;
//! # fn monotonic_ns() -> u64 { 0 }
//! # fn raise(_guest: u64, _bits: u64) {}
//! # fn end(_guest: u64, _why: RingFault) {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (readable, writable): (GuestMemoryMmap, GuestMemoryMmap) = Default::default();
//! // Once for a cell. The device vanishes when `tap` is dropped.
//! let host = Ipv4Addr::new(10, 99, 0, 1);
//! let tap = Tap::create(None)?; // "fk0"; or Tap::open_existing(name)?
//! tap.set_mtu(1500)?;
//! tap.set_queue_length(tap::QUEUE_LENGTH)?;
//! tap.add_ipv4(host, 24)?;
//! tap.up()?;
//! let switch = Arc::new(Switch::new(Gateway { mac: tap.mac()?, ipv4: host, ipv6: None }));
//! let uplink = Uplink::new(tap, Arc::clone(&switch), None);
//!
//! // Once for a guest. Touches none of its memory. Regions from `MmapRegion::build_raw` must stay mapped until
//! // `switch.remove` has returned.
//! let port = switch.add(PortConfig {
//!     id: 7, network: 0, mac: Mac([2, 0, 0, 0, 0, 2]), ipv4: Ipv4Addr::new(10, 99, 0, 2), ipv6: None, mtu: 1500,
//!     limits: Limits::default(), memory: DeviceMemory::new(readable, writable)?, rings: RingState::default(),
//! })?;
//!
//! // Serving, from any thread: at a guest's exits, or in a thread that polls `uplink.link()` and the doorbells.
//! let mut notices = Notices::new(); // one for each thread, reused
//! let now = monotonic_ns();
//! let out = uplink.transmit(&port, 64, 1 << 20, now, &mut notices); // out.served: Drained, More or Throttled
//! let inn = uplink.receive(64, now, &mut notices)?; // inn.served: Drained, More, Busy or Waiting
//! for (port, bits) in notices.interrupts() {
//!     raise(port.id(), bits); // set `bits` in the guest's pending word; wake it if it is idle
//! }
//! for (port, fault) in notices.faults() {
//!     switch.remove(&port); // its rings are closed already; this frees its addresses
//!     end(port.id(), fault);
//! }
//!
//! // While a thread keeps calling `transmit`, the guest need not ring the doorbell.
//! port.set_looking(true);
//! if port.set_looking(false) {
//!     uplink.transmit(&port, 64, 1 << 20, monotonic_ns(), &mut notices); // frames came at the last moment
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Who is to blame
//!
//! | what a guest does | consequence |
//! |---|---|
//! | `avail.index` more than the ring's length ahead | [`FaultKind::IndexJump`] |
//! | an entry or `next` beyond the descriptor table | [`FaultKind::NoSuchDescriptor`] |
//! | a chain that loops or exceeds `MAX_CHAIN`; a receive buffer of several descriptors | [`FaultKind::LongChain`] |
//! | a descriptor flag that is not offered | [`FaultKind::DescriptorFlags`] |
//! | a writable transmit descriptor, a read-only receive descriptor | [`FaultKind::WrongDirection`] |
//! | a descriptor of length 0 | [`FaultKind::ZeroLength`] |
//! | a receive buffer below `MIN_RX_BUFFER` | [`FaultKind::SmallBuffer`] |
//! | a buffer that is not wholly within one window of its memory | [`FaultKind::OutsideMemory`] |
//! | a transmit buffer shorter than an offload header, or longer than header and `MAX_FRAME` | [`FaultKind::ShortBuffer`], [`FaultKind::LongBuffer`] |
//! | an offload header that contradicts itself or its frame's length | [`FaultKind::BadOffload`] |
//! | an offload header that does not match the packet, or asks for more than [`offload::MAX_SEGMENTS`] segments | dropped: [`DropReason::BadOffload`] |
//! | a short or malformed frame | dropped: [`DropReason::Malformed`] |
//! | a source address in ethernet, ARP, IP or neighbour discovery that is not its own; router advertisements, redirects | dropped: [`DropReason::ForgedSource`] |
//! | neither ARP nor IP | dropped: [`DropReason::UnsupportedProtocol`] |
//! | a frame or a segment above the MTU | dropped: [`DropReason::TooLarge`] |
//! | an address that nobody has, or that is of another network | dropped: [`DropReason::UnknownDestination`], [`DropReason::Isolated`] |
//! | multicast, broadcast, announcements | dropped: [`DropReason::NotForwarded`] |
//! | frames above its limits | dropped: [`DropReason::RateLimited`], or left in its ring ([`OverLimit::Wait`]) |
//! | no receive buffers | frames for it wait, a bounded number of them and, if it is the only port, a bounded time; then they are dropped: [`DropReason::RingFull`] |
//!
//! The first group is a [`RingFault`]: no correct driver does it, the state of the ring is unknown from then on, and
//! the guest ends with a report. The second is traffic, which may be bad for reasons that are not the driver's; it is dropped and
//! counted, and the guest goes on. Neither costs more than a bounded number of steps, and neither panics.
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod backlog;
pub mod counters;
pub mod drr;
pub mod elsewhere;
pub mod frame;
mod link;
pub mod memory;
mod netlink;
mod notices;
pub mod offload;
mod parts;
mod pcap;
mod port;
mod receive;
pub mod reply;
pub mod ring;
pub mod switch;
pub mod tap;
pub mod trace;
mod transmit;
mod uplink;

pub use counters::{Counters, DropReason, Drops};
pub use drr::DeficitRoundRobin;
pub use elsewhere::Elsewhere;
pub use frame::Mac;
pub use link::Link;
pub use memory::{DeviceMemory, MemoryError};
pub use notices::Notices;
pub use parts::{Parts, Places};
pub use pcap::Pcap;
pub use port::{Limits, OverLimit, Port, PortConfig, RingState};
pub use ring::{FaultKind, Queue, RingFault};
pub use switch::{AddError, Gateway, Route, Switch};
pub use tap::{Tap, TapError};
pub use uplink::{Served, Uplink, Work};
