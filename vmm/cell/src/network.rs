//! The cell's network: its TAP device and switch, and who serves the rings.
//!
//! Rings are served in one of two ways, and [`foraker_policy::ring_service`] chooses: by *workers*, when a guest exits and, while all guests rest, when
//! the TAP device becomes readable; or by the *uplink's thread*, while guests look at their rings for a while before they
//! idle. A guest never needs to know which: `used.flags` of its transmit ring says whether a doorbell is needed, and `look_ns` whether looking is
//! welcome. While the uplink's thread is awake no doorbell is needed; before it sleeps it asks for one and looks once more.

mod neighbours;
mod uplink;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use foraker_abi::net::{FEATURE_CSUM, FEATURE_TSO, MAX_FRAME};
use foraker_abi::registers::Net;
use foraker_memory::GuestMemory;
use foraker_net::{
    AddError, DeviceMemory, Gateway, Limits, Mac, MemoryError, Notices, OverLimit, Pcap, Port, PortConfig,
    RingState, Served, Switch, TapError, Uplink,
};
use foraker_policy::ring_service::{RingService, Server, Tuning};
use vmm_sys_util::eventfd::EventFd;

use crate::addresses::{Addresses, Unavailable};
use crate::cell::Shared;
use crate::guest::Guest;
use crate::queue::{WorkerShared, nanoseconds};
use crate::spec::{NetworkConfig, NetworkSpec};
use crate::subnet::{IPV6_PREFIX, MTU, Subnet, create, existing, name_server};
use crate::throttled::Throttled;
use neighbours::Neighbours;

/// Who serves the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Service {
    /// Whoever suits the load.
    #[default]
    Auto,
    /// Workers only.
    Worker,
    /// The uplink's thread only.
    Uplink,
}

/// The network cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The TAP device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The capture file.
    #[error("cannot write the capture {0}: {1}")]
    Pcap(String, io::Error),
    /// The wanted subnet is the host's already.
    #[error(
        "the subnet {0}/{1} holds an address of this host: name another with --subnet, or with --first-subnet for a supervisor"
    )]
    SubnetInUse(Ipv4Addr, u8),
    /// No subnet is free.
    #[error("every subnet of 10.99.0.0/16 is in use: name another with --subnet")]
    NoSubnet,
    /// The address cannot be given to a guest.
    #[error("{0}")]
    Address(#[from] AddError),
    /// The address is outside the subnet.
    #[error("address {0} is not one of a guest in the subnet {1}/{2}: choose another")]
    Outside(Ipv4Addr, Ipv4Addr, u8),
    /// The subnet has no address left.
    #[error("the subnet {0}/{1} has no address left: name a larger one with --subnet")]
    Full(Ipv4Addr, u8),
    /// A guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host refused something else.
    #[error("cannot make an event: {0}")]
    Os(io::Error),
}

/// How long a guest may look at its rings before it idles, while the uplink serves.
const LOOK: Duration = Duration::from_micros(200);
/// How long a guest may run without an exit before the uplink takes over. A server that takes some hundred new connections at once needs
/// a millisecond or two.
const SERVICE_LIMIT: Duration = Duration::from_millis(4);
/// How long the TAP device waits, while workers sleep, for the exit of a guest whose worker watches it. A server's answer takes less.
const WATCH_DUE: Duration = Duration::from_micros(300);
/// Nobody watches the TAP device.
const NOBODY: usize = usize::MAX;
/// How long the TAP device waits, while workers serve, for an exit that looks at it anyway.
const RECEIVE_DUE: Duration = Duration::from_micros(30);
/// How long a TAP device that failed is left alone, nanoseconds.
const DEVICE_DUE_NS: u64 = 10_000_000;
/// Most frames that one call moves.
const BUDGET: usize = 256;
/// Frames of a guest that are sent before somebody looks whether others wait, and how often: a full ring, four times.
const EXIT_FRAMES: usize = 16;
const EXIT_CALLS: usize = 64;
/// How often it is done for a guest that is about to rest, whoever waits: what is left then takes another thread's time.
const LAST_CALLS: usize = 4;
/// Bytes of a guest that one exit sends: about a millisecond of its worker's time.
const EXIT_BYTES: usize = 4 << 20;
/// Bytes that a guest may send in a turn while others wait: a few of the largest frames, so that taking turns costs little.
const QUANTUM: usize = 256 << 10;
/// Most calls for one guest in a row.
const CALLS: usize = 4;

