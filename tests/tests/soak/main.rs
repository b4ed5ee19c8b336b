//! Guests of all kinds come and go by chance while clients ask those that serve: every end has its reason, nobody is stuck, and when all
//! have gone, the cells hold what they held before.
//!
//! `cargo xtask soak --minutes 30 --guests 2000`; by itself a minute with 200 guests. The seed decides what is done next, as far as it does not
//! depend on who is there by then. Environment: `SOAK_MINUTES`, `SOAK_GUESTS`, `SOAK_SEED`.

mod ledger;
mod random;
mod traffic;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use foraker_tests::bounds::{eventually, stretched};
use foraker_tests::crowd::ask_each;
use foraker_tests::hostile::{self, Case, Expect};
use foraker_tests::launch::image;
use foraker_tests::supervisor::Serve;
use foraker_tests::usage::{self, Usage};

use ledger::{Ask, Kind, Ledger};
use random::Random;
use traffic::Traffic;

/// Guests of a cell, at most; it holds twice as many, so that some room is left for chance.
const OF_A_CELL: usize = 500;
/// Clients.
const CLIENTS: u64 = 3;
/// Between two deeds.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks at the list.
const LOOK: Duration = Duration::from_millis(500);
/// How long a guest without end may go on.
const ENDLESS: Duration = Duration::from_secs(3);
/// Such guests at a time: each takes as much of a processor as it gets.
const MOST_ENDLESS: usize = 3;
/// Problems after which it makes no sense to go on.
const ENOUGH: usize = 20;
/// How long pools and pages may take until they are as before.
const SETTLED: Duration = Duration::from_secs(20);
/// What a cell may hold more at the end than after the warm-up: what allocators keep, and where guests of other kinds were ready.
const PRIVATE: u64 = 24 << 20;
/// Guests' pages at the end, when there are no guests.
const PAGES: u64 = 1 << 20;
/// Descriptors and threads: the pool of machines holds what it happens to hold, within its bounds.
const MACHINES: usize = 80;
/// Whose guests are; what these may have changes all the time.
const OWNERS: [&str; 5] = ["default", "ada", "bea", "cleo", "dora"];
/// Options of a web server.
const WEB: [&str; 5] = ["--small-pages", "-m", "2M", "--name", "web"];

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

struct Soak {
    serve: Serve,
    random: Random,
    ledger: Ledger,
    traffic: Traffic,
    /// Most guests at a time.
    guests: usize,
    /// Guests without end, and when they are killed.
    endless: BTreeMap<u64, Instant>,
    /// Cases that end by themselves, and those that do not.
    cases: (Vec<&'static Case>, Vec<&'static Case>),
    deeds: BTreeMap<&'static str, u64>,
    problems: Vec<String>,
    images: BTreeMap<&'static str, String>,
}

impl Soak {
    fn new(guests: usize, seed: u64) -> Soak {
        let cells = guests.div_ceil(OF_A_CELL).max(2);
        let most = guests.to_string();
        let serve = Serve::start_with("soak", cells, "10.147", &["--max-guests", &most]);
        // A launch's networks have no names here.
        let usable = |case: &&Case| !case.options.contains(&"--network");
        let cases = hostile::all().filter(usable).partition(|case| !matches!(case.expect, Expect::Endless));
        let images = ["httpd", "hostile", "hello"].map(|name| (name, image(name).display().to_string()));
        Soak {
            serve,
            random: Random::new(seed),
            ledger: Ledger::default(),
            traffic: Traffic::start(CLIENTS, seed),
            guests,
            endless: BTreeMap::new(),
            cases,
            deeds: BTreeMap::new(),
            problems: Vec::new(),
            images: images.into(),
        }
    }

    fn count(&mut self, deed: &'static str, by: usize) {
        *self.deeds.entry(deed).or_default() += by as u64;
    }

