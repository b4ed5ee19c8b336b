//! When packets arrived at a socket, as the host's network noted it.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use crate::socket::set_option;

/// Has the host note when each packet for this socket arrives.
///
/// # Errors
/// When it does not.
pub fn note(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SO_TIMESTAMPNS, &libc::c_int::from(true))
}

/// Receives a packet, and when it arrived, from a socket that was told to [`note`] it.
///
/// # Errors
/// None came in time, or nobody noted when.
pub fn receive(socket: &UdpSocket, packet: &mut [u8]) -> io::Result<(usize, SystemTime)> {
    // Room for one message, aligned as it must be.
    let mut room = [0_u64; 8];
    let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
    // SAFETY: all-zero is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = room.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&room);
    // SAFETY: everything that the message points to lives until after the call.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the message; null if there is none.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null or valid, as above.
    let header = unsafe { first.as_ref() }
        .filter(|header| header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_TIMESTAMPNS);
    if header.is_none() {
        return Err(io::Error::other("nobody noted when the packet arrived"));
    }
    // SAFETY: a message of this kind holds a time, perhaps unaligned.
    let time: libc::timespec = unsafe { libc::CMSG_DATA(first).cast::<libc::timespec>().read_unaligned() };
    let of = |n: i64| u64::try_from(n).map_err(|_| io::Error::other("a time before 1970"));
    let since = Duration::from_secs(of(time.tv_sec)?) + Duration::from_nanos(of(time.tv_nsec)?);
    Ok((n, SystemTime::UNIX_EPOCH + since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_when_a_packet_came_and_not_when_it_was_fetched() {
        let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        note(&other).unwrap();
        // The first who wants times in a whole kernel has them a moment later.
        std::thread::sleep(Duration::from_millis(50));
        let before = SystemTime::now();
        one.send_to(b"hello", other.local_addr().unwrap()).unwrap();
        let after = SystemTime::now();
        std::thread::sleep(Duration::from_millis(50));
        let mut packet = [0; 16];
        let (n, arrived) = receive(&other, &mut packet).unwrap();
        assert_eq!(&packet[..n], b"hello");
        assert!(before <= arrived && arrived <= after + Duration::from_millis(20), "{arrived:?}");
    }
}