thread_local! {
    static NOTICES: RefCell<Notices> = RefCell::new(Notices::new());
}

/// The network of a cell.
#[derive(Debug)]
pub(crate) struct Network {
    uplink: Uplink,
    /// The device was made here and goes with this process.
    own_device: bool,
    subnet: Subnet,
    service: Service,
    controller: Mutex<RingService>,
    /// The controller's decision, to be read without its lock.
    server: AtomicU8,
    /// Guests by their port's id.
    guests: RwLock<HashMap<u64, Weak<Guest>>>,
    addresses: Mutex<Addresses>,
    /// Guests with immediate delivery: frames come one by one.
    immediate: AtomicBool,
    doorbell: EventFd,
    wake: EventFd,
    /// The uplink's thread sleeps, or is about to.
    asleep: AtomicBool,
    /// Until when the TAP device, which failed, is not looked at; 0 for a sound one.
    failed_until: AtomicU64,
    /// When somebody looked at the TAP device last.
    received_at: AtomicU64,
    /// The least time from an entry to the hypercall that ended it, nanoseconds: what an exit costs, and next to nothing else.
    least_entry: AtomicU64,
    /// How long all workers had waited for processors when the controller asked last, nanoseconds.
    workers_waited: AtomicU64,
    /// The worker that watches the TAP device when it sleeps. One is enough, and stays it while it runs guests for a moment: each frame would wake the
    /// others in vain.
    watcher: AtomicUsize,
    /// Guests above their limits.
    throttled: Throttled,
    /// Guests whose turn to send comes, when the uplink's thread looked last.
    line: AtomicUsize,
    /// What the host is to be told.
    neighbours: Neighbours,
    epoch: Instant,
}

fn server_code(server: Server) -> u8 {
    match server {
        Server::Worker => 0,
        Server::Uplink => 1,
    }
}

impl Network {
    pub(crate) fn new(config: &NetworkConfig) -> Result<Network, NetworkError> {
        let (tap, subnet) = match &config.tap {
            Some(name) => existing(name, config.subnet)?,
            None => create(config.subnet)?,
        };
        let (mac, gateway) = (tap.mac()?, subnet.gateway());
        let pcap = config
            .pcap
            .as_ref()
            .map(|path| {
                Pcap::create(path, foraker_abi::net::MAX_FRAME)
                    .map_err(|e| NetworkError::Pcap(path.display().to_string(), e))
            })
            .transpose()?;
        let host = Gateway { mac, ipv4: gateway, ipv6: Some(subnet.ipv6_of(gateway)) };
        let switch = Arc::new(Switch::beside(host, subnet.elsewhere(config.others)));
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(NetworkError::Os);
        let mut controller = RingService::new(Tuning::default());
        let epoch = Instant::now();
        if config.service == Service::Uplink {
            controller.guest_computes(0);
        }
        Ok(Network {
            server: AtomicU8::new(server_code(controller.server())),
            uplink: Uplink::new(tap, switch, pcap),
            own_device: config.tap.is_none(),
            subnet,
            service: config.service,
            controller: Mutex::new(controller),
            guests: RwLock::default(),
            addresses: Mutex::new(Addresses::new(subnet)),
            immediate: AtomicBool::new(false),
            doorbell: event()?,
            wake: event()?,
            asleep: AtomicBool::new(false),
            failed_until: AtomicU64::new(0),
            received_at: AtomicU64::new(0),
            least_entry: AtomicU64::new(u64::MAX),
            workers_waited: AtomicU64::new(0),
            watcher: AtomicUsize::new(NOBODY),
            throttled: Throttled::new(),
            line: AtomicUsize::new(0),
            neighbours: Neighbours::default(),
            epoch,
        })
    }

