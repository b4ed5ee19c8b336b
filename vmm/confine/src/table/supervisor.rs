//! The threads of the supervisor.
//!
//! Written from what its crates do (an HTTP server on `tokio`, SQLite with a write-ahead log, cells as child processes), to be checked against runs of it
//! before it is applied.

use super::group::*;
use crate::call::{Condition, Group, Rule, call, rule};

#[expect(clippy::cast_sign_loss, reason = "the kernel's constants are bit patterns")]
const fn bits(value: i32) -> u32 {
    value as u32
}

/// Serves the interface: accepts connections of the control socket and, where it was asked for, of TCP.
pub(crate) const CONTROL: &[Group] = &[REACTOR, SERVE, CHANNEL, YIELD, SLEEP, EVERY];

/// Keeps what is to survive in a database in one folder.
pub(crate) const STORE: &[Group] = &[DATABASE, SLEEP, YIELD, EVERY];

/// Reads what guests print, from pipes of cells.
pub(crate) const CONSOLE: &[Group] = &[REACTOR, PIPES, SLEEP, YIELD, EVERY];

/// Starts cells and waits for their ends. A filter is inherited by child processes: this one would have to allow all that a cell does, its own set-up
/// included, and so it does.
pub(crate) const MAIN: &[Group] = &[
    ENTER_GUEST,
    MACHINES,
    FILL_MEMORY,
    PROCESSES,
    REACTOR,
    SERVE,
    DATABASE,
    PIPES,
    CHANNEL,
    VIGIL,
    FRAMES,
    CALL_WORKERS,
    CONSOLES,
    CONTENTION,
    LOOK,
    YIELD,
    SLEEP,
    SCHEDULING,
    super::group::NEIGHBOURS,
    RELAY,
    LISTEN,
    READ_FILES,
    TEMPLATES,
    START_THREADS,
    END_CELL,
    SET_UP_OF_CELLS,
    EVERY,
];

/// The event loop of an asynchronous runtime.
const REACTOR: Group = &[
    call!(SYS_epoll_wait),
    call!(SYS_epoll_pwait),
    call!(SYS_epoll_ctl),
    // Wakers and timers.
    call!(SYS_read),
    call!(SYS_timerfd_settime),
];

const OPTIONS: &[Rule] = &[
    rule!("SO_ERROR", Condition::is(1, bits(libc::SOL_SOCKET)), Condition::is(2, bits(libc::SO_ERROR))),
    rule!("SO_PEERCRED", Condition::is(1, bits(libc::SOL_SOCKET)), Condition::is(2, bits(libc::SO_PEERCRED))),
];

/// An HTTP server on streams that are listened on already.
const SERVE: Group = &[
    call!(SYS_accept4),
    call!(SYS_recvfrom),
    call!(SYS_sendto, &[rule!("to its peer", Condition::null(4))]),
    call!(SYS_writev),
    call!(SYS_sendmsg),
    call!(SYS_recvmsg),
    call!(SYS_shutdown),
    call!(SYS_getpeername),
    call!(SYS_getsockname),
    call!(SYS_getsockopt, OPTIONS),
    call!(
        SYS_setsockopt,
        &[rule!(
            "TCP_NODELAY",
            Condition::is(1, bits(libc::IPPROTO_TCP)),
            Condition::is(2, bits(libc::TCP_NODELAY))
        )]
    ),
    call!(SYS_ioctl, &[crate::request::FIONBIO]),
];

const LOCKS: &[Rule] = &[
    rule!("F_SETLK", Condition::is(1, bits(libc::F_SETLK))),
    rule!("F_GETLK", Condition::is(1, bits(libc::F_GETLK))),
    rule!("F_OFD_SETLK", Condition::is(1, bits(libc::F_OFD_SETLK))),
    rule!("F_OFD_GETLK", Condition::is(1, bits(libc::F_OFD_GETLK))),
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

/// Pipes that others write to.
const PIPES: Group = &[call!(SYS_read), call!(SYS_readv), call!(SYS_poll), call!(SYS_ppoll)];

/// Child processes.
const PROCESSES: Group = &[
    call!(SYS_clone),
    call!(SYS_vfork),
    call!(SYS_execve),
    call!(SYS_wait4),
    call!(SYS_waitid),
    call!(SYS_pidfd_open),
    call!(SYS_pidfd_send_signal),
    call!(SYS_kill),
    call!(SYS_pipe2),
    call!(SYS_dup2),
    call!(SYS_dup3),
    call!(SYS_socketpair),
    call!(SYS_ppoll),
    call!(SYS_rt_sigaction),
    call!(SYS_setpgid),
    call!(SYS_chdir),
];

/// What a cell does before it confines itself.
const SET_UP_OF_CELLS: Group = &[
    call!(SYS_arch_prctl),
    call!(SYS_set_tid_address),
    call!(SYS_prlimit64),
    call!(SYS_readlink),
    call!(SYS_dup),
    call!(SYS_uname),
    call!(SYS_prctl),
    call!(SYS_epoll_create1),
    call!(SYS_timer_create),
    call!(SYS_getpriority),
    call!(SYS_userfaultfd),
    call!(SYS_socket),
    call!(SYS_setsockopt),
    call!(SYS_openat),
    call!(SYS_open),
    call!(SYS_ioctl),
    call!(SYS_recvmsg),
    call!(SYS_landlock_create_ruleset),
    call!(SYS_landlock_add_rule),
    call!(SYS_landlock_restrict_self),
];
