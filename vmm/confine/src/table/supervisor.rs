//! The threads of the supervisor: an HTTP server on `tokio`, SQLite with a write-ahead log, and, for each cell, those that keep it. Cells are started by another
//! process, so that nothing here has to allow what cells do.

use super::group::*;
use crate::call::{Condition, Group, Rule, call, rule};

#[expect(clippy::cast_sign_loss, reason = "the kernel's constants are bit patterns")]
const fn bits(value: i32) -> u32 {
    value as u32
}

/// Serves clients, on sockets that are listened on already; tells cells what they ask for; stores images and looks into them. Threads that it starts inherit this,
/// and are of the same kind.
pub(crate) const CONTROL: &[Group] =
    &[REACTOR, SERVE, CHANNEL, IMAGES, LOOKS, YIELD, SLEEP, START_THREADS, EVERY];

/// Keeps what is to survive in a database in one folder.
pub(crate) const STORE: &[Group] = &[DATABASE, SLEEP, YIELD, EVERY];

/// Waits until cells of an earlier supervisor are gone, has the launcher start one, hears what it says until its process has ended, and starts the two threads that read its console and write to it.
pub(crate) const KEEPER: &[Group] =
    &[MARK, CHANNEL, LAUNCHER, CLOSE, CONSOLES, LOOKS, SLEEP, START_THREADS, RESTRICT_THREADS, EVERY];

/// Reads what guests print, from the pipe of a cell.
pub(crate) const CONSOLE: &[Group] = &[PIPE, EVERY];

/// Tells cells what waited: for their streams, or for its time.
pub(crate) const SENDER: &[Group] = &[CHANNEL, HAND_OVER, CLOSE, EVERY];

/// Takes cores from streams of cells, and puts them in a folder.
pub(crate) const CORES: &[Group] = &[CHANNEL, FOLDER, EVERY];

/// Waits for a signal or the launcher's end, tells cells and the launcher to end, and waits for that.
pub(crate) const MAIN: &[Group] = &[WAIT, CHANNEL, LAUNCHER, CLOSE, EVERY];

/// The event loop of an asynchronous runtime.
const REACTOR: Group = &[
    call!(SYS_epoll_create1),
    call!(SYS_epoll_wait),
    call!(SYS_epoll_ctl),
    // Its waker.
    call!(SYS_eventfd2),
    call!(SYS_read),
];

const OPTIONS: &[Rule] = &[
    rule!("SO_ERROR", Condition::is(1, bits(libc::SOL_SOCKET)), Condition::is(2, bits(libc::SO_ERROR))),
    rule!("SO_PEERCRED", Condition::is(1, bits(libc::SOL_SOCKET)), Condition::is(2, bits(libc::SO_PEERCRED))),
];

/// An HTTP server on streams that are listened on already, local ones and TCP.
const SERVE: Group = &[
    call!(SYS_accept4),
    call!(SYS_recvfrom),
    call!(SYS_sendto, &[rule!("to its peer", Condition::null(4))]),
    call!(SYS_readv),
    call!(SYS_writev),
    call!(SYS_shutdown),
    call!(SYS_getpeername),
    call!(SYS_getsockname),
    call!(SYS_getsockopt, OPTIONS),
    call!(
        SYS_setsockopt,
        &[
            rule!(
                "TCP_NODELAY",
                Condition::is(1, bits(libc::IPPROTO_TCP)),
                Condition::is(2, bits(libc::TCP_NODELAY))
            ),
            rule!(
                "SO_SNDBUF",
                Condition::is(1, bits(libc::SOL_SOCKET)),
                Condition::is(2, bits(libc::SO_SNDBUF))
            ),
        ]
    ),
    call!(SYS_ioctl, &[crate::request::FIONBIO]),
];

/// Storing images, and reading them. Where, is [Landlock's](crate::files) to say.
const IMAGES: Group = &[
    call!(SYS_openat),
    call!(SYS_read),
    call!(SYS_lseek),
    call!(SYS_statx),
    call!(SYS_fstat),
    call!(SYS_newfstatat),
    call!(SYS_fsync),
    call!(SYS_renameat),
    call!(SYS_unlink),
];

const LOCKS: &[Rule] = &[
    rule!("F_SETLK", Condition::is(1, bits(libc::F_SETLK))),
    rule!("F_GETLK", Condition::is(1, bits(libc::F_GETLK))),
    rule!("F_SETFD", Condition::is(1, bits(libc::F_SETFD))),
];

/// A database of SQLite with a write-ahead log. In which folder, is [Landlock's](crate::files) to say.
const DATABASE: Group = &[
    call!(SYS_openat),
    call!(SYS_pread64),
    call!(SYS_pwrite64),
    call!(SYS_read),
    call!(SYS_lseek),
    call!(SYS_fdatasync),
    call!(SYS_fsync),
    call!(SYS_ftruncate),
    call!(SYS_fallocate),
    call!(SYS_fstat),
    call!(SYS_newfstatat),
    call!(SYS_stat),
    call!(SYS_lstat),
    call!(SYS_statx),
    call!(SYS_access),
    call!(SYS_unlink),
    call!(SYS_readlink),
    call!(SYS_getcwd),
    call!(SYS_fchmod),
    call!(SYS_fchown),
    call!(SYS_geteuid),
    call!(SYS_fcntl, LOCKS),
];

/// Streams, one end of which is for a cell.
const LOOKS: Group = &[call!(SYS_socketpair)];

/// Sending them there, beside a message.
const HAND_OVER: Group = &[call!(SYS_sendmsg)];

/// Files of one folder. Which, is [Landlock's](crate::files) to say.
const FOLDER: Group = &[
    call!(SYS_openat),
    call!(SYS_getdents64),
    call!(SYS_fstat),
    call!(SYS_newfstatat),
    call!(SYS_statx),
    call!(SYS_lseek),
    call!(SYS_rename),
    call!(SYS_renameat),
    call!(SYS_unlink),
    call!(
        SYS_setsockopt,
        &[rule!(
            "SO_RCVTIMEO",
            Condition::is(1, bits(libc::SOL_SOCKET)),
            Condition::is(2, bits(libc::SO_RCVTIMEO))
        )]
    ),
];

/// A pipe that another process writes to.
const PIPE: Group = &[call!(SYS_read)];

/// Requests to the launcher, and descriptors that come back.
const LAUNCHER: Group = &[call!(SYS_sendmsg), call!(SYS_recvmsg), call!(SYS_poll)];

/// Whether cells of an earlier supervisor are gone is told by a lock.
const MARK: Group = &[call!(SYS_flock)];

/// Closing a stream in one direction.
const CLOSE: Group = &[call!(SYS_shutdown)];

/// Waiting for a descriptor, or a signal.
const WAIT: Group = &[call!(SYS_ppoll)];
