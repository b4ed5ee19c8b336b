//! Requests of rtnetlink: give an interface an address, change the route to its subnet, say who its neighbours are (RFC 3549; `man 7
//! rtnetlink`).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Header, `rtmsg` or `ifaddrmsg`, four attributes.
const MAX_REQUEST: usize = 128;

/// Adds an address to the interface of this index, usable at once.
///
/// # Errors
/// What the kernel answers: `EEXIST` if the interface has the address, `EPERM` without CAP_NET_ADMIN.
pub(crate) fn add_address(interface: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
    let mut request = request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL)?;
    // ifaddrmsg: family, prefix, flags (as an attribute below), scope, interface.
    request.extend([family(address)?, prefix, 0, libc::RT_SCOPE_UNIVERSE]);
    request.extend(interface.to_ne_bytes());
    let octets = octets(address);
    attribute(&mut request, libc::IFA_LOCAL, &octets)?;
    attribute(&mut request, libc::IFA_ADDRESS, &octets)?;
    if address.is_ipv6() {
        attribute(&mut request, libc::IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes())?;
    }
    exchange(request)
}

/// Tells the host a neighbour's ethernet address, which it need not ask for then, or (`None`) to forget it.
///
/// # Errors
/// What the kernel answers: `EPERM` without CAP_NET_ADMIN, `ENOENT` when it knows nothing that it could forget.
pub(crate) fn set_neighbour(interface: u32, address: IpAddr, ethernet: Option<[u8; 6]>) -> io::Result<()> {
    /// Attributes of a neighbour (linux/neighbour.h).
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let (kind, flags) = match ethernet {
        Some(_) => (libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE),
        None => (libc::RTM_DELNEIGH, 0),
    };
    let mut request = request(kind, flags)?;
    // ndmsg: family, padding, interface, state, flags, type.
    request.extend([family(address)?, 0, 0, 0]);
    request.extend(interface.to_ne_bytes());
    request.extend(libc::NUD_PERMANENT.to_ne_bytes());
    request.extend([0, 0]);
    attribute(&mut request, NDA_DST, &octets(address))?;
    if let Some(ethernet) = ethernet {
        attribute(&mut request, NDA_LLADDR, &ethernet)?;
    }
    exchange(request)
}

fn family(address: IpAddr) -> io::Result<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).map_err(io::Error::other)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Has the host's TCP use this congestion control towards a subnet that is linked to the interface, `source` being its own address there.
///
/// # Errors
/// What the kernel answers: `ENOENT` or `EINVAL` if it does not have the algorithm.
pub(crate) fn set_congestion_control(
    interface: u32,
    (network, prefix): (Ipv4Addr, u8),
    source: Ipv4Addr,
    algorithm: &str,
) -> io::Result<()> {
    /// An attribute of the route, within `RTA_METRICS` (linux/rtnetlink.h).
    const RTAX_CC_ALGO: u16 = 16;
    let mut request = request(libc::RTM_NEWROUTE, libc::NLM_F_REPLACE)?;
    // rtmsg: family, destination and source bits, TOS, table, protocol, scope, type, flags.
    let family = u8::try_from(libc::AF_INET).map_err(io::Error::other)?;
    request.extend([family, prefix, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_KERNEL, libc::RT_SCOPE_LINK]);
    request.push(libc::RTN_UNICAST);
    request.extend(0_u32.to_ne_bytes());
    attribute(&mut request, libc::RTA_DST, &network.octets())?;
    attribute(&mut request, libc::RTA_PREFSRC, &source.octets())?;
    attribute(&mut request, libc::RTA_OIF, &interface.to_ne_bytes())?;
    let mut metrics = Vec::new();
    attribute(&mut metrics, RTAX_CC_ALGO, algorithm.as_bytes())?;
    attribute(&mut request, libc::RTA_METRICS, &metrics)?;
    exchange(request)
}

/// The start of a request: nlmsghdr with length (set later), type, flags, sequence, port.
fn request(kind: u16, flags: i32) -> io::Result<Vec<u8>> {
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags).map_err(io::Error::other)?;
    let mut request: Vec<u8> = Vec::with_capacity(MAX_REQUEST);
    request.extend([0; 4]);
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend(1_u32.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    Ok(request)
}

fn attribute(request: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
    Ok(())
}

/// Sends a request and waits for its acknowledgement.
fn exchange(mut request: Vec<u8>) -> io::Result<()> {
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    request.splice(..4, length.to_ne_bytes());
    // SAFETY: creates a descriptor; no memory is involved.
    let fd =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `request` is a slice.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0_u8; 1024];
    // SAFETY: `answer` is a slice.
    let received = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    // nlmsghdr, then nlmsgerr: a negated error number, 0 for success.
    let kind = answer.get(4..6).and_then(|b| b.first_chunk().copied()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|b| b.first_chunk().copied()).map(i32::from_ne_bytes);
    match (kind.map(i32::from), error) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        _ => Err(io::Error::other("unexpected answer of rtnetlink")),
    }
}
