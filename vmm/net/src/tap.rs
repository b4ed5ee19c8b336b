//! The TAP device: the cell's link to the host's network.
//!
//! Every frame carries an offload header of 12 bytes ([`foraker_abi::net::Header`]) in both directions, so that checksums and TCP
//! segmentation are left to whoever does them last, or to nobody. The device is not persistent: it vanishes
//! with its descriptor, however the process ends.

use std::ffi::{c_int, c_long};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use foraker_abi::net::HEADER_SIZE;

use crate::frame::Mac;
use crate::link::Link;
use crate::netlink;
use crate::parts::{Parts, Places};

/// Frames that the device queues towards the cell before the host drops.
pub const QUEUE_LENGTH: u32 = 4096;
/// Smallest MTU, that of IPv6.
pub const MIN_MTU: u16 = 1280;
/// Largest MTU that the kernel takes for an ethernet device of this kind.
pub const MAX_MTU: u16 = 65_521;

const DEVICE: &str = "/dev/net/tun";
const NAME_SIZE: usize = libc::IFNAMSIZ;

/// A TAP device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel offers no TAP devices here.
    #[error("{DEVICE} is missing: load the module with `modprobe tun`, or give the device to this container")]
    NoDevice,
    /// Not allowed to make one.
    #[error(
        "no right to create a TAP device: run as root or with CAP_NET_ADMIN (`setcap cap_net_admin+ep`), \
         or let root create one with `ip tuntap add NAME mode tap user $USER` and pass it with --tap NAME"
    )]
    NotPermitted,
    /// Not a name for an interface.
    #[error("`{0}` is no interface name: use 1 to 15 characters without `/`, `:`, `%` and blanks")]
    InvalidName(String),
    /// There is such an interface already.
    #[error("network interface `{0}` exists already: choose another name, or use it with --tap {0}")]
    NameTaken(String),
    /// There is no such interface.
    #[error("there is no network interface `{0}`: create it with `ip tuntap add {0} mode tap`")]
    NotFound(String),
    /// The interface is no TAP device, or one with several queues.
    #[error(
        "network interface `{0}` is no TAP device of one queue: create one with `ip tuntap add NAME mode tap`"
    )]
    NotTap(String),
    /// Another process uses the device.
    #[error("TAP device `{0}` is in use by another process")]
    Busy(String),
    /// The device cannot carry offload headers.
    #[error("TAP device `{0}` lacks offload headers: create it with `ip tuntap add {0} mode tap vnet_hdr`")]
    NoOffloadHeader(String),
    /// An MTU that the device cannot have.
    #[error("an MTU of {0} is not between {MIN_MTU} and {MAX_MTU}")]
    InvalidMtu(u16),
    /// The address is in use on this host.
    #[error("address {0} is already in use on this host: choose another subnet with --subnet")]
    AddressTaken(IpAddr),
    /// Something else.
    #[error("cannot {action}: {source}")]
    Os {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn os(action: &'static str) -> impl FnOnce(io::Error) -> TapError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted,
        _ => TapError::Os { action, source },
    }
}

/// `struct ifreq`.
#[repr(C, align(8))]
struct Request {
    name: [u8; NAME_SIZE],
    data: [u8; 24],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(name: &str) -> Self {
        let mut request = Request { name: [0; NAME_SIZE], data: [0; 24] };
        for (to, from) in request.name.iter_mut().zip(name.bytes()).take(NAME_SIZE - 1) {
            *to = from;
        }
        request
    }

    fn with<const N: usize>(name: &str, data: [u8; N]) -> Self {
        let mut request = Request::new(name);
        if let Some(place) = request.data.first_chunk_mut::<N>() {
            *place = data;
        }
        request
    }

    fn get<const N: usize>(&self) -> [u8; N] {
        self.data.first_chunk().copied().unwrap_or([0; N])
    }

    fn name(&self) -> String {
        self.name.iter().take_while(|&&b| b != 0).map(|&b| char::from(b)).collect()
    }

