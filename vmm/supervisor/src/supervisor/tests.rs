//! The supervisor with cells that are there, without processes.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::mpsc::channel;

use foraker_api::system::Discipline;
use foraker_api::{Action, Amounts, Filter, GatekeeperSettings, GuestSpec, OwnerSettings, Restart};

use super::*;
use crate::admission::OVERHEAD;
use crate::channel::{Ended, Order, monotonic_ns};
use crate::images::Images;
use crate::refused::Refused;
use crate::store::Store;
use state::{CellSlot, Records};

fn order() -> Order {
    Order {
        image: "image".into(),
        name: "guest".to_owned(),
        memory: 1 << 20,
        memory_provision: 0,
        large_pages: false,
        cores: 1,
        arguments: Vec::new(),
        environment: Vec::new(),
        network: Some(foraker_cell::NetworkSpec::default()),
        console_limit: 0,
        publish: Vec::new(),
        processor: foraker_cell::ProcessorSpec::default(),
        keep_core: false,
        immediate: false,
        owner: "default".to_owned(),
        priority: 0,
    }
}

impl Tell for std::sync::mpsc::Sender<ToCell> {
    fn tell(&self, message: ToCell) {
        // Whoever does not look any more has seen what it wanted.
        let _ = self.send(message);
    }
}

/// Two cells that are there, without processes, and what they are told.
fn two_cells() -> (Supervisor, Vec<std::sync::mpsc::Receiver<ToCell>>) {
    let guests = Some(2 * foraker_policy::placement::MOST_GUESTS as u64);
    two_cells_with(Amounts { guests, ..Amounts::default() })
}

fn two_cells_with(budget: Amounts) -> (Supervisor, Vec<std::sync::mpsc::Receiver<ToCell>>) {
    let gatekeeper = GatekeeperSettings { budget, most_waiting: 20, discipline: Discipline::Fair };
    let config = Config {
        cells: 2,
        first_subnet: Ipv4Addr::new(10, 100, 0, 0),
        gatekeeper,
        log_sizes: LogSizes::default(),
    };
    let (tos, told): (Vec<_>, Vec<_>) = (0..2).map(|_| channel()).unzip();
    let cells = tos
        .into_iter()
        .map(|to| CellSlot { to: Some(Box::new(to) as Box<dyn Tell>), ..CellSlot::default() })
        .collect();
    let directory = tempfile::tempdir().expect("a folder");
    let images =
        Images::open(directory.path().to_path_buf(), Vec::new(), BTreeMap::new()).expect("no images");
    let records = Records { store: Store::nowhere(), events: Events::new(0), logs: None, cores: None };
    let mut state = State::new(cells, gatekeeper, images, records);
    for number in 0..2 {
        state.hear(number, FromCell::Ready { tap: None });
    }
    let shared = Shared {
        config,
        events: state.records.events.clone(),
        state: Mutex::new(state),
        changed: Condvar::new(),
        due: Condvar::new(),
        heard: Notify::new(),
        launcher: None,
        surveys: Surveys::default(),
        looks: Looks::default(),
        logs: None,
        directory: None,
        since_ms: 0,
    };
    (Supervisor(Arc::new(shared)), told)
}

impl Supervisor {
    /// Takes guests of an order as it is.
    fn run(&self, order: &Order, count: u64, restart: Restart) -> Result<(u64, u64), Refused> {
        let spec = GuestSpec { owner: order.owner.clone(), restart, ..GuestSpec::of("image") };
        let (ids, _) = self.take(&spec, &"digest".into(), order.clone(), count, monotonic_ns())?;
        Ok((*ids.start(), *ids.end()))
    }

    /// Asks guests to end, or ends them. Returns how many were there to be asked.
    fn end(&self, ids: Option<&[u64]>, kill: bool) -> usize {
        let action = if kill { Action::Kill } else { Action::Stop };
        self.act_on_all(action, &Filter { ids: ids.map(<[u64]>::to_vec), ..Filter::default() }).0
    }
}

fn ended(id: u64, end: Ended) -> FromCell {
    FromCell::Ended { id, end, fault: None }
}