    /// Starts guests; the first id and the last, unless the line is full.
    fn start(&mut self, kind: Kind, count: usize) -> Option<(u64, u64)> {
        let (program, argument, options) = match kind {
            Kind::Web => ("httpd", None, &WEB[..]),
            Kind::Hello => ("hello", None, &["--name", "hello"][..]),
            Kind::Fault(case) | Kind::Endless(case) => ("hostile", Some(case.name), case.options),
        };
        let policy = match kind {
            Kind::Web => self.random.one_of(&["no", "on-failure", "always"]),
            Kind::Endless(_) => "no",
            // Few: those that come back fail more and more slowly, but never end.
            _ if self.random.percent(5) => "always",
            _ => "no",
        };
        let owner = self.random.one_of(&OWNERS);
        let count = count.to_string();
        let usual = ["run", "--detach", "--count", &count, "--restart", policy, "--owner", owner];
        let program = self.images[program].clone();
        let run = self.serve.ask(&[&usual[..], options, &[&program], argument.as_slice()].concat());
        if run.status == 125 && run.stderr.contains("line is full") {
            self.count("refused as the line was full", 1);
            return None;
        }
        let ids = run.stdout.trim();
        let (first, last) = ids.split_once("..").unwrap_or((ids, ids));
        let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else {
            self.problems.push(format!("guests cannot be started: {kind:?}: {run}"));
            return None;
        };
        self.ledger.add(first..=last, kind, policy != "no");
        Some((first, last))
    }

    /// Ends guests.
    fn end(&mut self, ids: &[u64], ask: Ask) {
        if ids.is_empty() {
            return;
        }
        for id in ids {
            self.traffic.remove(*id);
            self.ledger.ask(*id, ask);
            self.endless.remove(id);
        }
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let how: &[&str] = if ask == Ask::Kill { &["kill"] } else { &["stop"] };
        // Some may have ended by themselves: that is as good.
        let stopped = self.serve.ask(&[how, &ids[..]].concat());
        if stopped.status != 0 {
            self.problems.push(format!("guests cannot be ended: {stopped}"));
        }
    }

    /// Some of the guests that nobody has ended yet: mostly of those that were seen to run, or hardly any would live to be asked something.
    fn some(&mut self, most: usize, wanted: impl Fn(Kind) -> bool) -> Vec<u64> {
        let young_too = self.random.percent(25);
        let suits = |(_, kind, seen): &(u64, Kind, bool)| wanted(*kind) && (young_too || *seen);
        let mut all: Vec<u64> = self.ledger.unasked().filter(suits).map(|(id, ..)| id).collect();
        let count = (1 + self.random.below(most)).min(all.len());
        (0..count).map(|_| all.swap_remove(self.random.below(all.len()))).collect()
    }

    /// One deed.
    fn act(&mut self) {
        let room = self.guests.saturating_sub(self.ledger.len());
        let now = Instant::now();
        let over: Vec<u64> = self.endless.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        self.end(&over, Ask::Kill);
        match self.random.below(100) {
            0..35 => {
                let count = (1 + self.random.below(32)).min(room);
                if count > 0 && self.start(Kind::Web, count).is_some() {
                    self.count("web guests started", count);
                }
            }
            35..55 => {
                let ids = self.some(16, |kind| matches!(kind, Kind::Web));
                self.count("asked to end", ids.len());
                self.end(&ids, Ask::Stop);
            }
            55..65 => {
                let ids = self.some(16, |kind| !matches!(kind, Kind::Endless(_)));
                self.count("killed", ids.len());
                self.end(&ids, Ask::Kill);
            }
            65..85 if room > 0 => {
                let (case, count) = (self.random.below(self.cases.0.len()), 1 + self.random.below(4));
                if self.start(Kind::Fault(self.cases.0[case]), count).is_some() {
                    self.count("faulting guests", count);
                }
            }
            85..91 if room > 0 && self.endless.len() < MOST_ENDLESS => {
                let case = self.random.below(self.cases.1.len());
                if let Some((id, _)) = self.start(Kind::Endless(self.cases.1[case]), 1) {
                    self.endless.insert(id, now + stretched(ENDLESS));
                    self.count("endless and flooding guests", 1);
                }
            }
            91..96 if room > 0 => {
                let count = 1 + self.random.below(8);
                if self.start(Kind::Hello, count).is_some() {
                    self.count("hellos", count);
                }
            }
            96..98 => self.set_owner(),
            _ => {}
        }
    }

