//! Capabilities and other rights: what a thread has, and that it gets back none.

mod common;

use std::fs;
use std::path::PathBuf;

use caps::{CapSet, Capability};
use common::{CAME_BACK, End, KILLED, begin_reading, call, error, in_child, wait};
use foraker_confine::{
    Enforced, Files, Kind, LauncherFiles, begin, begin_supervisor, confine_launcher, enter, finish,
};

/// A file to be read, and one beside it.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn new(name: &str) -> Place {
        let folder = std::env::temp_dir().join(format!("foraker-confine-{}-{name}", std::process::id()));
        fs::create_dir_all(folder.join("images")).expect("a folder");
        fs::write(folder.join("images/image"), "an image").expect("a file");
        fs::write(folder.join("secret"), "a secret").expect("a file");
        Place { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A line of a thread's status, after its name.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').trim().to_owned()
}

/// The mask of capabilities as the kernel prints it.
fn mask(capabilities: &[Capability]) -> String {
    let had = caps::read(None, CapSet::Permitted).expect("this process' own");
    let bits = capabilities.iter().filter(|c| had.contains(c)).fold(0, |bits, c| bits | c.bitmask());
    format!("{bits:016x}")
}

/// What the kernel says of a child that has entered a kind and sleeps.
fn status_of(kind: Kind) -> String {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // SAFETY: as in `in_child`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        begin_reading(&[]);
        enter(kind);
        let _ = std::io::Write::write_all(&mut writer, b"x");
        loop {
            // Every kind may wait for a futex.
            let word = 0u32;
            // SAFETY: a valid word, for which nobody else waits.
            unsafe { libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAIT, 0, 0i64) };
        }
    }
    let mut byte = [0];
    std::io::Read::read_exact(&mut reader, &mut byte).expect("the child is confined");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the child's status");
    // SAFETY: ends a child that was not waited for yet.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    assert_eq!(wait(pid), End::Signal(libc::SIGKILL));
    status
}

#[test]
fn each_kind_keeps_its_own_capabilities_and_no_others() {
    for kind in Kind::ALL {
        let status = status_of(kind);
        let raised = field(&status, "CapEff") == mask(&[]);
        // The uplink's is for hosts where the limit cannot be raised instead.
        let own = if kind == Kind::Uplink && raised { mask(&[]) } else { mask(kind.capabilities()) };
        for (name, expected) in [
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapEff", own.as_str()),
            ("CapPrm", own.as_str()),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            assert_eq!(field(&status, name), expected, "{kind:?}: {name}");
        }
        // Only who may can empty it; nobody without privileges can use it.
        if mask(&[Capability::CAP_SETPCAP]) != "0000000000000000" {
            assert_eq!(field(&status, "CapBnd"), "0000000000000000", "{kind:?}");
        }
    }
}

#[test]
fn a_capability_that_was_given_up_does_not_come_back() {
    let end = in_child(|| {
        begin_reading(&[]);
        enter(Kind::Channel);
        let admin = [Capability::CAP_NET_ADMIN].into_iter().collect();
        i32::from(caps::set(None, CapSet::Permitted, &admin).is_ok())
    });
    assert_eq!(end, End::Exit(0));
    // Where none are to be kept, there is no call for it.
    let end = in_child(|| {
        begin_reading(&[]);
        enter(Kind::Worker);
        call(libc::SYS_capset, 0);
        CAME_BACK
    });
    assert_eq!(end, KILLED);
}

#[test]
fn nobody_looks_into_a_confined_process() {
    let end = in_child(|| {
        begin_reading(&[]);
        // SAFETY: a call with a number.
        unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }
    });
    assert_eq!(end, End::Exit(0));
}

/// Whether the kernel has Landlock; said if it has not.
fn has_landlock() -> bool {
    let end = in_child(|| match begin(Files::default()) {
        Ok(Enforced::Fully | Enforced::Partly) => 0,
        _ => 1,
    });
    if end != End::Exit(0) {
        println!("skipped: this kernel has no Landlock");
    }
    end == End::Exit(0)
}