fn starts(told: &std::sync::mpsc::Receiver<ToCell>) -> Vec<u64> {
    let ids = |message| match message {
        ToCell::Start(orders) => orders.into_iter().map(|(id, _)| id).collect(),
        _ => Vec::new(),
    };
    told.try_iter().flat_map(ids).collect()
}

fn phases(supervisor: &Supervisor) -> Vec<String> {
    let phase = |g: foraker_api::Guest| match (g.status, g.reason) {
        (Some(status), _) => format!("exit {status}"),
        (None, Some(why)) if g.state.is_over() => format!("{}: {why}", g.state),
        _ => g.state.to_string(),
    };
    supervisor.list(&Filter::default(), 0, usize::MAX).into_iter().map(phase).collect()
}

#[test]
fn a_cell_speaks_for_its_own_guests_only() {
    let (supervisor, told) = two_cells();
    assert_eq!(supervisor.run(&order(), 2, Restart::No), Ok((1, 2)));
    assert_eq!((starts(&told[0]), starts(&told[1])), (vec![1], vec![2]));
    let mut state = supervisor.lock();
    state.hear(1, FromCell::Started(vec![(1, None), (2, None), (77, None)]));
    state.hear(1, ended(1, Ended::Exit(0)));
    drop(state);
    assert_eq!(phases(&supervisor), ["starting", "running"]);
    let now = monotonic_ns();
    supervisor.lock().hear(1, FromCell::Entered(vec![(1, now), (2, now), (77, now)]));
    let times: Vec<_> =
        supervisor.list(&Filter::default(), 0, 9).into_iter().map(|g| g.start_us.is_some()).collect();
    assert_eq!(times, [false, true]);
    supervisor.lock().hear(0, ended(1, Ended::Exit(0)));
    // Said twice, it counts once.
    supervisor.lock().hear(0, ended(1, Ended::Exit(5)));
    assert_eq!(phases(&supervisor), ["exit 0", "running"]);
    assert_eq!(supervisor.cells().iter().map(|c| c.guests).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(supervisor.prune(&Filter::default()).0, 1);
}

#[test]
fn guests_of_a_dead_cell_wait_for_it_and_come_back_under_their_addresses() {
    let (supervisor, told) = two_cells();
    let _ = supervisor.run(&order(), 2, Restart::OnFailure);
    let _ = (starts(&told[0]), starts(&told[1]));
    let address = Some(Ipv4Addr::new(10, 100, 0, 2));
    let mut state = supervisor.lock();
    state.hear(0, FromCell::Started(vec![(1, address)]));
    state.hear(1, FromCell::Started(vec![(2, None)]));
    state.cell_died(0);
    let (_, id) = *state.due.first().expect("it rests");
    state.due.clear();
    state.wake(id);
    state.settle();
    assert_eq!((id, state.unplaced.len()), (1, 1), "it does not go to another cell");
    let (to, again) = channel();
    state.cells[0].to = Some(Box::new(to));
    state.hear(0, FromCell::Ready { tap: None });
    drop(state);
    let Ok(ToCell::Start(orders)) = again.try_recv() else { panic!("it is not started") };
    assert_eq!(orders[0].1.network.as_ref().and_then(|n| n.ipv4), address);
    assert_eq!((phases(&supervisor), starts(&told[1])), (vec!["starting".into(), "running".into()], vec![]));
}

#[test]
fn what_a_guest_gives_back_is_anothers_until_it_asks() {
    const MEMORY: u64 = 1 << 20;
    let room = 2 * (MEMORY + crate::admission::OVERHEAD) - 1;
    let (supervisor, told) = two_cells_with(Amounts { memory: Some(room), ..Amounts::default() });
    let lender = Order { memory: MEMORY, memory_provision: MEMORY, ..order() };
    let memory = || {
        told[0].try_iter().filter_map(|m| match m {
            ToCell::Memory { id, bytes, granted } => Some((id, bytes, granted)),
            _ => None,
        })
    };
    assert_eq!(supervisor.run(&lender, 1, Restart::No), Ok((1, 1)));
    assert_eq!(supervisor.run(&Order { memory: MEMORY, ..order() }, 1, Restart::Always), Ok((2, 2)));
    assert_eq!(phases(&supervisor), ["starting", "waiting"]);
    let hear = |bytes| supervisor.lock().hear(0, FromCell::Memory { id: 1, bytes });
    hear(MEMORY / 2);
    assert_eq!(
        (phases(&supervisor), starts(&told[1])),
        (vec!["starting".into(), "starting".into()], vec![2])
    );
    hear(MEMORY);
    assert!(told[1].try_iter().any(|m| matches!(m, ToCell::Stop { ids, kill: true } if ids == [2])));
    assert_eq!(memory().filter(|(_, bytes, _)| *bytes == MEMORY).count(), 0, "not before it is there");
    supervisor.lock().hear(1, ended(2, Ended::Killed("it was killed".to_owned())));
    assert_eq!(memory().collect::<Vec<_>>(), [(1, MEMORY, true)]);
    assert_eq!(phases(&supervisor), ["starting", "waiting"]);
    // What is not the sender's own is not heard, and nobody has more than it was admitted with.
    supervisor.lock().hear(1, FromCell::Memory { id: 1, bytes: 0 });
    hear(u64::MAX);
    assert_eq!(memory().count(), 1);
    assert_eq!(supervisor.owners()[0].has.memory, Some(MEMORY + OVERHEAD));
}

#[test]
fn who_is_asked_to_end_does_not_come_back() {
    let (supervisor, told) = two_cells();
    let _ = supervisor.run(&order(), 1, Restart::Always);
    assert_eq!(supervisor.end(None, false), 1);
    assert!(told[0].try_iter().any(|m| matches!(m, ToCell::Stop { ids, kill: false } if ids == [1])));
    supervisor.lock().hear(0, ended(1, Ended::Exit(0)));
    assert_eq!(phases(&supervisor), ["exit 0"]);
    assert_eq!(supervisor.end(None, true), 0);
}

#[test]
fn who_waits_for_a_guest_hears_that_it_was_ended_in_line() {
    let (supervisor, _told) = two_cells_with(Amounts { guests: Some(1), ..Amounts::default() });
    assert_eq!(supervisor.run(&order(), 2, Restart::No), Ok((1, 2)));
    let waiting = supervisor.clone();
    let waiter = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(waiting.settled(2..=2, Duration::from_secs(60)))
    });
    std::thread::sleep(Duration::from_millis(50));
    let since = Instant::now();
    assert_eq!(supervisor.end(Some(&[2]), false), 1);
    assert_eq!(waiter.join().expect("no panic"), 0);
    assert!(since.elapsed() < Duration::from_secs(30));
}