    /// Changes what an owner may have.
    fn set_owner(&mut self) {
        let owner = self.random.one_of(&OWNERS);
        let (weight, most) = (self.random.one_of(&["1", "2", "5"]), (self.guests / 4).to_string());
        let mut arguments = vec!["owner", "set", owner, "--weight", weight];
        if self.random.percent(40) {
            arguments.extend(["--max-guests", &most]);
        }
        let set = self.serve.ask(&arguments);
        if set.status != 0 {
            self.problems.push(format!("an owner cannot be set: {set}"));
        }
        self.count("owners set", 1);
    }

    /// Looks at the list; guests that serve are asked from now on.
    fn look(&mut self) {
        let listed = self.serve.guests();
        for guest in listed.iter().filter(|g| g.phase == "running" && g.name.starts_with("web")) {
            if let Some(ipv4) = guest.ipv4
                && self.ledger.is_unasked(guest.id)
            {
                self.traffic.add(guest.id, SocketAddr::from((ipv4, 80)));
            }
        }
        let problems = self.ledger.compare(&listed);
        if self.problems.is_empty() && !problems.is_empty() {
            // What everybody does just now may say why.
            for (number, pid) in self.serve.cells().into_iter().enumerate() {
                usage::threads(pid).into_iter().for_each(|thread| println!("cell {number}: {thread}"));
            }
        }
        self.problems.extend(problems);
        self.problems.extend(self.traffic.problems());
    }

    /// Ends every guest and waits until nothing of them is left.
    fn drain(&mut self) {
        let all: Vec<u64> = self.ledger.open().collect();
        for ids in all.chunks(256) {
            self.end(ids, Ask::Stop);
        }
        let end = |soak: &mut Soak, limit| {
            eventually(limit, || {
                std::thread::sleep(Duration::from_millis(200));
                soak.look();
                soak.ledger.len() == 0
            })
        };
        if end(self, Duration::from_secs(10)) {
            return;
        }
        // Those that do not listen. Web servers do.
        let deaf: Vec<_> = self.ledger.of_kind(|kind| matches!(kind, Kind::Web)).collect();
        if !deaf.is_empty() {
            self.problems.push(format!("web guests that did not end when they were asked: {deaf:?}"));
        }
        let all: Vec<u64> = self.ledger.open().collect();
        self.end(&all, Ask::Kill);
        if !end(self, Duration::from_secs(30)) {
            self.problems.push(format!("{} guests cannot be ended: {:?}", self.ledger.len(), self.ledger));
        }
    }

    fn usage(&self) -> Vec<Usage> {
        self.serve.cells().into_iter().map(Usage::of).collect()
    }

    /// Every kind of guest once, and as many at a time as there will be: pools are full and templates are there afterwards.
    fn warm_up(&mut self) {
        self.start(Kind::Web, self.guests);
        let running = eventually(Duration::from_secs(60), || {
            std::thread::sleep(Duration::from_millis(200));
            self.look();
            self.traffic.servers().len() == self.guests
        });
        let silent = ask_each(&self.traffic.servers());
        if !running || !silent.is_empty() {
            self.problems.push(format!("of the first guests these do not serve: {silent:?}"));
        }
        self.drain();
        for case in self.cases.0.clone() {
            self.start(Kind::Fault(case), 2);
        }
        std::thread::sleep(stretched(Duration::from_secs(2)));
        self.drain();
        std::thread::sleep(stretched(Duration::from_secs(2)));
    }
}