/// The error of an attempt, or 0.
fn refused<T>(attempt: std::io::Result<T>) -> i32 {
    attempt.err().map_or(0, |e| e.raw_os_error().unwrap_or(-1))
}

#[test]
fn only_files_that_were_named_are_opened() {
    if !has_landlock() {
        return;
    }
    let place = Place::new("files");
    let images = [place.at("images")];
    let (image, secret, new) = (place.at("images/image"), place.at("secret"), place.at("images/new"));
    // In set-up, and after it.
    for over in [false, true] {
        let attempt = |attempt: &dyn Fn() -> i32| {
            in_child(|| {
                begin_reading(&images);
                if over && finish(Kind::Channel).is_err() {
                    return CAME_BACK;
                }
                attempt()
            })
        };
        let no = End::Exit(libc::EACCES);
        assert_eq!(attempt(&|| refused(fs::read(&image))), End::Exit(0), "over: {over}");
        assert_eq!(attempt(&|| refused(fs::read(&secret))), no, "over: {over}");
        assert_eq!(attempt(&|| refused(fs::read("/etc/passwd"))), no, "over: {over}");
        let status = attempt(&|| refused(fs::read("/proc/self/status")));
        assert_eq!(status, if over { no } else { End::Exit(0) });
        // Afterwards there is no call for these.
        let never = if over { KILLED } else { no };
        assert_eq!(attempt(&|| refused(fs::write(&image, "changed"))), never, "over: {over}");
        assert_eq!(attempt(&|| refused(fs::write(&new, "new"))), never, "over: {over}");
        assert_eq!(attempt(&|| refused(fs::read_dir(place.at("images")))), no, "over: {over}");
        assert_eq!(attempt(&|| refused(fs::remove_file(&secret))), never, "over: {over}");
        assert_eq!(
            attempt(&|| refused(std::process::Command::new("/bin/true").spawn())),
            never,
            "over: {over}"
        );
    }
    assert_eq!(fs::read_to_string(&image).expect("still there"), "an image");
    // Without confinement all of them would have succeeded.
    assert_eq!(
        in_child(|| refused(fs::read(&secret)) + refused(fs::read_dir(place.at("images")))),
        End::Exit(0)
    );
    assert_eq!(in_child(|| refused(std::process::Command::new("/bin/true").status())), End::Exit(0));
}

#[test]
fn files_to_be_written_are_written_in_set_up_and_no_others() {
    if !has_landlock() {
        return;
    }
    let place = Place::new("written");
    let (there, new, beside) = (place.at("there"), place.at("images/new"), place.at("beside"));
    fs::write(&there, "long before").expect("a file");
    let written = vec![there.clone(), new.clone()];
    let end = in_child(|| {
        begin(Files { images: Vec::new(), written: written.clone() }).expect("begun");
        let written = [&there, &new].map(|path| refused(fs::write(path, "a trace")));
        // To write is not to read; a file that is there is named itself, not its folder.
        let others = [
            refused(fs::read(&there)),
            refused(fs::write(&beside, "x")),
            refused(fs::read(place.at("secret"))),
        ];
        i32::from(written != [0; 2] || others != [libc::EACCES; 3])
    });
    assert_eq!(end, End::Exit(0));
    assert_eq!([&there, &new].map(|path| fs::read_to_string(path).expect("written")), ["a trace"; 2]);
    let end = in_child(|| {
        begin(Files { images: Vec::new(), written: written.clone() }).expect("begun");
        finish(Kind::Launch).expect("confined");
        refused(fs::write(&there, "x"))
    });
    assert_eq!(end, KILLED, "when set-up is over");
}