#[test]
fn when_all_cells_are_full_guests_wait_in_line() {
    let (supervisor, told) = two_cells();
    let room = 2 * foraker_policy::placement::MOST_GUESTS as u64;
    let _ = supervisor.run(&order(), room + 3, Restart::No);
    assert_eq!(starts(&told[0]).len() + starts(&told[1]).len(), room as usize);
    let waiting = |s: &Supervisor| phases(s).iter().filter(|p| *p == "waiting").count();
    assert_eq!(waiting(&supervisor), 3);
    supervisor.lock().hear(0, ended(1, Ended::Exit(0)));
    assert_eq!((waiting(&supervisor), starts(&told[0])), (2, vec![room + 1]));
}

#[test]
fn a_refused_request_leaves_nothing_behind() {
    let (supervisor, told) = two_cells_with(Amounts { guests: Some(2), ..Amounts::default() });
    let refused = supervisor.run(&order(), 13, Restart::No).map_err(|e| e.to_string());
    let why = "no room now, and its owner's part of the line is full: 10 of its guests may wait";
    assert_eq!(refused, Err(format!("refused for owner default: {why}")));
    assert!(phases(&supervisor).is_empty() && starts(&told[0]).is_empty());
    assert_eq!(supervisor.run(&order(), 12, Restart::No), Ok((1, 12)));
    assert_eq!(supervisor.end(Some(&[12, 1]), false), 2);
    supervisor.lock().hear(0, ended(1, Ended::Exit(0)));
    assert_eq!(phases(&supervisor)[..4], ["exit 0", "starting", "starting", "waiting"]);
    assert_eq!(phases(&supervisor)[11], "killed: while it waited");
}