    /// Nanoseconds of the network's own clock.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    pub(crate) fn description(&self) -> (String, Ipv4Addr, u8) {
        (self.uplink.link().name().to_owned(), self.subnet.gateway(), self.subnet.prefix())
    }

    /// Guests that wait for their turn to send, and frames that wait for guests' buffers.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.line.load(Ordering::Relaxed), self.uplink.waiting())
    }

    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = self.uplink.counters();
        c.rx.drops.iter().chain(c.tx.drops.iter()).map(|(reason, n)| (reason.name(), n)).collect()
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a guest a port with an address of the subnet.
    pub(crate) fn add(
        &self,
        id: u64,
        wanted: &NetworkSpec,
        memory: &GuestMemory,
        rings: RingState,
    ) -> Result<Arc<Port>, NetworkError> {
        let memory = DeviceMemory::new(memory.readable().clone(), memory.writable().clone())?;
        let (network, prefix) = (self.subnet.network(), self.subnet.prefix());
        let mut addresses = self.addresses();
        let address = match wanted.ipv4 {
            Some(address) => addresses.take_this(address).map(|()| address).map_err(|why| match why {
                Unavailable::Outside => NetworkError::Outside(address, network, prefix),
                Unavailable::Taken => AddError::Ipv4(address).into(),
            })?,
            None => addresses.take().ok_or(NetworkError::Full(network, prefix))?,
        };
        let [a, b, c, d] = address.octets();
        let added = self.uplink.switch().add(PortConfig {
            id,
            network: wanted.network,
            // Locally administered, and as unique as the address.
            mac: Mac([0x06, 0x46, a, b, c, d]),
            ipv4: address,
            ipv6: Some(self.subnet.ipv6_of(address)),
            mtu: MTU,
            limits: Limits {
                rx_bandwidth: wanted.rx_bytes,
                tx_bandwidth: wanted.tx_bytes,
                tx_packets: wanted.tx_packets,
                over_limit: OverLimit::Wait,
            },
            memory,
            rings,
        });
        if added.is_err() {
            addresses.give_back(address);
        }
        drop(addresses);
        let port = added?;
        self.tell_host(&port, Some(port.mac()));
        Ok(port)
    }

    /// What a guest's virtual registers say about its port.
    pub(crate) fn registers_of(&self, port: &Port, wanted: &NetworkSpec) -> Net {
        Net {
            present: 1,
            features: FEATURE_CSUM | FEATURE_TSO,
            mac: port.mac().0,
            mtu: port.mtu(),
            ipv4: port.ipv4().octets(),
            gateway4: self.subnet.gateway().octets(),
            dns4: wanted.dns.or_else(name_server).unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
            prefix4: self.subnet.prefix(),
            prefix6: IPV6_PREFIX,
            reserved0: [0; 2],
            ipv6: port.ipv6().unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
            gateway6: self.subnet.ipv6_of(self.subnet.gateway()).octets(),
        }
    }

    /// Says which guest a port belongs to. Frames for it are delivered from now on.
    pub(crate) fn attach(&self, port: &Arc<Port>, guest: &Arc<Guest>) {
        if guest.immediate {
            self.immediate.store(true, Ordering::Relaxed);
            self.decide(|c, now| c.guest_computes(now));
        }
        self.guests.write().unwrap_or_else(PoisonError::into_inner).insert(port.id(), Arc::downgrade(guest));
    }

    /// Takes a port away. When this returns, nobody reaches the guest's memory through it.
    pub(crate) fn remove(&self, port: &Arc<Port>) {
        self.guests.write().unwrap_or_else(PoisonError::into_inner).remove(&port.id());
        let mut addresses = self.addresses();
        let switch = self.uplink.switch();
        // Removed before, its address may be another's by now.
        let there = switch.port_by_ipv4(port.ipv4()).is_some_and(|there| Arc::ptr_eq(&there, port));
        switch.remove(port);
        if there {
            // Before the address is another's, of whom the host is told.
            self.tell_host(port, None);
            addresses.give_back(port.ipv4());
        }
        drop(addresses);
        self.throttled.remove(port);
    }

    /// Whether a worker that is about to sleep is to watch the TAP device.
    fn watches(&self, index: usize) -> bool {
        match self.watcher.compare_exchange(NOBODY, index, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(watcher) => watcher == index,
        }
    }

    fn server(&self) -> Server {
        if self.server.load(Ordering::SeqCst) == 0 { Server::Worker } else { Server::Uplink }
    }

    /// Lets the controller decide; wakes the uplink's thread when it is to serve.
    fn decide(&self, decide: impl FnOnce(&mut RingService, u64) -> Server) {
        let fixed = self.service != Service::Auto || self.immediate.load(Ordering::Relaxed);
        if fixed && !(self.server() == Server::Worker && self.immediate.load(Ordering::Relaxed)) {
            return;
        }
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        let server = decide(&mut controller, self.now());
        let before = self.server.swap(server_code(server), Ordering::SeqCst);
        drop(controller);
        if server == Server::Uplink && before != server_code(server) {
            self.wake_uplink();
        }
    }

    /// The same; at the end of a window the controller hears first how the workers fared in it, and what an exit costs.
    fn decide_for(&self, cell: &Shared, decide: impl FnOnce(&mut RingService, u64) -> Server) {
        self.decide(|controller, now| {
            if controller.is_due(now) {
                let waited: u64 = cell.workers.iter().map(WorkerShared::waited_for_processor).sum();
                controller.waited(waited.saturating_sub(self.workers_waited.swap(waited, Ordering::Relaxed)));
                let least = self.least_entry.load(Ordering::Relaxed);
                if least < u64::MAX {
                    controller.exit_costs(least);
                }
            }
            decide(controller, now)
        });
    }

    pub(crate) fn wake_uplink(&self) {
        // A full event counter is readable, which is all that is wanted.
        let _ = self.wake.write(1);
    }

    fn budget(&self) -> usize {
        if self.immediate.load(Ordering::Relaxed) { 1 } else { BUDGET }
    }

    /// Delivers what waits in the TAP device. Returns the frames moved.
    fn receive(&self) -> usize {
        self.received_at.store(self.now(), Ordering::Relaxed);
        NOTICES.with_borrow_mut(|notices| {
            let mut frames = 0;
            for _ in 0..CALLS {
                match self.uplink.receive(self.budget(), self.now(), notices) {
                    Ok(work) => {
                        frames += work.frames;
                        self.act(notices);
                        if work.served != Served::More {
                            break;
                        }
                    }
                    Err(e) => {
                        // The device is gone or down, and will be at the next call too: look again in a while.
                        log::debug!("cannot read from the TAP device: {e}");
                        self.failed_until.store(self.now() + DEVICE_DUE_NS, Ordering::Relaxed);
                        self.act(notices);
                        break;
                    }
                }
            }
            frames
        })
    }

    /// Sends what waits in a guest's transmit ring, as much as may hold its worker up; if a core waits for this worker, no more than a few frames. The rest is
    /// the guest's own to send, at its next exit, if it `runs_on` and workers serve; otherwise the uplink's thread does it. Returns the frames moved.
    fn transmit(&self, port: &Arc<Port>, cell: &Shared, runs_on: bool) -> usize {
        let (mut frames, mut bytes) = (0, 0);
        let undisturbed = if runs_on { 1 } else { LAST_CALLS };
        for call in 1..=EXIT_CALLS {
            let work = NOTICES.with_borrow_mut(|notices| {
                let most = QUANTUM.min(EXIT_BYTES - bytes);
                let work = self.uplink.transmit(port, EXIT_FRAMES, most, self.now(), notices);
                self.act(notices);
                work
            });
            frames += work.frames;
            bytes += work.bytes.min(EXIT_BYTES - bytes);
            if let Served::Throttled { until_ns } = work.served {
                self.throttle(port, until_ns);
            }
            if work.served != Served::More {
                return frames;
            }
            if EXIT_BYTES - bytes < MAX_FRAME {
                break;
            }
            self.receive_if_due();
            if call >= undisturbed && cell.somebody_waits_here() {
                break;
            }
        }
        if !runs_on || self.server() == Server::Uplink {
            self.throttle(port, self.now());
        }
        frames
    }

    /// If nobody has looked at the TAP device for a while, that is done now: a guest that exits without end, or sends without end, keeps its worker from
    /// doing it otherwise, and other guests wait for their frames.
    fn receive_if_due(&self) {
        let age = self.now().saturating_sub(self.received_at.load(Ordering::Relaxed));
        if self.server() == Server::Worker && u128::from(age) >= RECEIVE_DUE.as_nanos() {
            self.receive();
        }
    }

    /// What a guest sends above its limits, or above what its exits may send, waits in its ring. Its own exits do not help it on: the uplink's thread sleeps until then.
    fn throttle(&self, port: &Arc<Port>, until: u64) {
        if self.throttled.insert(port, until) {
            self.wake_uplink();
        }
    }

    /// Gives a guest what waits for its buffers.
    fn flush(&self, port: &Arc<Port>) {
        if port.is_waited_for() {
            NOTICES.with_borrow_mut(|notices| {
                self.uplink.flush(port, self.now(), notices);
                self.act(notices);
            });
        }
    }

    /// Whether a guest has frames that may be sent now.
    fn has_work(&self, port: &Port) -> bool {
        port.transmit_pending() && !self.throttled.contains(port)
    }

    /// Time left until a moment of the network's clock.
    fn left_until(&self, at: u64) -> Duration {
        Duration::from_nanos(at.saturating_sub(self.now()))
    }

    /// Raises the interrupts and ends the guests that a call has left for later.
    fn act(&self, notices: &mut Notices) {
        if notices.is_empty() {
            return;
        }
        let find = |port: &Port| {
            self.guests.read().unwrap_or_else(PoisonError::into_inner).get(&port.id()).and_then(Weak::upgrade)
        };
        for (port, number) in notices.acknowledgements() {
            if let Some(guest) = find(&port) {
                guest.hear_acknowledgement(number);
            }
        }
        for (port, bits) in notices.interrupts() {
            if let Some(guest) = find(&port) {
                guest.raise(0, bits);
            }
        }
        let faults: Vec<_> = notices.faults().collect();
        for (port, fault) in faults {
            if let Some(guest) = find(&port) {
                guest.ring_fault(fault.to_string());
            }
        }
    }

    /// How long the TAP device, which failed, is not to be looked at.
    fn device_rests(&self) -> Option<Duration> {
        Some(self.left_until(self.failed_until.load(Ordering::Relaxed))).filter(|left| !left.is_zero())
    }
}

