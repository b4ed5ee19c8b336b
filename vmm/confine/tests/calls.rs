//! Every system call, tried from every kind of thread: what is not in the table ends the process, and what is in it does not.

mod common;

use std::collections::BTreeSet;

use common::{CAME_BACK, End, KILLED, begin_reading, call, error, in_child};
use foraker_confine::{Kind, enter};

/// Newest system call that is tried, and a few beyond it.
const LAST: i64 = 470;
/// `uretprobe` and `uprobe`: the kernel lets them past every filter (from Linux 6.14 on), as only code that it has put into a process itself gets anywhere with
/// them. From elsewhere they do nothing, or end the process.
const PAST_EVERY_FILTER: [i64; 2] = [335, 336];
/// The bit of the other interface of 64-bit kernels (x32).
const X32: i64 = 0x4000_0000;

/// Tries a call from a thread of a kind: a child for each, as most do not come back.
fn try_call(kind: Kind, number: i64, argument: i64) -> End {
    in_child(|| {
        enter(kind);
        call(number, argument);
        CAME_BACK
    })
}

/// What of a kind went wrong, one line for each.
fn complaints(kind: Kind) -> Vec<String> {
    let allowed: BTreeSet<i64> = kind.calls().map(|call| call.number).collect();
    let mut complaints = Vec::new();
    for number in (0..=LAST).filter(|number| !PAST_EVERY_FILTER.contains(number)) {
        // By its other name, too, what is allowed is not.
        let number = if allowed.contains(&number) { number | X32 } else { number };
        let end = try_call(kind, number, 0);
        if end != KILLED {
            complaints.push(format!("{number} is not in the table, and ended with {end:?}"));
        }
    }
    for call in kind.calls().filter(|call| call.rules.is_empty()) {
        // Ends the thread or the process, or returns from a handler that was not entered.
        let ends = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn];
        if ends.contains(&call.number) || call.number == libc::SYS_clone3 {
            continue;
        }
        let end = try_call(kind, call.number, -1);
        if end != End::Exit(CAME_BACK) {
            complaints.push(format!("{} is in the table, and ended with {end:?}", call.name()));
        }
    }
    complaints
}

/// Runs in a child, which is confined as a whole; says what went wrong through a pipe.
fn tried_from(kind: Kind) -> String {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    let end = in_child(|| {
        // It takes longer than what it tries.
        // SAFETY: a call with a number.
        unsafe { libc::alarm(300) };
        begin_reading(&[]);
        let all = complaints(kind).join("\n");
        // SAFETY: ends what is read.
        i32::from(std::io::Write::write_all(&mut writer, all.as_bytes()).is_err())
    });
    drop(writer);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut reader, &mut said).expect("read");
    if end != End::Exit(0) {
        said.push_str(&format!("ended with {end:?}"));
    }
    said
}

#[test]
fn what_is_not_in_the_table_ends_the_process() {
    for kind in Kind::ALL {
        let said = tried_from(kind);
        assert!(said.is_empty(), "{kind:?}:\n{said}");
    }
}

/// Without a filter the same calls come back: the test above would see a missing one.
#[test]
fn the_attempt_itself_is_harmless() {
    let end = in_child(|| {
        call(libc::SYS_personality, -1);
        CAME_BACK
    });
    assert_eq!(end, End::Exit(CAME_BACK));
    // Nor does a process that has not begun confine its threads.
    assert_eq!(try_call(Kind::Worker, libc::SYS_getppid, 0), End::Exit(CAME_BACK));
}

/// The 32-bit interface has numbers of its own.
#[test]
fn the_other_interface_is_closed() {
    let end = in_child(|| {
        begin_reading(&[]);
        enter(Kind::Worker);
        // SAFETY: `getpid` of the 32-bit interface, which changes RAX alone.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") 20_i64 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
        };
        CAME_BACK
    });
    // The second where the kernel does not have it.
    assert!([KILLED, End::Signal(libc::SIGSEGV)].contains(&end), "{end:?}");
}

