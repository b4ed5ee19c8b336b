//! The switch of a cell: knows every guest's addresses and decides where each frame goes.
//!
//! It answers address resolution itself, for guests and for the gateway, so that a broadcast wakes nobody; it passes
//! a guest's frame on only if every source address in it is the guest's own; and it keeps networks apart, also
//! on the way through the host, whose kernel would otherwise route between them, and to other switches of the host
//! ([`crate::elsewhere`]). The cost of a decision does not depend on the number of ports.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use rustc_hash::FxBuildHasher;

use crate::counters::DropReason;
use crate::elsewhere::{Elsewhere, SHARED};
use crate::frame::{self, Arp, Discovery, Frame, Ipv6, Mac, Packet};
use crate::memory::MemoryError;
use crate::port::{Port, PortConfig, RingState};
use crate::reply::Reply;

/// Most ports of one switch.
pub const MAX_PORTS: usize = 65_536;

/// The host's side of the TAP device, which is every guest's gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Ethernet address of the TAP device.
    pub mac: Mac,
    /// The host's IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The host's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

/// Where a frame goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// To the host.
    Uplink,
    /// To a guest.
    Port(Arc<Port>),
    /// Nowhere: this goes back to whoever sent it.
    Reply(Reply),
    /// Nowhere.
    Drop(DropReason),
}

/// A port cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The ethernet address is taken, or is none that a guest can have.
    #[error("ethernet address {0} is taken or reserved")]
    Mac(Mac),
    /// The IPv4 address is taken, or is none that a guest can have.
    #[error("IPv4 address {0} is taken or reserved")]
    Ipv4(Ipv4Addr),
    /// The IPv6 address is taken, or is none that a guest can have.
    #[error("IPv6 address {0} is taken or reserved")]
    Ipv6(Ipv6Addr),
    /// There are [`MAX_PORTS`].
    #[error("the switch has {MAX_PORTS} ports, its limit")]
    Full,
    /// The guest's memory does not suit.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

type Map<K, V> = HashMap<K, V, FxBuildHasher>;

#[derive(Debug, Default)]
struct Tables {
    by_mac: Map<u64, Arc<Port>>,
    by_ipv4: Map<u32, Arc<Port>>,
    /// Without link-local addresses, which say themselves whose they are.
    by_ipv6: Map<u128, Arc<Port>>,
    /// Ports of each network.
    networks: Map<u32, usize>,
}

impl Tables {
    fn mac(&self, mac: Mac) -> Option<&Arc<Port>> {
        self.by_mac.get(&mac.key())
    }

    fn ipv4(&self, address: Ipv4Addr) -> Option<&Arc<Port>> {
        self.by_ipv4.get(&address.to_bits())
    }

    fn ipv6(&self, address: Ipv6Addr) -> Option<&Arc<Port>> {
        match Mac::of_link_local(address) {
            Some(mac) => self.mac(mac),
            None => self.by_ipv6.get(&address.to_bits()),
        }
    }
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    gateway: Gateway,
    elsewhere: Elsewhere,
    /// Held for one look-up (or one read from the link) at a time, and for writing only while a port comes or goes.
    /// The innermost lock: nothing else is locked while it is held.
    tables: RwLock<Tables>,
    ports: AtomicUsize,
    /// Whether there is a network besides the shared one.
    divided: AtomicBool,
}

impl Switch {
    /// A switch without ports, alone on its host.
    #[must_use]
    pub fn new(gateway: Gateway) -> Self {
        Switch::beside(gateway, Elsewhere::default())
    }

    /// A switch without ports, beside others whose guests have their addresses `elsewhere`.
    #[must_use]
    pub fn beside(gateway: Gateway, elsewhere: Elsewhere) -> Self {
        Switch {
            gateway,
            elsewhere,
            tables: RwLock::default(),
            ports: AtomicUsize::new(0),
            divided: AtomicBool::new(false),
        }
    }

    /// The host's side.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Number of ports.
    #[must_use]
    pub fn ports(&self) -> usize {
        self.ports.load(Ordering::Relaxed)
    }

