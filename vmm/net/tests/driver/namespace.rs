//! A network namespace for a test's thread, so that nothing reaches the host's network, and a packet socket in it.
#![allow(dead_code, unreachable_pub, reason = "each user needs a part of it")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use foraker_abi::net::{HEADER_SIZE, Header};

/// Bytes of a packet socket's offload header: without `num_buffers`.
const SOCKET_HEADER: usize = HEADER_SIZE - 2;

/// Moves the calling thread to a network namespace of its own, which ends with it and its descriptors.
pub fn enter() {
    // SAFETY: concerns only the calling thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(
        result,
        0,
        "these tests make TAP devices in network namespaces: run them as root (CAP_NET_ADMIN and CAP_SYS_ADMIN): {}",
        io::Error::last_os_error()
    );
}

/// Sends and receives whole frames on an interface, with offload headers.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    pub fn open(interface: &str) -> Self {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: creates a descriptor.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, every_protocol.into())
        };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: just created.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        for option in [libc::PACKET_VNET_HDR, libc::PACKET_QDISC_BYPASS] {
            let on: libc::c_int = 1;
            // SAFETY: an int, and its size.
            let result = unsafe {
                libc::setsockopt(
                    fd,
                    libc::SOL_PACKET,
                    option,
                    (&raw const on).cast(),
                    size_of_val(&on) as u32,
                )
            };
            assert_eq!(result, 0, "packet socket option {option}: {}", io::Error::last_os_error());
        }
        let name = CString::new(interface).expect("a name");
        // SAFETY: a string with a NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: all zeros is a value of this type.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = i32::try_from(index).expect("an index");
        // SAFETY: an address of this family, and its size.
        let result =
            unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) };
        assert_eq!(result, 0, "bind to {interface}: {}", io::Error::last_os_error());
        PacketSocket(socket)
    }

    /// Sends a frame out of the interface: towards the cell.
    pub fn send(&self, header: Header, frame: &[u8]) -> io::Result<()> {
        let mut bytes = header.to_bytes()[..SOCKET_HEADER].to_vec();
        bytes.extend_from_slice(frame);
        self.send_bytes(&bytes)
    }

    /// The same with the header in front already.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: a slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame that passes the interface, in either direction.
    pub fn receive(&self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = vec![0; 70_000];
        // SAFETY: a slice.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        bytes.truncate(usize::try_from(length).ok()?);
        let mut header = [0; HEADER_SIZE];
        header[..SOCKET_HEADER].copy_from_slice(&bytes[..SOCKET_HEADER]);
        Some((Header::from_bytes(header), bytes.split_off(SOCKET_HEADER)))
    }
}