impl Shared {
    /// A guest's worker is about to enter it: says whether it may look, and whether it must ring.
    pub(crate) fn before_entry(&self, guest: &Guest, others_wait: bool) {
        let (Some(network), Some(port)) = (&self.network, &guest.port) else { return };
        let uplink = network.server() == Server::Uplink;
        let look = if uplink && !others_wait && !guest.immediate { LOOK.subsec_nanos() } else { 0 };
        let schedule = guest.schedule();
        if schedule.look_ns.load(Ordering::Relaxed) != look {
            schedule.look_ns.store(look, Ordering::Relaxed);
        }
        // Workers drain the ring at every exit, and an awake uplink looks; only a sleeping one must be told.
        let told = uplink && network.asleep.load(Ordering::SeqCst);
        if guest.must_ring.swap(told, Ordering::SeqCst) != told || told {
            port.set_looking(!told);
        }
    }

    /// A core has left its worker: what its guest still has to send is sent, if that is not for its next exit to do.
    pub(crate) fn after_leaving(&self, guest: &Guest, runs_on: bool) {
        if let (Some(network), Some(port)) = (&self.network, &guest.port) {
            let later = runs_on && network.server() == Server::Worker;
            if !later && !guest.has_ended() && port.transmit_pending() {
                network.transmit(port, self, runs_on);
            }
            guest.copy_counters();
        }
    }