/// Tries something from a thread of a kind; none of these may come back.
fn is_killed(kind: Kind, what: &str, attempt: impl FnOnce() -> i64) {
    let end = in_child(|| {
        begin_reading(&[]);
        enter(kind);
        attempt();
        CAME_BACK
    });
    assert_eq!(end, KILLED, "{kind:?}: {what}");
}

/// A call with these arguments.
fn with(number: i64, a: i64, b: i64, c: i64) -> i64 {
    // SAFETY: the arguments are numbers, or null.
    unsafe { libc::syscall(number, a, b, c, 0i64, 0i64, 0i64) }
}

#[test]
fn arguments_count() {
    const TIOCSTI: i64 = 0x5412;
    const SIOCSIFFLAGS: i64 = 0x8914;
    const KVM_CREATE_DEVICE: i64 = 0xc00c_aee0;
    const KVM_SET_GUEST_DEBUG: i64 = 0x4048_ae9b;
    const FUTEX_LOCK_PI: i64 = 6;
    for kind in Kind::ALL {
        for (name, request) in [
            ("type into a terminal", TIOCSTI),
            ("change an interface", SIOCSIFFLAGS),
            ("make a device in KVM", KVM_CREATE_DEVICE),
            ("debug a guest", KVM_SET_GUEST_DEBUG),
        ] {
            is_killed(kind, name, || with(libc::SYS_ioctl, -1, request, 0));
        }
        is_killed(kind, "lock with priorities", || with(libc::SYS_futex, 0, FUTEX_LOCK_PI, 0));
        let other = i64::from(std::process::id());
        is_killed(kind, "signal another process", || with(libc::SYS_tgkill, other, other, 34));
        is_killed(kind, "signal anything to its own", || {
            with(libc::SYS_tgkill, std::process::id().into(), -1, libc::SIGKILL.into())
        });
        for family in [libc::AF_UNIX, libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG] {
            let kind_of = libc::SOCK_STREAM.into();
            is_killed(kind, "a socket of another family", || {
                with(libc::SYS_socket, family.into(), kind_of, 0)
            });
        }
        is_killed(kind, "move a descriptor", || with(libc::SYS_fcntl, 0, libc::F_SETOWN.into(), 0));
        is_killed(kind, "have memory merged", || with(libc::SYS_madvise, 0, 0, libc::MADV_MERGEABLE.into()));
        // What these make is Landlock's to bound.
        if ![Kind::Store, Kind::Control, Kind::Cores].contains(&kind) {
            is_killed(kind, "make a file", || {
                with(libc::SYS_openat, libc::AT_FDCWD.into(), 0, (libc::O_CREAT | libc::O_WRONLY).into())
            });
        }
    }
}

#[test]
fn no_memory_becomes_executable() {
    const LENGTH: i64 = 4096;
    let map = |protection: i32| {
        let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses.
        unsafe { libc::syscall(libc::SYS_mmap, 0i64, LENGTH, i64::from(protection), flags, -1i64, 0i64) }
    };
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    for kind in Kind::ALL {
        is_killed(kind, "map it writable and executable", || map(read | write | execute));
        is_killed(kind, "map it executable", || map(read | execute));
        is_killed(kind, "make it executable", || {
            let address = map(read | write);
            with(libc::SYS_mprotect, address, LENGTH, (read | execute).into())
        });
    }
    // In set-up, and for kinds without a filter, it is the kernel that refuses (from Linux 6.3 on).
    let end = in_child(|| {
        begin_reading(&[]);
        if map(read | write | execute) != -1 {
            return CAME_BACK;
        }
        error()
    });
    let known = in_child(|| {
        const PR_GET_MDWE: i32 = 66;
        // SAFETY: a call with numbers.
        i32::from(unsafe { libc::prctl(PR_GET_MDWE, 0, 0, 0, 0) } >= 0)
    });
    if known == End::Exit(1) {
        assert_eq!(end, End::Exit(libc::EACCES), "writable and executable memory in set-up");
    } else {
        println!("not tried in set-up: this kernel cannot refuse executable memory");
    }
}
