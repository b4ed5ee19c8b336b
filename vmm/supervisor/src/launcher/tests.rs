//! A launcher that is a thread, and cells that are this test program: it runs [`acts_as_a_cell`] alone.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::thread::JoinHandle;

use foraker_api::system::Discipline;
use foraker_api::{Amounts, GatekeeperSettings};

use super::process::Process;
use super::*;
use crate::directory::{self, Directory};
use crate::logs::LogSizes;
use crate::supervisor::{Config, Supervisor};

/// Cells that may be started.
const CELLS: usize = 2;
/// Has a cell close its channel and not end.
const LINGER: &[u8; 1] = b"l";
const SECOND: Duration = Duration::from_secs(1);

fn cells() -> Cells {
    let filter = ["--ignored", "--exact", "--nocapture", "launcher::tests::acts_as_a_cell", "--"];
    Cells {
        count: CELLS,
        first_subnet: Ipv4Addr::new(10, 200, 0, 0),
        arguments: filter.map(OsString::from).into(),
        socket: None,
    }
}

/// What a cell of these tests does: says its command line, and ends when it is told anything or its channel is closed.
#[test]
#[ignore = "not by itself: the other tests run it in processes of their own"]
fn acts_as_a_cell() {
    // SAFETY: the standard input of this process, which nobody else reads.
    let mut channel = unsafe { UnixStream::from_raw_fd(0) };
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // Nobody may listen any more.
    let _ = channel.write_all(arguments.join(" ").as_bytes());
    let _ = writeln!(io::stdout(), "a line");
    let mut told = [0];
    if channel.read(&mut told).is_ok() && told == *LINGER {
        // Its channel is closed, and it does not end.
        drop(channel);
        std::thread::sleep(60 * SECOND);
    }
}

struct Thread {
    launcher: Launcher,
    thread: JoinHandle<io::Result<()>>,
}

/// A launcher without control groups: it would move the tests' own process.
fn launcher(cells: Cells) -> Thread {
    let (ours, theirs) = client::pair().unwrap();
    let thread = std::thread::spawn(move || Process::without_weights(cells).run(UnixStream::from(theirs)));
    // A process that has ended stands for the launcher's: nobody waits for it.
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    let launcher = Launcher::of(UnixStream::from(ours), ended.id()).unwrap();
    ended.wait().unwrap();
    Thread { launcher, thread }
}