#[test]
fn what_was_lent_is_taken_from_guests_that_wait_for_it_or_end() {
    let each = (1 << 20) + OVERHEAD;
    let (supervisor, told) = two_cells_with(Amounts { memory: Some(4 * each), ..Amounts::default() });
    let settings = OwnerSettings {
        weight: NonZeroU32::MIN,
        most: Amounts::default(),
        provision: Amounts { memory: Some(2 * each), ..Amounts::default() },
        cells: 0,
    };
    assert!(supervisor.set_owner("landlord", &settings).is_ok());
    let _ = supervisor.run(&order(), 3, Restart::No);
    let _ = supervisor.run(&order(), 1, Restart::OnFailure);
    let mut state = supervisor.lock();
    state.hear(0, FromCell::Started(vec![(1, None), (3, None)]));
    state.hear(1, FromCell::Started(vec![(2, None), (4, None)]));
    drop(state);
    let theirs = Order { owner: "landlord".to_owned(), ..order() };
    assert_eq!(supervisor.run(&theirs, 2, Restart::No), Ok((5, 6)));
    for (told, lent) in told.iter().zip([3, 4]) {
        let stopped = |m| matches!(m, ToCell::Stop { ids, kill: true } if ids == [lent]);
        assert!(told.try_iter().any(stopped));
    }
    assert_eq!(phases(&supervisor), ["running", "running", "running", "running", "waiting", "waiting"]);
    let killed = || Ended::Killed("it was killed".to_owned());
    let mut state = supervisor.lock();
    state.hear(0, ended(3, killed()));
    state.hear(1, ended(4, killed()));
    drop(state);
    let lent = "killed: what it used was lent, and owner landlord asked for it back";
    assert_eq!(phases(&supervisor), ["running", "running", lent, "waiting", "starting", "starting"]);
    // Its turn comes when there is room.
    supervisor.lock().hear(0, ended(1, Ended::Exit(0)));
    assert_eq!(phases(&supervisor)[3], "starting");
}

fn of(owner: &str) -> Order {
    Order { owner: owner.to_owned(), ..order() }
}

fn cells(count: u8) -> OwnerSettings {
    OwnerSettings { cells: count, ..OwnerSettings::default() }
}

#[test]
fn an_owner_has_cells_of_its_own() {
    let (supervisor, told) = two_cells();
    assert!(supervisor.set_owner("bank", &cells(1)).is_ok());
    let whose = || supervisor.cells().into_iter().map(|c| c.owner).collect::<Vec<_>>();
    assert_eq!(whose(), [None, Some("bank".to_owned())]);
    assert_eq!(supervisor.run(&of("bank"), 3, Restart::Always), Ok((1, 3)));
    assert_eq!(supervisor.run(&order(), 3, Restart::No), Ok((4, 6)));
    assert_eq!((starts(&told[0]), starts(&told[1])), (vec![4, 5, 6], vec![1, 2, 3]));
    // One stays for everybody else, and whose guests are on it keeps it.
    let refused = supervisor.set_owner("shop", &cells(1)).unwrap_err().to_string();
    assert!(refused.contains("can have 0 cells of its own now, not 1: 0 of 1 shared cells"), "{refused}");
    let refused = supervisor.set_owner("bank", &cells(0)).unwrap_err().to_string();
    assert!(refused.contains("has guests on 1 of its own cells"), "{refused}");
    assert_eq!(supervisor.owners().iter().find(|o| o.name == "bank").expect("it").settings, cells(1));
    // A cell that dies is still its own.
    supervisor.lock().cell_died(1);
    assert_eq!(whose(), [None, Some("bank".to_owned())]);
    // No address of it is for anybody else.
    let network =
        foraker_cell::NetworkSpec { ipv4: Some(Ipv4Addr::new(10, 101, 0, 9)), ..Default::default() };
    let refused = supervisor.run(&Order { network: Some(network), ..order() }, 1, Restart::No).unwrap_err();
    assert!(refused.to_string().contains("is of cell 1, which owner default may not be on"), "{refused}");
    // It is everybody's again when nothing of the owner is left.
    assert_eq!(supervisor.end(Some(&[1, 2, 3]), true), 3);
    assert!(supervisor.set_owner("bank", &cells(0)).is_ok());
    assert_eq!(whose(), [None, None]);
}