    /// Serves a guest's rings now.
    pub(crate) fn serve_guest(&self, guest: &Guest) -> usize {
        self.serve(guest, true)
    }

    fn serve(&self, guest: &Guest, runs_on: bool) -> usize {
        let (Some(network), Some(port)) = (&self.network, &guest.port) else { return 0 };
        network.flush(port);
        let mut frames = network.transmit(port, self, runs_on);
        if network.server() == Server::Worker {
            frames += network.receive();
        }
        guest.copy_counters();
        frames
    }

    /// Whether a core waits for the worker that calls.
    fn somebody_waits_here(&self) -> bool {
        self.workers.iter().any(|worker| worker.waiting() > 0 && worker.attention.is_mine())
    }

    /// A guest has exited for something else than its rings.
    pub(crate) fn receive_if_due(&self) {
        if let Some(network) = &self.network {
            network.receive_if_due();
        }
    }

    /// A guest idles: serves its rings, and lets the controller learn from how much there was.
    ///
    /// While others wait for the processor an exit is nobody's loss: it would come anyway, and says nothing about who should serve.
    pub(crate) fn serve_idle(&self, guest: &Guest, others_wait: bool) {
        let Some(network) = &self.network else { return };
        let frames = self.serve(guest, false);
        if frames > 0 && !others_wait && network.server() == Server::Worker {
            network.decide_for(self, |c, now| c.served(now, frames as u64, frames as u64));
        }
    }