/// The supervisor has one folder, and no capability from the first moment on; what it does there is a file's business.
#[test]
fn the_supervisor_has_its_state_directory_and_nothing_else() {
    if !has_landlock() {
        return;
    }
    let place = Place::new("state");
    let (state, secret) = (place.at("images"), place.at("secret"));
    let link = place.at("images/link");
    std::os::unix::fs::symlink(&secret, &link).expect("a link");
    let attempt = |attempt: &dyn Fn() -> i32| {
        in_child(|| {
            begin_supervisor(&state).expect("begun");
            if !caps::read(None, CapSet::Permitted).is_ok_and(|had| had.is_empty()) {
                return CAME_BACK;
            }
            attempt()
        })
    };
    let (yes, no) = (End::Exit(0), End::Exit(libc::EACCES));
    let (new, newer) = (state.join("new"), state.join("newer"));
    assert_eq!(attempt(&|| refused(fs::write(&new, "new")) + refused(fs::rename(&new, &newer))), yes);
    assert_eq!(attempt(&|| refused(fs::read_dir(&state)) + refused(fs::read(&newer))), yes);
    assert_eq!(attempt(&|| refused(fs::remove_file(&newer)) + refused(fs::create_dir(&new))), yes);
    assert_eq!(attempt(&|| refused(fs::read(&secret))), no);
    assert_eq!(attempt(&|| refused(fs::read(&link))), no, "a link leads nowhere");
    assert_eq!(attempt(&|| refused(fs::write(place.at("beside"), "x"))), no);
    assert_eq!(attempt(&|| refused(fs::remove_file(&secret))), no);
    assert_eq!(attempt(&|| refused(fs::read_dir(&place.folder))), no);
    for path in ["/proc/self/status", "/etc/passwd", "/dev/kvm", "/sys/fs/cgroup/cgroup.procs"] {
        let end = attempt(&|| refused(fs::File::open(path)));
        assert!(end == no || end == End::Exit(libc::ENOENT), "{path}: {end:?}");
    }
    assert_eq!(attempt(&|| refused(std::process::Command::new("/proc/self/exe").spawn())), no);
    // Its main thread, and those that open files, when set-up is over.
    for kind in [Kind::Main, Kind::Keeper] {
        let end = attempt(&|| {
            enter(kind);
            refused(fs::read(state.join("image")))
        });
        assert_eq!(end, KILLED, "{kind:?} opens nothing");
    }
    for kind in [Kind::Control, Kind::Store] {
        let end = attempt(&|| {
            enter(kind);
            refused(fs::read(state.join("image"))) + refused(fs::read(&secret))
        });
        assert_eq!(end, no, "{kind:?}");
    }
}

/// The launcher runs one program, its own, with the capabilities that cells need.
#[test]
fn the_launcher_runs_its_own_program_and_no_other() {
    if !has_landlock() {
        return;
    }
    let place = Place::new("launcher");
    let attempt = |attempt: &dyn Fn() -> i32| {
        in_child(|| {
            let files = LauncherFiles { state: place.at("images"), socket_folder: None };
            confine_launcher(&files).expect("confined");
            attempt()
        })
    };
    let status = |program: &str| {
        let status = std::process::Command::new(program).arg("--list").stdout(std::io::stderr()).status();
        status.map_or_else(|e| e.raw_os_error().unwrap_or(-1), |status| status.code().unwrap_or(-1))
    };
    assert_eq!(attempt(&|| status("/proc/self/exe")), End::Exit(0));
    for other in ["/bin/true", "/bin/sh"] {
        assert_eq!(attempt(&|| status(other)), End::Exit(libc::EACCES), "{other}");
    }
    assert_eq!(attempt(&|| refused(fs::read(place.at("images/image")))), End::Exit(0));
    for (name, written) in [("secret", false), ("images/new", true)] {
        let path = place.at(name);
        let end =
            attempt(&|| refused(if written { fs::write(&path, "x") } else { fs::read(&path).map(drop) }));
        assert_eq!(end, End::Exit(libc::EACCES), "{name}");
    }
    let dropped = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_MODULE, Capability::CAP_KILL];
    let end = attempt(&|| {
        let sets = [CapSet::Permitted, CapSet::Effective];
        let has = |set, capability| caps::has_cap(None, set, capability).unwrap_or(true);
        let kept = dropped.iter().any(|capability| sets.iter().any(|set| has(*set, *capability)));
        // Cells, which are run by it, get none back either.
        i32::from(kept)
    });
    assert_eq!(end, End::Exit(0));
}

