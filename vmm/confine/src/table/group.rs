//! Groups of system calls that one purpose needs.

use crate::call::{Condition, Group, Rule, call, rule};
use crate::request::*;

#[expect(clippy::cast_sign_loss, reason = "the kernel's constants are bit patterns")]
const fn bits(value: i32) -> u32 {
    value as u32
}

/// Mappings and protections without the right to execute.
const NOT_EXECUTABLE: &[Rule] = &[rule!("without PROT_EXEC", Condition::without(2, bits(libc::PROT_EXEC)))];

/// `futex` without the operations on priorities, which no lock here uses.
const PLAIN_FUTEX: &[Rule] = {
    /// Whether a futex is one process' own, and the clock: no operations of their own.
    const OPERATION: u32 = !bits(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    &[
        rule!("FUTEX_WAKE", Condition::masked(1, OPERATION, bits(libc::FUTEX_WAKE))),
        rule!("FUTEX_WAIT_BITSET", Condition::masked(1, OPERATION, bits(libc::FUTEX_WAIT_BITSET))),
        rule!("FUTEX_WAIT", Condition::masked(1, OPERATION, bits(libc::FUTEX_WAIT))),
    ]
};

const ADVICE: &[Rule] = &[
    rule!("MADV_DONTNEED", Condition::is(2, bits(libc::MADV_DONTNEED))),
    rule!("MADV_REMOVE", Condition::is(2, bits(libc::MADV_REMOVE))),
    rule!("MADV_POPULATE_WRITE", Condition::is(2, bits(libc::MADV_POPULATE_WRITE))),
    rule!("MADV_HUGEPAGE", Condition::is(2, bits(libc::MADV_HUGEPAGE))),
    // Ends of stacks, by newer C libraries.
    rule!("MADV_GUARD_INSTALL", Condition::is(2, 102)),
];

/// Signals to threads of this process: those that call a worker out of its guest, and the end of the process by its own fault.
const OWN_SIGNALS: &[Rule] = &[
    // Two real-time signals are the C library's.
    rule!("SIGRTMIN, own process", Condition::own_process(0), Condition::is(2, 34)),
    rule!("SIGABRT, own process", Condition::own_process(0), Condition::is(2, bits(libc::SIGABRT))),
];

const FLAGS_OF_DESCRIPTORS: &[Rule] = &[
    // Debug builds look whether a descriptor is open before they close it, and whether it waits.
    rule!("F_GETFD", Condition::is(1, bits(libc::F_GETFD))),
    rule!("F_GETFL", Condition::is(1, bits(libc::F_GETFL))),
    rule!("F_DUPFD_CLOEXEC", Condition::is(1, bits(libc::F_DUPFD_CLOEXEC))),
];

/// What every thread needs: locks, the heap, messages, the time, signals, its own end. Whether a clock is read without the kernel's help is the host's to say.
pub(crate) const EVERY: Group = &[
    call!(SYS_futex, PLAIN_FUTEX),
    call!(SYS_write),
    call!(SYS_close),
    call!(SYS_fcntl, FLAGS_OF_DESCRIPTORS),
    call!(SYS_brk),
    call!(SYS_mmap, NOT_EXECUTABLE),
    call!(SYS_mprotect, NOT_EXECUTABLE),
    call!(SYS_mremap),
    call!(SYS_munmap),
    call!(SYS_madvise, ADVICE),
    call!(SYS_getrandom),
    call!(SYS_clock_gettime),
    call!(SYS_gettid),
    call!(SYS_getpid),
    call!(SYS_tgkill, OWN_SIGNALS),
    call!(SYS_rt_sigprocmask),
    call!(SYS_rt_sigreturn),
    call!(SYS_restart_syscall),
    call!(SYS_sigaltstack),
    call!(SYS_exit),
    call!(SYS_exit_group),
];

/// Entering guests. Alone, as it is what a worker does most: the first comparison of its filter's `ioctl`.
pub(crate) const ENTER_GUEST: Group = &[call!(SYS_ioctl, &[KVM_RUN])];

/// Making machines, resetting them, and giving them memory.
pub(crate) const MACHINES: Group = &[call!(
    SYS_ioctl,
    &[
        KVM_SET_USER_MEMORY_REGION,
        KVM_SET_SREGS,
        KVM_GET_SREGS,
        KVM_SET_XSAVE,
        KVM_GET_XSAVE,
        KVM_SET_DEBUGREGS,
        KVM_SET_VCPU_EVENTS,
        KVM_GET_MSRS,
        KVM_GET_TSC_KHZ,
        KVM_IOEVENTFD,
        KVM_CREATE_VM,
        KVM_GET_VCPU_MMAP_SIZE,
        KVM_ENABLE_CAP,
        KVM_CREATE_VCPU,
        KVM_SET_CPUID2,
        KVM_SET_XCRS,
        KVM_SET_MSRS,
        KVM_CHECK_EXTENSION,
    ]
)];

/// The state of a core that does not run, whose last exit is completed before, and the memory of its machine.
pub(crate) const CORES: Group = &[call!(
    SYS_ioctl,
    &[KVM_GET_SREGS, KVM_GET_XSAVE, KVM_SET_SREGS, KVM_SET_XSAVE, KVM_SET_USER_MEMORY_REGION]
)];

/// Filling guests' memory.
pub(crate) const FILL_MEMORY: Group = &[call!(SYS_ioctl, &[UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_WAKE])];

/// Moving frames between the TAP device and guests.
pub(crate) const FRAMES: Group = &[call!(SYS_read), call!(SYS_readv), call!(SYS_writev)];

/// Waking a worker, and setting its timer.
pub(crate) const CALL_WORKERS: Group = &[call!(SYS_timer_settime)];

/// Looking how long a worker waited for a processor.
pub(crate) const CONTENTION: Group = &[call!(SYS_pread64)];

/// Writing consoles, to outputs that may be full.
pub(crate) const CONSOLES: Group = &[call!(SYS_poll)];

/// Giving way to another thread.
pub(crate) const YIELD: Group = &[call!(SYS_sched_yield)];

/// Sleeping until a time.
pub(crate) const SLEEP: Group = &[call!(SYS_clock_nanosleep)];

/// A worker's sleep.
pub(crate) const VIGIL: Group = &[
    call!(SYS_epoll_pwait2),
    call!(
        SYS_epoll_ctl,
        &[
            rule!("EPOLL_CTL_ADD", Condition::is(1, bits(libc::EPOLL_CTL_ADD))),
            rule!("EPOLL_CTL_DEL", Condition::is(1, bits(libc::EPOLL_CTL_DEL))),
        ]
    ),
    // Reads its event.
    call!(SYS_read),
];

/// Finding what of a guest's memory is there, and on which processor a thread runs.
pub(crate) const LOOK: Group = &[call!(SYS_lseek), call!(SYS_getcpu)];

/// Places of two threads beside each other, and precedence for one.
pub(crate) const SCHEDULING: Group = &[
    call!(SYS_sched_setattr, &[rule!("of itself", Condition::is(0, 0))]),
    call!(SYS_sched_getaffinity),
    call!(SYS_sched_setaffinity),
];

/// Messages on a stream between two processes.
pub(crate) const CHANNEL: Group =
    &[call!(SYS_read), call!(SYS_recvfrom), call!(SYS_sendto, &[rule!("to its peer", Condition::null(4))])];

/// Streams that come beside messages.
pub(crate) const HANDED_OVER: Group = &[call!(SYS_recvmsg)];

/// A stream that was handed over, on which nobody waits for ever, and what says that a guest has stopped.
pub(crate) const LOOK_ON: Group = &[
    call!(
        SYS_setsockopt,
        &[rule!(
            "SO_SNDTIMEO",
            Condition::is(1, bits(libc::SOL_SOCKET)),
            Condition::is(2, bits(libc::SO_SNDTIMEO))
        )]
    ),
    call!(SYS_ioctl, &[FIONBIO]),
    call!(SYS_eventfd2),
];

/// Requests to the kernel's table of neighbours.
pub(crate) const NEIGHBOURS: Group = &[
    call!(
        SYS_socket,
        &[rule!(
            "AF_NETLINK, NETLINK_ROUTE",
            Condition::is(0, bits(libc::AF_NETLINK)),
            Condition::is(1, bits(libc::SOCK_RAW | libc::SOCK_CLOEXEC)),
            Condition::is(2, bits(libc::NETLINK_ROUTE))
        )]
    ),
    call!(SYS_sendto, &[rule!("to its peer", Condition::null(4))]),
    call!(SYS_recvfrom),
];

/// The index of an interface, on a socket that is open.
pub(crate) const INTERFACE: Group = &[call!(SYS_ioctl, &[rule!("SIOCGIFINDEX", Condition::is(1, 0x8933))])];

/// Streams between clients and guests: TCP, version 4 or 6.
const TCP: &[Rule] = {
    /// Flags that may come with the type.
    const TYPE: u32 = !bits(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    &[
        rule!(
            "AF_INET, SOCK_STREAM",
            Condition::is(0, bits(libc::AF_INET)),
            Condition::masked(1, TYPE, bits(libc::SOCK_STREAM))
        ),
        rule!(
            "AF_INET6, SOCK_STREAM",
            Condition::is(0, bits(libc::AF_INET6)),
            Condition::masked(1, TYPE, bits(libc::SOCK_STREAM))
        ),
    ]
};

/// Passing connections of published ports on.
pub(crate) const RELAY: Group = &[
    call!(SYS_epoll_wait),
    call!(SYS_epoll_ctl),
    call!(SYS_recvfrom),
    call!(SYS_sendto, &[rule!("to its peer", Condition::null(4))]),
    call!(SYS_read),
    call!(SYS_writev),
    call!(SYS_accept4),
    call!(SYS_socket, TCP),
    call!(SYS_connect),
    call!(
        SYS_getsockopt,
        &[rule!(
            "SO_ERROR",
            Condition::is(1, bits(libc::SOL_SOCKET)),
            Condition::is(2, bits(libc::SO_ERROR))
        )]
    ),
    call!(
        SYS_setsockopt,
        &[rule!(
            "TCP_NODELAY",
            Condition::is(1, bits(libc::IPPROTO_TCP)),
            Condition::is(2, bits(libc::TCP_NODELAY))
        )]
    ),
    call!(SYS_shutdown),
];

/// Listening on a port of the host.
pub(crate) const LISTEN: Group = &[
    call!(SYS_socket, TCP),
    call!(
        SYS_setsockopt,
        &[rule!(
            "SO_REUSEADDR",
            Condition::is(1, bits(libc::SOL_SOCKET)),
            Condition::is(2, bits(libc::SO_REUSEADDR))
        )]
    ),
    call!(SYS_bind),
    call!(SYS_listen),
    call!(SYS_getsockname),
    call!(SYS_ioctl, &[FIONBIO]),
    call!(SYS_epoll_create1),
    call!(SYS_epoll_ctl),
    call!(SYS_eventfd2),
];

/// Reading files. Which, is [Landlock's](crate::files) to say; here, that none is made or changed.
pub(crate) const READ_FILES: Group = &[
    call!(
        SYS_openat,
        &[rule!(
            "to read",
            Condition::without(2, bits(libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC))
        )]
    ),
    call!(SYS_read),
    call!(SYS_lseek),
    call!(SYS_statx),
    call!(SYS_newfstatat),
];

/// Memory of images.
pub(crate) const TEMPLATES: Group = &[call!(SYS_memfd_create), call!(SYS_ftruncate)];

/// Starting threads that inherit what their starter may do, and nothing else: [`crate::filter`] has `clone3`, whose flags no filter sees, answered as on a kernel without it, so that the C library
/// says them in `clone`.
pub(crate) const START_THREADS: Group = {
    const OF_A_THREAD: u32 = bits(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND);
    &[
        call!(SYS_clone, &[rule!("threads", Condition::with(0, OF_A_THREAD))]),
        call!(SYS_clone3),
        call!(SYS_set_robust_list),
        call!(SYS_rseq),
        call!(SYS_sched_getaffinity),
        call!(SYS_prctl, &[rule!("PR_SET_NAME", Condition::is(0, bits(libc::PR_SET_NAME)))]),
    ]
};

/// A new thread takes from itself what it may do and does not need.
pub(crate) const RESTRICT_THREADS: Group = &[
    call!(SYS_prctl, &[rule!("PR_SET_NO_NEW_PRIVS", Condition::is(0, bits(libc::PR_SET_NO_NEW_PRIVS)))]),
    call!(SYS_capget),
    call!(SYS_capset),
    call!(SYS_seccomp),
];

/// Ending a cell: its workers' timers.
pub(crate) const END_CELL: Group = &[call!(SYS_timer_delete)];