    /// An ioctl that takes a `struct ifreq`.
    fn call(&mut self, fd: BorrowedFd<'_>, number: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every number used in this file reads and writes at most a `struct ifreq`, which this is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(self)) })
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A TAP device, non-blocking.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// For requests about the interface.
    socket: OwnedFd,
    name: String,
}

impl Tap {
    /// Creates a device; without a name the first free `fk<N>`.
    ///
    /// # Errors
    /// [`TapError`] says what to do.
    pub fn create(name: Option<&str>) -> Result<Self, TapError> {
        if let Some(name) = name {
            valid(name)?;
            if exists(name) {
                return Err(TapError::NameTaken(name.into()));
            }
        }
        let file = open()?;
        let mut request = Request::with(name.unwrap_or("fk%d"), flags().to_ne_bytes());
        request.call(file.as_fd(), libc::TUNSETIFF).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => TapError::NameTaken(request.name()),
            _ => os("create a TAP device")(e),
        })?;
        Self::set_up(file, &request)
    }

    /// Uses a device that exists, with the addresses that it has.
    ///
    /// # Errors
    /// [`TapError`] says what to do.
    pub fn open_existing(name: &str) -> Result<Self, TapError> {
        valid(name)?;
        if !exists(name) {
            return Err(TapError::NotFound(name.into()));
        }
        let file = open()?;
        let mut request = Request::with(name, flags().to_ne_bytes());
        request.call(file.as_fd(), libc::TUNSETIFF).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy(name.into()),
            Some(libc::EINVAL) => TapError::NotTap(name.into()),
            _ => os("use the TAP device")(e),
        })?;
        Self::set_up(file, &request)
    }

    fn set_up(file: File, request: &Request) -> Result<Self, TapError> {
        let name = request.name();
        let mut now = Request::new("");
        now.call(file.as_fd(), libc::TUNGETIFF).map_err(os("read the TAP device's flags"))?;
        if u16::from_ne_bytes(now.get()) & flags() != flags() {
            return Err(TapError::NoOffloadHeader(name));
        }
        let header_size = c_int::try_from(HEADER_SIZE).unwrap_or(c_int::MAX);
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_size) })
            .map_err(|_| TapError::NoOffloadHeader(name.clone()))?;
        let offloads = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
            .map_err(os("enable the TAP device's offloads"))?;
        // SAFETY: creates a descriptor; no memory is involved.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        check(socket).map_err(os("open a socket"))?;
        // SAFETY: just created, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Tap { file, socket, name })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn request(
        &self,
        mut request: Request,
        number: libc::Ioctl,
        action: &'static str,
    ) -> Result<Request, TapError> {
        request.call(self.socket.as_fd(), number).map_err(os(action))?;
        Ok(request)
    }

    /// Ethernet address of the host's side.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mac(&self) -> Result<Mac, TapError> {
        let request =
            self.request(Request::new(&self.name), libc::SIOCGIFHWADDR, "read the ethernet address")?;
        let [_, _, a, b, c, d, e, f] = request.get();
        Ok(Mac([a, b, c, d, e, f]))
    }

    /// Changes the ethernet address of the host's side.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mac(&self, mac: Mac) -> Result<(), TapError> {
        let [f0, f1] = libc::ARPHRD_ETHER.to_ne_bytes();
        let [a, b, c, d, e, f] = mac.0;
        let request = Request::with(&self.name, [f0, f1, a, b, c, d, e, f]);
        self.request(request, libc::SIOCSIFHWADDR, "set the ethernet address").map(drop)
    }

    /// Most bytes of an IP packet.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mtu(&self) -> Result<u16, TapError> {
        let request = self.request(Request::new(&self.name), libc::SIOCGIFMTU, "read the MTU")?;
        Ok(u16::try_from(i32::from_ne_bytes(request.get())).unwrap_or(MAX_MTU))
    }

    /// Changes the MTU.
    ///
    /// # Errors
    /// Out of range, or the kernel refuses.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(TapError::InvalidMtu(mtu));
        }
        let request = Request::with(&self.name, i32::from(mtu).to_ne_bytes());
        self.request(request, libc::SIOCSIFMTU, "set the MTU").map(drop)
    }

    /// How many frames the device queues towards the cell ([`QUEUE_LENGTH`] is good).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_queue_length(&self, frames: u32) -> Result<(), TapError> {
        let request = Request::with(&self.name, frames.to_ne_bytes());
        self.request(request, libc::SIOCSIFTXQLEN, "set the queue length").map(drop)
    }

    /// The host's IPv4 address on the device and its prefix, if it has one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ipv4(&self) -> Result<Option<(Ipv4Addr, u8)>, TapError> {
        let mut address = Request::new(&self.name);
        if let Err(e) = address.call(self.socket.as_fd(), libc::SIOCGIFADDR) {
            return match e.raw_os_error() {
                Some(libc::EADDRNOTAVAIL) => Ok(None),
                _ => Err(os("read the IPv4 address")(e)),
            };
        }
        let mask = self.request(Request::new(&self.name), libc::SIOCGIFNETMASK, "read the network mask")?;
        let of = |request: &Request| {
            let [_, _, _, _, a, b, c, d] = request.get::<8>();
            Ipv4Addr::new(a, b, c, d)
        };
        let prefix = u8::try_from(of(&mask).to_bits().leading_ones()).unwrap_or(32);
        Ok(Some((of(&address), prefix)))
    }

    /// Gives the host an IPv4 address on the device; the kernel then routes the prefix to it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_ipv4(&self, address: Ipv4Addr, prefix: u8) -> Result<(), TapError> {
        self.add_address(address.into(), prefix)
    }

    /// Gives the host an IPv6 address on the device, usable at once: the switch knows that nobody else has it, so
    /// duplicates are not looked for.
    ///
    /// # Errors
    /// The kernel refuses; also if IPv6 is switched off.
    pub fn add_ipv6(&self, address: Ipv6Addr, prefix: u8) -> Result<(), TapError> {
        self.add_address(address.into(), prefix)
    }

    fn index(&self) -> Result<u32, TapError> {
        let request = self.request(Request::new(&self.name), libc::SIOCGIFINDEX, "find the TAP device")?;
        Ok(u32::from_ne_bytes(request.get()))
    }

    /// Has the host's TCP use this congestion control when it sends to the device's subnet. `address` is the host's own there. The device is on.
    ///
    /// # Errors
    /// The kernel refuses; also if it does not have the algorithm.
    pub fn set_congestion_control(
        &self,
        address: Ipv4Addr,
        prefix: u8,
        algorithm: &str,
    ) -> Result<(), TapError> {
        let host_bits = 32 - u32::from(prefix.min(32));
        let network = u32::MAX.checked_shl(host_bits).unwrap_or(0) & address.to_bits();
        netlink::set_congestion_control(self.index()?, (network.into(), prefix), address, algorithm)
            .map_err(os("choose the congestion control of the TAP device's subnet"))
    }

    /// Tells the host which ethernet address is behind an address on the device. It need not ask then, nor remember the answer in its table of
    /// neighbours, which holds 1,024 for the whole host unless it is told otherwise.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_neighbour(&self, address: IpAddr, mac: Mac) -> Result<(), TapError> {
        netlink::set_neighbour(self.index()?, address, Some(mac.0)).map_err(os("tell the host a neighbour"))
    }

    /// Has the host forget what it was told.
    ///
    /// # Errors
    /// The kernel refuses; also if it was not told.
    pub fn remove_neighbour(&self, address: IpAddr) -> Result<(), TapError> {
        netlink::set_neighbour(self.index()?, address, None).map_err(os("have the host forget a neighbour"))
    }

    fn add_address(&self, address: IpAddr, prefix: u8) -> Result<(), TapError> {
        netlink::add_address(self.index()?, address, prefix).map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => TapError::AddressTaken(address),
            _ => os("give the TAP device an address")(e),
        })
    }

    /// Switches the device on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn up(&self) -> Result<(), TapError> {
        let request =
            self.request(Request::new(&self.name), libc::SIOCGIFFLAGS, "read the interface's flags")?;
        let up = u16::from_ne_bytes(request.get()) | u16::try_from(libc::IFF_UP).unwrap_or(1);
        let request = Request::with(&self.name, up.to_ne_bytes());
        self.request(request, libc::SIOCSIFFLAGS, "switch the interface on").map(drop)
    }

    /// Reads the next frame behind its offload header. None if there is none now. A longer frame than `buffer` is cut.
    ///
    /// # Errors
    /// The device is off or gone.
    #[inline]
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            // SAFETY: the buffer is valid for the call.
            let length = unsafe {
                libc::syscall(libc::SYS_read, self.file.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
            };
            if let Some(result) = received(length) {
                return result;
            }
        }
    }

    /// Sends an offload header and a frame to the host.
    ///
    /// # Errors
    /// The kernel refuses the frame, or the device is off.
    pub fn write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(parts)
    }
}