/// Landlock, from version 6 on, keeps signals within.
#[test]
fn no_signal_leaves_the_process() {
    let outside = std::process::id().cast_signed();
    let end = in_child(|| match begin(Files::default()) {
        // SAFETY: asks whether a signal could be sent.
        Ok(Enforced::Fully) if unsafe { libc::kill(outside, 0) } == 0 => CAME_BACK,
        Ok(Enforced::Fully) => error(),
        _ => 0,
    });
    match end {
        End::Exit(0) => println!("skipped: this kernel's Landlock is too old"),
        end => assert_eq!(end, End::Exit(libc::EPERM)),
    }
}

/// The main thread starts threads, which restrict themselves further, and never a process.
#[test]
fn threads_can_be_started_and_processes_cannot() {
    for (starter, started) in
        [(Kind::Channel, Kind::Published), (Kind::Keeper, Kind::Console), (Kind::Keeper, Kind::Sender)]
    {
        let end = in_child(|| {
            begin_reading(&[]);
            finish(starter).expect("confined");
            let thread = std::thread::Builder::new().name("another".to_owned()).spawn(move || {
                enter(started);
                7
            });
            thread.map_or(1, |thread| thread.join().unwrap_or(2))
        });
        assert_eq!(end, End::Exit(7), "{starter:?}: {started:?}");
    }
    // Threads of clients are of the kind of who starts them, and need no more than to be started.
    let end = in_child(|| {
        begin_reading(&[]);
        enter(Kind::Control);
        let thread = std::thread::Builder::new().name("another".to_owned()).spawn(|| {
            call(libc::SYS_getpeername, -1);
            call(libc::SYS_getppid, 0);
            CAME_BACK
        });
        thread.map_or(1, |thread| thread.join().unwrap_or(2))
    });
    assert_eq!(end, KILLED);
    let end = in_child(|| {
        begin_reading(&[]);
        finish(Kind::Channel).expect("confined");
        let thread = std::thread::spawn(|| {
            enter(Kind::Published);
            // Its creator may.
            call(libc::SYS_memfd_create, -1)
        });
        thread.join().map_or(1, |_| CAME_BACK)
    });
    assert_eq!(end, KILLED);
    for kind in [Kind::Channel, Kind::Launch, Kind::Control, Kind::Keeper, Kind::Main] {
        let end = in_child(|| {
            begin_reading(&[]);
            finish(kind).expect("confined");
            // SAFETY: the child would end at once.
            if unsafe { libc::fork() } == 0 {
                // SAFETY: as above.
                unsafe { libc::_exit(0) };
            }
            CAME_BACK
        });
        assert_eq!(end, KILLED, "{kind:?}");
    }
    // Its flags are in memory, where no filter looks.
    let clone3 = |kind| {
        in_child(|| {
            begin_reading(&[]);
            finish(kind).expect("confined");
            if call(libc::SYS_clone3, 0) == -1 { error() } else { CAME_BACK }
        })
    };
    assert_eq!(clone3(Kind::Channel), End::Exit(libc::ENOSYS));
    assert_eq!(clone3(Kind::Launch), KILLED);
}

/// Nobody's capabilities and no root: the same holds.
#[test]
fn a_user_without_privileges_is_confined_as_well() {
    const NOBODY: u32 = 65_534;
    let end = in_child(|| {
        // SAFETY: changes this child's user; refused, it has none to give up.
        unsafe { libc::setuid(NOBODY) };
        begin_reading(&[]);
        let before = refused(fs::read("/etc/passwd"));
        enter(Kind::Worker);
        if ![0, libc::EACCES].contains(&before) {
            return CAME_BACK;
        }
        call(libc::SYS_socket, 0);
        CAME_BACK
    });
    assert_eq!(end, KILLED);
}