/// What is wrong with a cell at the end.
fn leaks(before: &Usage, after: &Usage) -> bool {
    let more_threads = usize::try_from(after.threads.saturating_sub(before.threads)).unwrap_or(usize::MAX);
    after.private > before.private + PRIVATE
        || after.arena > PAGES
        || after.descriptors > before.descriptors + MACHINES
        || more_threads > MACHINES
}

#[test]
fn soak() {
    let minutes: f64 = setting("SOAK_MINUTES").unwrap_or(1.0);
    let guests: usize = setting("SOAK_GUESTS").unwrap_or(200);
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| u64::from(d.subsec_nanos()));
    let seed: u64 = setting("SOAK_SEED").unwrap_or(now);
    println!("soak: {minutes} minutes, {guests} guests, SOAK_SEED={seed}");
    let mut soak = Soak::new(guests, seed);
    soak.warm_up();
    let cells = soak.serve.cells();
    let (before, available) = (soak.usage(), usage::available());
    println!("warmed up with {} guests; a cell holds {}", soak.ledger.total(), before[0]);
    let began = Instant::now();
    let (mut looked, mut minute) = (began, 0);
    while began.elapsed().as_secs_f64() < minutes * 60.0 && soak.problems.len() < ENOUGH {
        soak.act();
        std::thread::sleep(PAUSE);
        if looked.elapsed() >= LOOK {
            soak.look();
            looked = Instant::now();
        }
        if began.elapsed().as_secs() / 60 > minute {
            minute += 1;
            println!("minute {minute}: {}", soak.summary());
        }
    }
    soak.look();
    let servers = soak.traffic.servers();
    let silent: Vec<_> = ask_each(&servers);
    if !silent.is_empty() {
        soak.problems.push(format!("{} of {} guests are stuck: {silent:?}", silent.len(), servers.len()));
    }
    soak.drain();
    let mut after = soak.usage();
    eventually(SETTLED, || {
        std::thread::sleep(Duration::from_millis(200));
        after = soak.usage();
        !before.iter().zip(&after).any(|(before, after)| leaks(before, after))
    });
    println!("totals: {}", soak.summary());
    println!("done: {:?}", soak.deeds);
    println!("ends: {:?}", soak.ledger.ends);
    for ((number, before), after) in before.iter().enumerate().zip(&after) {
        println!("cell {number} before: {before}\ncell {number} after:  {after}");
        if leaks(before, after) {
            soak.problems.push(format!("cell {number} holds more than before: {after}, before {before}"));
        }
    }
    for device in soak.serve.devices() {
        println!("{}: {} frames dropped on the way to guests", device.name, usage::dropped(&device.name));
    }
    // Others use this machine too: shown, not judged.
    let (mib, now) = (|bytes: u64| bytes >> 20, usage::available());
    println!("memory of the host: {} MiB could be had before, {} MiB after", mib(available), mib(now));
    if soak.serve.cells() != cells {
        soak.problems.push("a cell has died".to_owned());
    }
    let Soak { serve, problems, traffic, .. } = soak;
    drop(traffic);
    let log = serve.running.stderr();
    assert_eq!(serve.stop().status, 0);
    assert!(
        problems.is_empty(),
        "SOAK_SEED={seed}: {} problems:\n{}\n{log}",
        problems.len(),
        problems.join("\n")
    );
}

impl Soak {
    fn summary(&self) -> String {
        let ((good, slowest), servers) = (self.traffic.answered(), self.traffic.servers().len());
        let [arena, private] = self.usage().iter().fold([0, 0], |[a, p], u| [a + u.arena, p + u.private]);
        format!(
            "{} guests started, {} there, {servers} serve, {good} requests (slowest {slowest:?}), \
             {} MiB of guests, {} MiB of cells, {} problems",
            self.ledger.total(),
            self.ledger.len(),
            arena >> 20,
            private >> 20,
            self.problems.len()
        )
    }
}