    /// Whether there is a network besides the shared one, so that packets through the host need a closer look.
    #[inline]
    pub(crate) fn is_divided(&self) -> bool {
        self.divided.load(Ordering::Relaxed)
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// If this is the only port, and no frame from the host needs a closer look: a guard while which no other is added.
    pub(crate) fn only_port(&self, port: &Arc<Port>) -> Option<impl Sized> {
        let tables = self.read();
        (tables.by_mac.len() == 1
            && !self.is_divided()
            && tables.mac(port.mac()).is_some_and(|there| Arc::ptr_eq(there, port)))
        .then_some(tables)
    }

    /// Adds a port. None of the guest's memory is touched.
    ///
    /// # Errors
    /// An address is taken or reserved, the switch is full, or the memory does not suit.
    pub fn add(&self, config: PortConfig) -> Result<Arc<Port>, AddError> {
        let gateway = &self.gateway;
        if config.mac.is_multicast() || config.mac == Mac::default() || config.mac == gateway.mac {
            return Err(AddError::Mac(config.mac));
        }
        let v4 = config.ipv4;
        if v4 == gateway.ipv4
            || v4.is_unspecified()
            || v4.is_multicast()
            || v4.is_broadcast()
            || v4.is_loopback()
        {
            return Err(AddError::Ipv4(v4));
        }
        if let Some(v6) = config.ipv6
            && (Some(v6) == gateway.ipv6
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_loopback()
                || v6.is_unicast_link_local())
        {
            return Err(AddError::Ipv6(v6));
        }
        let port = Arc::new(Port::new(config)?);
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if tables.by_mac.len() >= MAX_PORTS {
            return Err(AddError::Full);
        }
        if tables.mac(port.mac()).is_some() {
            return Err(AddError::Mac(port.mac()));
        }
        if tables.ipv4(v4).is_some() {
            return Err(AddError::Ipv4(v4));
        }
        if let Some(v6) = port.ipv6().filter(|v6| tables.ipv6(*v6).is_some()) {
            return Err(AddError::Ipv6(v6));
        }
        tables.by_mac.insert(port.mac().key(), Arc::clone(&port));
        tables.by_ipv4.insert(v4.to_bits(), Arc::clone(&port));
        if let Some(v6) = port.ipv6() {
            tables.by_ipv6.insert(v6.to_bits(), Arc::clone(&port));
        }
        *tables.networks.entry(port.network()).or_default() += 1;
        self.count(&tables);
        Ok(port)
    }

    /// Removes a port and closes it: when this returns, nobody reaches the guest's memory any more. Returns where its
    /// rings stand. A port that was removed before is only closed.
    pub fn remove(&self, port: &Arc<Port>) -> RingState {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if tables.mac(port.mac()).is_some_and(|there| Arc::ptr_eq(there, port)) {
            tables.by_mac.remove(&port.mac().key());
            tables.by_ipv4.remove(&port.ipv4().to_bits());
            if let Some(v6) = port.ipv6() {
                tables.by_ipv6.remove(&v6.to_bits());
            }
            if let Some(count) = tables.networks.get_mut(&port.network()) {
                *count -= 1;
                if *count == 0 {
                    tables.networks.remove(&port.network());
                }
            }
            self.count(&tables);
        }
        drop(tables);
        port.close()
    }

    fn count(&self, tables: &Tables) {
        self.ports.store(tables.by_mac.len(), Ordering::Relaxed);
        let shared = usize::from(tables.networks.contains_key(&SHARED));
        self.divided.store(tables.networks.len() > shared, Ordering::Relaxed);
    }

    /// The port that has this IPv4 address.
    #[must_use]
    pub fn port_by_ipv4(&self, address: Ipv4Addr) -> Option<Arc<Port>> {
        self.read().ipv4(address).cloned()
    }

    /// Where a frame of `port`'s guest goes.
    #[must_use]
    #[inline]
    pub fn route_guest(&self, port: &Port, frame: &Frame) -> Route {
        if frame.source != port.mac() {
            return Route::Drop(DropReason::ForgedSource);
        }
        match &frame.packet {
            Packet::Arp(arp) => return self.guest_arp(port, arp),
            Packet::Ipv4(packet) => {
                if packet.source != port.ipv4() {
                    return Route::Drop(DropReason::ForgedSource);
                }
            }
            Packet::Ipv6(packet) => {
                if let Some(route) = self.guest_ipv6(port, frame.source, packet) {
                    return route;
                }
            }
            Packet::Other(_) => return Route::Drop(DropReason::UnsupportedProtocol),
        }
        if frame.destination == self.gateway.mac {
            return if self.is_divided() && self.is_foreign(port.network(), frame, true) {
                Route::Drop(DropReason::Isolated)
            } else {
                Route::Uplink
            };
        }
        if frame.destination.is_multicast() {
            return Route::Drop(DropReason::NotForwarded);
        }
        match self.read().mac(frame.destination) {
            Some(to) if to.network() != port.network() => Route::Drop(DropReason::Isolated),
            Some(to) if to.mac() == port.mac() => Route::Drop(DropReason::UnknownDestination),
            Some(to) => Route::Port(Arc::clone(to)),
            None => Route::Drop(DropReason::UnknownDestination),
        }
    }

    /// Whether the packet's destination (or else its source) is a guest of another network, or may be.
    fn is_foreign(&self, network: u32, frame: &Frame, destination: bool) -> bool {
        let address: IpAddr = match &frame.packet {
            Packet::Ipv4(packet) => if destination { packet.destination } else { packet.source }.into(),
            Packet::Ipv6(packet) => if destination { packet.destination } else { packet.source }.into(),
            _ => return false,
        };
        if network != SHARED && self.elsewhere.holds(address) {
            return true;
        }
        let tables = self.read();
        let other = match address {
            IpAddr::V4(address) => tables.ipv4(address),
            IpAddr::V6(address) => tables.ipv6(address),
        };
        other.is_some_and(|port| port.network() != network)
    }

    fn guest_arp(&self, port: &Port, arp: &Arp) -> Route {
        // A probe (RFC 5227) asks from 0.0.0.0.
        if arp.sender_mac != port.mac() || !(arp.sender == port.ipv4() || arp.sender.is_unspecified()) {
            return Route::Drop(DropReason::ForgedSource);
        }
        if !arp.request || arp.target == port.ipv4() {
            return Route::Drop(DropReason::NotForwarded);
        }
        if arp.target == self.gateway.ipv4 {
            return Route::Reply(Reply::arp(arp, self.gateway.mac));
        }
        match self.read().ipv4(arp.target) {
            Some(to) if to.network() == port.network() => Route::Reply(Reply::arp(arp, to.mac())),
            Some(_) => Route::Drop(DropReason::Isolated),
            None => Route::Drop(DropReason::UnknownDestination),
        }
    }

    /// Checks a guest's IPv6 packet. None if it is to be passed on by its ethernet destination.
    fn guest_ipv6(&self, port: &Port, source_mac: Mac, packet: &Ipv6) -> Option<Route> {
        let own = |address: Ipv6Addr| address == port.link_local() || Some(address) == port.ipv6();
        if !own(packet.source) {
            // Duplicate address detection and group membership are asked from "::"; nobody needs to hear it.
            return Some(Route::Drop(
                if packet.source.is_unspecified() && packet.destination.is_multicast() {
                    DropReason::NotForwarded
                } else {
                    DropReason::ForgedSource
                },
            ));
        }
        let route = match packet.discovery? {
            Discovery::Router => Route::Drop(DropReason::ForgedSource),
            Discovery::Advertisement { target } if !own(target) => Route::Drop(DropReason::ForgedSource),
            Discovery::Advertisement { .. } | Discovery::RouterSolicitation => {
                Route::Drop(DropReason::NotForwarded)
            }
            Discovery::Solicitation { target } if own(target) => Route::Drop(DropReason::NotForwarded),
            Discovery::Solicitation { target } => {
                let gateway = &self.gateway;
                if Some(target) == gateway.ipv6 || target == gateway.mac.link_local() {
                    Route::Reply(Reply::advertisement(target, gateway.mac, true, packet.source, source_mac))
                } else {
                    match self.read().ipv6(target) {
                        Some(to) if to.network() == port.network() => Route::Reply(Reply::advertisement(
                            target,
                            to.mac(),
                            false,
                            packet.source,
                            source_mac,
                        )),
                        Some(_) => Route::Drop(DropReason::Isolated),
                        None => Route::Drop(DropReason::UnknownDestination),
                    }
                }
            }
        };
        Some(route)
    }

    /// Where a frame from the host goes, of which `bytes` are the first and `length` is the whole length.
    #[must_use]
    pub fn route_uplink(&self, bytes: &[u8], length: usize) -> Route {
        let Ok((destination, _, ethertype)) = frame::ethernet(bytes) else {
            return Route::Drop(DropReason::Malformed);
        };
        let resolution = matches!(ethertype, frame::ETHERTYPE_ARP | frame::ETHERTYPE_IPV6);
        if resolution || self.is_divided() {
            let Ok(frame) = frame::parse(bytes, length) else {
                return Route::Drop(DropReason::Malformed);
            };
            match &frame.packet {
                Packet::Arp(arp) => return self.host_arp(arp),
                Packet::Ipv6(packet) => {
                    if let Some(route) = self.host_discovery(frame.source, packet) {
                        return route;
                    }
                }
                _ => {}
            }
            if self.is_divided() {
                // Not within the look-up: a lock that is held is not taken again, or a writer between the two would stop both.
                let network = self.read().mac(destination).map(|port| port.network());
                if network.is_some_and(|network| self.is_foreign(network, &frame, false)) {
                    return Route::Drop(DropReason::Isolated);
                }
            }
        }
        if destination.is_multicast() {
            return Route::Drop(DropReason::NotForwarded);
        }
        match self.read().mac(destination) {
            Some(port) => Route::Port(Arc::clone(port)),
            None => Route::Drop(DropReason::UnknownDestination),
        }
    }

    fn host_arp(&self, arp: &Arp) -> Route {
        if !arp.request || arp.sender.is_unspecified() || arp.sender == arp.target {
            return Route::Drop(DropReason::NotForwarded);
        }
        match self.read().ipv4(arp.target) {
            Some(port) => Route::Reply(Reply::arp(arp, port.mac())),
            None => Route::Drop(DropReason::UnknownDestination),
        }
    }

    fn host_discovery(&self, source_mac: Mac, packet: &Ipv6) -> Option<Route> {
        Some(match packet.discovery? {
            Discovery::Solicitation { target } if !packet.source.is_unspecified() => match self
                .read()
                .ipv6(target)
            {
                Some(port) => {
                    Route::Reply(Reply::advertisement(target, port.mac(), false, packet.source, source_mac))
                }
                None => Route::Drop(DropReason::UnknownDestination),
            },
            _ => Route::Drop(DropReason::NotForwarded),
        })
    }
}