impl Link for Tap {
    #[inline]
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.read(buffer)
    }

    #[inline]
    fn receive_scattered(&self, places: Places<'_>) -> io::Result<Option<usize>> {
        let list = places.list();
        let count = c_int::try_from(list.len()).unwrap_or(c_int::MAX);
        loop {
            // SAFETY: writable, by the invariant of `Places`; `Part` is an `iovec` in a transparent coat.
            let length =
                unsafe { libc::syscall(libc::SYS_readv, self.file.as_raw_fd(), list.as_ptr(), count) };
            if let Some(result) = received(length) {
                return result;
            }
        }
    }

    #[inline]
    fn send(&self, frame: Parts<'_>) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        let list = frame.list();
        let written = match list {
            // One buffer is cheaper than a list of one.
            // SAFETY: mapped, by the invariant of `Parts`.
            [part] => unsafe { libc::syscall(libc::SYS_write, fd, part.base(), part.length()) },
            _ => {
                let count = c_int::try_from(list.len()).unwrap_or(c_int::MAX);
                // SAFETY: as above; `Part` is an `iovec` in a transparent coat.
                unsafe { libc::syscall(libc::SYS_writev, fd, list.as_ptr(), count) }
            }
        };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// What a system call that reads has returned; `None` when it is to be tried again.
///
/// The calls for each frame go to the kernel directly, not through the C library's functions of the same names: those are
/// cancellation points, whose book-keeping in a process of several threads costs a few per cent of a small frame.
#[inline]
fn received(length: c_long) -> Option<io::Result<Option<usize>>> {
    if let Ok(length) = usize::try_from(length) {
        return Some(Ok(Some(length)));
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Some(Ok(None)),
        e if e.kind() == io::ErrorKind::Interrupted => None,
        e => Some(Err(e)),
    }
}

fn flags() -> u16 {
    u16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap_or(0)
}

fn open() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDevice,
            _ => os("open /dev/net/tun")(e),
        })
}

fn valid(name: &str) -> Result<(), TapError> {
    let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    if name.is_empty() || name.len() >= NAME_SIZE || name == "." || name == ".." || !name.bytes().all(good) {
        return Err(TapError::InvalidName(name.into()));
    }
    Ok(())
}

fn exists(name: &str) -> bool {
    let mut bytes = [0_u8; NAME_SIZE];
    for (to, from) in bytes.iter_mut().zip(name.bytes()).take(NAME_SIZE - 1) {
        *to = from;
    }
    // SAFETY: a string that ends with a NUL.
    unsafe { libc::if_nametoindex(bytes.as_ptr().cast()) != 0 }
}
