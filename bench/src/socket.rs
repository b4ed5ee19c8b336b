//! Options of sockets that the standard library does not set.

use std::io;
use std::os::fd::AsRawFd;

/// Sets an option of the socket itself (`SOL_SOCKET`) to a plain value.
///
/// # Errors
/// The host refuses.
pub fn set_option<T: Copy>(socket: &impl AsRawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads so many bytes of the value, which lives until after the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