/// What a cell says first.
fn said(cell: &mut Started) -> String {
    let mut bytes = [0; 512];
    let length = cell.channel.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn error(result: io::Result<Started>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn a_cell_is_started_by_its_number_and_one_at_a_time() {
    let Thread { launcher, thread } = launcher(cells());
    let state = tempfile::tempdir().unwrap();
    // This process stands for the launcher's, whose mark cells inherit.
    let marked = Directory::open(state.path()).unwrap();
    assert!(marked.is_vacant().unwrap());
    let mut cell = launcher.start_cell(1).unwrap();
    drop(marked);
    let next = directory::tests::soon(state.path());
    let line = said(&mut cell);
    assert!(
        line.ends_with("-- --number 1 --subnet 10.201.0.0/16 --subnets 10.200.0.0-10.201.255.255"),
        "{line}"
    );
    assert_eq!(error(launcher.start_cell(1)), Some(libc::EBUSY));
    assert_eq!(error(launcher.start_cell(CELLS)), Some(libc::EINVAL));
    assert!(!cell.process.wait(Duration::ZERO).unwrap());
    assert!(!next.is_vacant().unwrap(), "the cell has the mark");
    // Its console, its channel and its end are the supervisor's; the mark lasts as long as it does.
    cell.channel.write_all(b"e").unwrap();
    let mut console = String::new();
    cell.console.read_to_string(&mut console).unwrap();
    assert!(console.contains("a line\n"), "{console}");
    assert!(cell.process.wait(10 * SECOND).unwrap());
    assert!(next.is_vacant().unwrap(), "nobody has the mark any more");
    let again = launcher.start_cell(1).unwrap();
    assert_ne!(again.process.process(), cell.process.process());
    launcher.weigh(1, Asked { shares: 1, promised: 1 });
    launcher.kill(1).unwrap();
    assert!(again.process.wait(10 * SECOND).unwrap());
    // It is not there to be killed, and never was.
    launcher.kill(1).unwrap();
    launcher.kill(77).unwrap();
    drop(launcher);
    thread.join().unwrap().unwrap();
}

#[test]
fn no_cell_outlives_the_supervisor() {
    let Thread { launcher, thread } = launcher(cells());
    let mut idle = launcher.start_cell(0).unwrap();
    // The launcher is a thread of this process here: the other cell would inherit it.
    // SAFETY: an open descriptor.
    unsafe { libc::fcntl(idle.channel.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    let mut lingers = launcher.start_cell(1).unwrap();
    let _ = (said(&mut idle), said(&mut lingers));
    lingers.channel.write_all(LINGER).unwrap();
    let [idle, lingers] = [idle, lingers].map(|cell| cell.process);
    drop(launcher);
    // One ends by itself, the other is ended.
    assert!(idle.wait(3 * SECOND).unwrap());
    assert!(!lingers.wait(Duration::ZERO).unwrap());
    thread.join().unwrap().unwrap();
    assert!(lingers.wait(Duration::ZERO).unwrap());
}

#[test]
fn what_is_no_request_ends_the_launcher_and_the_cells() {
    let long = [b' '; 2 * PACKET];
    for nonsense in [&b"{}"[..], b"{\"Start\":-1}", b"{\"Start\":0,\"Kill\":0}", b"\xff", &long] {
        let Thread { launcher, thread } = launcher(cells());
        let cell = launcher.start_cell(0).unwrap();
        launcher.socket().send_with_fds(&[nonsense], &[0, 0, 0]).unwrap();
        let Started { process, channel, console } = cell;
        drop((channel, console));
        assert!(thread.join().unwrap().is_err(), "{nonsense:?}");
        assert!(process.wait(Duration::ZERO).unwrap());
        assert!(launcher.start_cell(0).is_err());
    }
}

#[test]
fn at_an_end_in_order_the_socket_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    for in_order in [false, true] {
        std::fs::write(&socket, "").unwrap();
        let Thread { launcher, thread } = launcher(Cells { socket: Some(socket.clone()), ..cells() });
        if in_order {
            send(launcher.socket(), &Request::End, &[]).unwrap();
        }
        drop(launcher);
        thread.join().unwrap().unwrap();
        assert_eq!(socket.exists(), !in_order);
    }
}

/// Whoever starts cells at once gets the cell that he asked for.
#[test]
fn answers_are_not_mixed_up() {
    let Thread { launcher, thread } = launcher(cells());
    let lines = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..CELLS {
            let (launcher, lines) = (&launcher, &lines);
            scope.spawn(move || {
                let mut cell = launcher.start_cell(number).unwrap();
                let line = said(&mut cell);
                lines.lock().unwrap().push(line.contains(&format!("--number {number} ")));
            });
        }
    });
    assert_eq!(lines.into_inner().unwrap(), [true; CELLS]);
    drop(launcher);
    thread.join().unwrap().unwrap();
}

/// Here each cell says its command line where a message is expected.
#[test]
fn a_cell_that_cannot_be_understood_is_ended_and_started_again() {
    let Thread { launcher, thread } = launcher(Cells { count: 1, ..cells() });
    let state = tempfile::tempdir().unwrap();
    let directory = Directory::open(state.path()).unwrap();
    let gatekeeper =
        GatekeeperSettings { budget: Amounts::default(), most_waiting: 1, discipline: Discipline::Fair };
    let config = Config {
        cells: 1,
        first_subnet: Ipv4Addr::new(10, 200, 0, 0),
        gatekeeper,
        log_sizes: LogSizes::default(),
    };
    // Returns when it has tried several times, and no cell is left.
    let refused = Supervisor::start(config, directory, launcher).unwrap_err();
    assert!(refused.to_string().contains("no cell can be started"), "{refused}");
    thread.join().unwrap().unwrap();
}