    /// A guest has left by a hypercall, so long after it was entered.
    pub(crate) fn note_entry(&self, ran: Duration) {
        if let Some(network) = &self.network {
            let ran = nanoseconds(ran);
            // Read first: the minimum changes a few times in the life of a cell, and others read its line.
            if ran < network.least_entry.load(Ordering::Relaxed) {
                network.least_entry.fetch_min(ran, Ordering::Relaxed);
            }
        }
    }

    /// How long a guest may run without an exit, if anybody depends on its exits.
    pub(crate) fn service_limit(&self) -> Option<Duration> {
        let network = self.network.as_ref()?;
        (network.server() == Server::Worker && network.service == Service::Auto).then_some(SERVICE_LIMIT)
    }

    /// A guest has run for the service limit without an exit.
    pub(crate) fn service_limit_reached(&self) {
        if let Some(network) = &self.network {
            network.decide(|c, now| c.guest_computes(now));
        }
    }

    /// A worker is about to sleep: what it is to watch, and for how long at most.
    pub(crate) fn watch(&self, index: usize) -> (Option<i32>, Option<Duration>) {
        let Some(network) = &self.network else { return (None, None) };
        let others_sleep = self.workers.iter().enumerate().all(|(i, w)| i == index || w.is_sleeping());
        if others_sleep && network.server() == Server::Uplink {
            network.decide_for(self, |c, now| c.all_rest(now));
            if network.server() == Server::Worker {
                // Whoever watched before may sleep without: this was not a worker's to do.
                network.watcher.store(index, Ordering::SeqCst);
            }
        }
        if network.server() == Server::Uplink || !network.watches(index) {
            return (None, None);
        }
        match network.device_rests() {
            Some(left) => (None, Some(left)),
            None => (Some(network.uplink.link().as_raw_fd()), None),
        }
    }

    /// How long a worker's guest may run until another worker has to watch the TAP device, if that is this worker's to do and another one sleeps.
    pub(crate) fn watch_limit(&self, index: usize) -> Option<Duration> {
        let network = self.network.as_ref()?;
        let watcher = network.watcher.load(Ordering::Relaxed);
        let mine = watcher == index || watcher == NOBODY;
        let sleeper = |(other, w): (usize, &WorkerShared)| other != index && w.is_sleeping();
        let wanted = mine && network.server() == Server::Worker;
        (wanted && self.workers.iter().enumerate().any(sleeper)).then_some(WATCH_DUE)
    }

    /// A worker's guest runs on: one that sleeps watches the TAP device from now on.
    pub(crate) fn hand_watch_over(&self, index: usize) {
        let Some(network) = &self.network else { return };
        let _ = network.watcher.compare_exchange(index, NOBODY, Ordering::SeqCst, Ordering::SeqCst);
        // Awake, it sees that nobody watches.
        let _ = self.workers.iter().enumerate().any(|(other, w)| other != index && w.wake());
    }

    /// What a worker watched has become readable, or a TAP device that failed has rested.
    pub(crate) fn watched(&self) {
        if let Some(network) = &self.network {
            network.receive();
        }
    }
}
