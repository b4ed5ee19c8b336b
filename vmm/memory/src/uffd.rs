//! `userfaultfd`: who fills pages that are missing, the kernel with zeros or this process with what belongs there.
//!
//! Five structures and five calls of the kernel's interface (`linux/userfaultfd.h`); the crates for it want a C compiler's library at build time.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const API: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
/// `UFFD_EVENT_PAGEFAULT`.
const EVENT_FAULT: u8 = 0x12;
/// `UFFD_FEATURE_MISSING_SHMEM`.
const MISSING_SHMEM: u64 = 1 << 5;

const IOC_NEW: libc::c_ulong = 0xaa00;
const IOC_API: libc::c_ulong = 0xc018_aa3f;
const IOC_REGISTER: libc::c_ulong = 0xc020_aa00;
const IOC_WAKE: libc::c_ulong = 0x8010_aa02;
const IOC_COPY: libc::c_ulong = 0xc028_aa03;
const IOC_ZERO: libc::c_ulong = 0xc020_aa04;

#[repr(C)]
struct ApiRequest {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Span {
    start: u64,
    length: u64,
}

#[repr(C)]
struct Copy {
    destination: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    start: u64,
    length: u64,
    mode: u64,
    zeroed: i64,
}

/// One message: a fault's is the only kind asked for.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    feature: u64,
}

const _: () = {
    assert!(size_of::<ApiRequest>() == 24 && size_of::<Register>() == 32 && size_of::<Span>() == 16);
    assert!(size_of::<Copy>() == 40 && size_of::<Zero>() == 32 && size_of::<Message>() == 32);
};

/// A `userfaultfd`.
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

impl Uffd {
    /// Opens one that also sees the faults of the kernel on this process' behalf, as KVM's are.
    pub(crate) fn open() -> io::Result<Uffd> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // The device needs rights on a file, the call needs a capability: whichever there is.
        let fd = match OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") {
            // SAFETY: a call on an open descriptor with a number as its argument.
            Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, flags) },
            Err(_) => {
                // SAFETY: a system call with a number as its argument.
                let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
                i32::try_from(fd).unwrap_or(-1)
            }
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let uffd = Uffd(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut request = ApiRequest { api: API, features: MISSING_SHMEM, ioctls: 0 };
        uffd.call(IOC_API, &mut request)?;
        Ok(uffd)
    }

    fn call<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request comes with the structure that the kernel's interface names for it, valid for the call.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Has missing pages of a mapping reported here from now on.
    pub(crate) fn register(&self, start: u64, length: u64) -> io::Result<()> {
        self.call(IOC_REGISTER, &mut Register { start, length, mode: REGISTER_MISSING, ioctls: 0 })
    }

    /// Fills missing pages with a copy of `source`, and wakes whoever waits for them. Returns the bytes filled: fewer when a page on the
    /// way was there already.
    pub(crate) fn copy(&self, destination: u64, source: &[u8]) -> io::Result<u64> {
        let (from, length) = (source.as_ptr() as u64, source.len() as u64);
        let mut copy = Copy { destination, source: from, length, mode: 0, copied: 0 };
        let done = self.call(IOC_COPY, &mut copy);
        partly(done, copy.copied)
    }

    /// Fills missing pages with zeros, in the same way.
    pub(crate) fn zero(&self, start: u64, length: u64) -> io::Result<u64> {
        let mut zero = Zero { start, length, mode: 0, zeroed: 0 };
        let done = self.call(IOC_ZERO, &mut zero);
        partly(done, zero.zeroed)
    }

    /// Wakes whoever waits for pages that are there.
    pub(crate) fn wake(&self, start: u64, length: u64) {
        // Fails only for a range that is not registered, which nobody waits for.
        let _ = self.call(IOC_WAKE, &mut Span { start, length });
    }

    /// Reads which addresses are waited for. Empty when none is.
    pub(crate) fn faults(&self, addresses: &mut Vec<u64>) {
        let mut messages = [Message::default(); 16];
        let size = size_of_val(&messages);
        // SAFETY: the buffer is valid for the call, and any content of it a value of its type.
        let got = unsafe { libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), size) };
        let count = usize::try_from(got).unwrap_or(0) / size_of::<Message>();
        let faults = messages.iter().take(count).filter(|m| m.event == EVENT_FAULT);
        addresses.extend(faults.map(|m| m.address));
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A call that came to a page that was there has done a part, which is in the answer (or minus the error).
fn partly(done: io::Result<()>, bytes: i64) -> io::Result<u64> {
    match (done, u64::try_from(bytes)) {
        (_, Ok(bytes)) if bytes > 0 => Ok(bytes),
        (Ok(()), _) => Ok(0),
        (Err(e), _) => Err(e),
    }
}