#[test]
fn guests_move_to_cells_of_their_owner_with_their_next_start() {
    let (supervisor, told) = two_cells();
    assert_eq!(supervisor.run(&of("bank"), 1, Restart::Always), Ok((1, 1)));
    assert_eq!(starts(&told[0]), [1]);
    let old = Ipv4Addr::new(10, 100, 0, 2);
    supervisor.lock().hear(0, FromCell::Started(vec![(1, Some(old))]));
    assert!(supervisor.set_owner("bank", &cells(1)).is_ok());
    let mut state = supervisor.lock();
    state.hear(0, ended(1, Ended::CellDied));
    state.wake(1);
    state.settle();
    drop(state);
    // Under an address of its new cell, not under its old one.
    let ToCell::Start(orders) = told[1].try_recv().expect("a start") else { panic!("no start") };
    assert_eq!((orders[0].0, orders[0].1.network.as_ref().and_then(|n| n.ipv4)), (1, None));
}

#[test]
fn what_the_gatekeeper_gives_is_settled_and_forgotten() {
    let (supervisor, _told) = two_cells();
    let before = supervisor.gatekeeper();
    assert_eq!(before.settled, None);
    assert_eq!(supervisor.run(&order(), 4, Restart::No), Ok((1, 4)));
    let few = Amounts { guests: Some(2), ..Amounts::default() };
    let settings = GatekeeperSettings { budget: few, most_waiting: 6, discipline: Discipline::FirstCome };
    assert!(supervisor.set_gatekeeper(Some(settings)).is_ok());
    let room = 2 * foraker_policy::placement::MOST_GUESTS as u64;
    let now = supervisor.gatekeeper();
    // Machines are those that the cells hold, whatever is said.
    let budget = Amounts { machines: Some(room), ..few };
    assert_eq!((now.settings, now.settled), (GatekeeperSettings { budget, ..settings }, Some(settings)));
    // It is read back as it was said, and so it is no change when it is applied.
    let gatekeeper = supervisor.configuration().gatekeeper;
    assert_eq!(gatekeeper, Some(settings));
    let configuration = foraker_api::Configuration { gatekeeper, ..Default::default() };
    assert!(!supervisor.apply(&configuration, false).0.expect("applied").gatekeeper);
    // Who runs runs on; who is new waits, until there is more.
    assert_eq!(supervisor.run(&order(), 1, Restart::No), Ok((5, 5)));
    assert_eq!(phases(&supervisor), ["starting", "starting", "starting", "starting", "waiting"]);
    assert!(supervisor.set_gatekeeper(None).is_ok());
    assert_eq!(phases(&supervisor)[4], "starting");
    let after = supervisor.gatekeeper();
    assert_eq!((after.settled, after.settings.most_waiting), (None, before.settings.most_waiting));
    assert_eq!(supervisor.configuration().gatekeeper, None);
}

/// A supervisor that was started with fewer cells than the last one.
#[test]
fn guests_whose_own_cells_are_not_there_are_on_nobody_elses() {
    let (supervisor, told) = two_cells();
    assert!(supervisor.set_owner("bank", &cells(1)).is_ok());
    supervisor.lock().cells[1].owner = None;
    assert_eq!(supervisor.run(&of("bank"), 1, Restart::No), Ok((1, 1)));
    assert!(starts(&told[0]).is_empty() && starts(&told[1]).is_empty());
    assert_eq!(phases(&supervisor), ["waiting"]);
    let mut state = supervisor.lock();
    state.cells[1].owner = Some("bank".to_owned());
    state.settle();
    drop(state);
    assert_eq!(starts(&told[1]), [1]);
}
