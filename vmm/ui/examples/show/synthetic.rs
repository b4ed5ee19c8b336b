//! Guests that are not there, and change.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foraker_ui::{
    Action, Console, Detail, Fact, Figures, Graph, Load, Place, Refusal, Roll, Seen, Source, State, Value,
};

/// Guests of a cell.
const CELL: u64 = 1000;
/// How long a guest takes for a line.
const LINE: Duration = Duration::from_millis(160);
/// Bytes of a console that are kept.
const KEPT: usize = 64 << 10;
const MIB: u64 = 1 << 20;

const OWNERS: [(&str, u64); 16] = [
    ("acme", 2200),
    ("northwind", 1700),
    ("globex", 1300),
    ("initech", 980),
    ("umbra-labs", 760),
    ("hooli", 610),
    ("stark-edge", 520),
    ("wayne-cdn", 430),
    ("tyrell", 360),
    ("aperture", 300),
    ("cyberdyne", 240),
    ("soylent", 190),
    ("vandelay", 150),
    ("dunder", 120),
    ("pied-piper", 90),
    ("default", 50),
];
const KINDS: [&str; 8] = ["web", "api", "hook", "auth", "feed", "thumb", "mail", "cron"];

/// The guest that tries to be more than text.
pub(crate) const HOSTILE: u64 = 13;
/// Its name: markup, a sequence for terminals, a mark that turns the direction of writing.
pub(crate) const HOSTILE_NAME: &str = "<img src=x onerror=owned()>\u{1b}[31m\u{202e}gnp.exe";
/// What it writes, over and over.
pub(crate) const HOSTILE_LINE: &str = "<script>owned()</script> <b>bold</b> &lt;\u{1b}]0;owned\u{7}\u{1b}[2J \u{202e}esrever\u{2066} \0\u{9b}\n";

struct Guest {
    id: u64,
    name: String,
    owner: usize,
    cell: u16,
    state: State,
    restarts: u64,
}

/// A daemon that is not there.
pub(crate) struct Synthetic {
    world: Mutex<World>,
    begun: Instant,
    /// Nothing changes while this is set.
    pub(crate) frozen: AtomicBool,
    /// How often the guests were asked for.
    pub(crate) looks: AtomicU64,
    /// What was done to whom.
    pub(crate) acts: Mutex<Vec<(u64, Action)>>,
    changes: f64,
}

struct World {
    guests: Vec<Guest>,
    random: u64,
    until: f64,
    next_id: u64,
    counters: [f64; 3],
    passed: [f64; 7],
    refused: [f64; 7],
    queues: [f64; 7],
}

impl World {
    /// A number below `below` (xorshift: Marsaglia, 2003).
    fn number(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        self.number(1 << 20) as f64 / (1 << 20) as f64
    }

    fn change(&mut self) {
        let (at, chance) = (self.number(self.guests.len() as u64) as usize, self.number(1000));
        // An ended guest is forgotten at times, and somebody new has its place.
        if chance < 2 && matches!(self.guests[at].state, State::Exited | State::Lost | State::Refused) {
            let guest = &mut self.guests[at];
            (guest.id, guest.state, guest.restarts) = (self.next_id, State::Waiting, 0);
            guest.name = format!("{}-{}", KINDS[(self.next_id % 8) as usize], self.next_id);
            self.next_id += 1;
            return;
        }
        let guest = &mut self.guests[at];
        guest.state = match (guest.state, chance) {
            (State::Running, 0..45) => State::Faulted,
            (State::Running, 45..130) => State::Exited,
            (State::Running, 130..160) => State::Paused,
            (State::Running, 160..180) => State::Killed,
            (State::Running, 180..200) => State::Lost,
            (State::Running, _) => State::Restarting,
            (State::Waiting, 0..100) => State::Refused,
            (State::Waiting | State::Restarting, _) => State::Starting,
            (State::Refused | State::Killed, _) => State::Waiting,
            (State::Faulted | State::Lost | State::Exited, 0..700) => State::Restarting,
            (State::Starting | State::Paused, _) => State::Running,
            (state, _) => state,
        };
        guest.restarts += u64::from(guest.state == State::Restarting);
    }
}

impl Synthetic {
    /// `guests` of them, with so many changes of state in each second.
    pub(crate) fn new(guests: u64, changes: u32) -> Self {
        let owners: Vec<usize> = (0..OWNERS.len())
            .flat_map(|owner| std::iter::repeat_n(owner, (OWNERS[owner].1 * guests / 10_000).max(1) as usize))
            .collect();
        let all = (1..=guests).map(|id| Guest {
            id,
            name: match id {
                HOSTILE => HOSTILE_NAME.to_owned(),
                _ => format!("{}-{id}", KINDS[(id % 8) as usize]),
            },
            // In no order, as it is in life.
            owner: owners[(id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % owners.len()],
            cell: ((id - 1) / CELL) as u16,
            state: match id.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40 & 1023 {
                0..5 => State::Faulted,
                5..40 => State::Exited,
                40..52 => State::Paused,
                52..58 => State::Killed,
                58..75 => State::Waiting,
                75..79 => State::Refused,
                79..82 => State::Lost,
                82..92 => State::Restarting,
                _ => State::Running,
            },
            restarts: 0,
        });
        let world = World {
            guests: all.collect(),
            random: 0x1234_5678_9abc_def1,
            until: 0.0,
            next_id: guests + 1,
            counters: [0.0; 3],
            passed: [0.0; 7],
            refused: [0.0; 7],
            queues: [0.0; 7],
        };
        Self {
            world: Mutex::new(world),
            begun: Instant::now(),
            frozen: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            acts: Mutex::default(),
            changes: f64::from(changes),
        }
    }

    /// How many guests are in each state now.
    pub(crate) fn counts(&self) -> [u64; State::ALL.len()] {
        let mut counts = [0; State::ALL.len()];
        for guest in &self.world().guests {
            counts[guest.state as usize] += 1;
        }
        counts
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the time that has passed happen.
    fn go_on(&self) {
        let mut world = self.world();
        let world = &mut *world;
        let now = self.begun.elapsed().as_secs_f64();
        let passed = (now - world.until).min(1.0);
        world.until = now;
        if self.frozen.load(Ordering::Relaxed) {
            return;
        }
        let wave = 1.0 + 0.35 * (now / 17.0).sin() + 0.2 * (now / 3.1).sin() + 0.12 * world.part();
        // Who leaves comes back in two more changes.
        let changes = self.changes * 0.35 * passed * wave.max(0.1);
        let whole = changes as u64 + u64::from(world.part() < changes.fract());
        for _ in 0..whole {
            world.change();
        }
        // Those that are on their way arrive.
        for at in 0..world.guests.len() {
            let rate = match world.guests[at].state {
                State::Starting => 3.0,
                State::Restarting => 1.2,
                State::Waiting => 0.4,
                State::Paused | State::Faulted | State::Killed | State::Lost => 0.05,
                State::Exited => 0.02,
                State::Refused => 0.1,
                State::Running => continue,
            };
            if world.part() < rate * passed {
                let guest = &mut world.guests[at];
                guest.state = match guest.state {
                    State::Waiting | State::Restarting => State::Starting,
                    State::Starting | State::Paused => State::Running,
                    State::Refused | State::Killed => State::Waiting,
                    _ => State::Restarting,
                };
            }
        }
        for (counter, rate) in world.counters.iter_mut().zip([48e6, 310e6, 41_000.0]) {
            *counter += rate * wave * passed;
        }
        let surge = ((now / 11.0).sin() - 0.72).max(0.0);
        let rates = [92_000.0, 184_000.0, 420.0, 41_000.0, 7_300.0, 1_900.0, 85.0];
        let queues = [40.0, 22.0, 90.0, 130.0, 610.0, 9.0, 1.0];
        for at in 0..7 {
            world.passed[at] += rates[at] * wave * passed;
            let noise = world.part();
            world.queues[at] = queues[at] * wave * (0.6 + 0.8 * noise);
        }
        world.queues[2] += 3900.0 * surge;
        world.refused[1] += 3.0 * wave * passed;
        world.refused[2] += 260.0 * (surge - 0.2).max(0.0) * passed;
    }

    /// A guest's console, from its beginning.
    fn lines(&self, id: u64) -> u64 {
        let each = LINE.as_millis() as u64 + id % 7 * 40;
        // Some were there for a while before.
        30 + self.begun.elapsed().as_millis() as u64 / each
    }
}

/// Line `at` of a guest, always of the same length, so that an offset says which line it is in.
fn line(id: u64, at: u64) -> String {
    if id == HOSTILE {
        return HOSTILE_LINE.to_owned();
    }
    let paths = ["/", "/api/v1/items", "/health", "/img/logo.svg", "/cart", "/login"];
    let mix = (id * 31 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (path, us, bytes) = (paths[(mix >> 60) as usize % 6], mix >> 32 & 0xfff, mix >> 20 & 0xfff);
    let status = if (mix >> 50).is_multiple_of(40) { 503 } else { 200 };
    let (s, ms) = (at * 160 / 1000, at * 160 % 1000);
    let mut line = format!("[{s:>6}.{ms:03}] GET {path} {status} {bytes} B {us} us");
    while line.len() < 63 {
        line.push(' ');
    }
    line.truncate(63);
    line.push('\n');
    line
}

impl Source for Synthetic {
    fn guests(&self, roll: &mut Roll<'_>) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.go_on();
        for g in &self.world().guests {
            roll.call(Seen {
                id: g.id,
                name: &g.name,
                owner: OWNERS[g.owner].0,
                state: g.state,
                cell: g.cell,
            });
        }
    }

    fn figures(&self) -> Figures {
        let world = self.world();
        let running =
            world.guests.iter().filter(|g| matches!(g.state, State::Running | State::Paused)).count();
        let bounds = [4096, 4096, 4096, 16_384, 65_536, 256, 64];
        let loads = (0..7).map(|at| Load {
            queue: Some(world.queues[at] as u64),
            bound: Some(bounds[at]),
            passed: Some(world.passed[at] as u64),
            refused: Some(world.refused[at] as u64),
        });
        Figures {
            bytes_in: Some(world.counters[0] as u64),
            bytes_out: Some(world.counters[1] as u64),
            exits: Some(world.counters[2] as u64),
            memory: Some((running as u64 * 655) << 10),
            memory_budget: Some(7 << 30),
            loads: loads.collect(),
        }
    }

    fn cells(&self) -> Vec<Place> {
        let cells = self.world().guests.len().div_ceil(CELL as usize) as u16;
        let cell = |number| Place {
            number,
            process: Some(4100 + u32::from(number) * 7),
            label: format!("foraker{number}"),
            restarts: 0,
        };
        (0..cells).map(cell).collect()
    }

    fn graph(&self) -> Graph {
        Graph::of_a_cell()
    }

    fn guest(&self, id: u64) -> Option<Detail> {
        let world = self.world();
        let g = world.guests.iter().find(|g| g.id == id)?;
        let now = self.begun.elapsed();
        let (seconds, random) = (now.as_secs(), id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
        let text = |t: String| Value::Text(t);
        let address = format!("10.{}.{}.{}", 100 + g.cell, id >> 8 & 255, id & 255);
        let facts = vec![
            Fact::new("life", "restarts", Value::Count(g.restarts)),
            Fact::new("life", "started in", Value::Nanoseconds(145_000 + random % 900_000)),
            Fact::new("life", "runs for", Value::Nanoseconds(now.as_nanos() as u64 + (random << 24))),
            Fact::new("life", "policy", text("on-failure".to_owned())),
            Fact::new("processor", "used", Value::Nanoseconds(seconds * 1_800_000 + random * 1000)),
            Fact::new("processor", "share", Value::Count(1024)),
            Fact::new("processor", "of a core", Value::Part((random % 300) as f64 / 10_000.0)),
            Fact::new("processor", "exits", Value::Count(seconds * 41 + random % 1000)),
            Fact::new("memory", "given", Value::Bytes(2 * MIB)),
            Fact::new("memory", "in use", Value::Bytes(655 << 10)),
            Fact::new("memory", "template", text("shared".to_owned())),
            Fact::new("memory", "pages filled", Value::Count(48 + random % 64)),
            Fact::new("network", "IPv4", text(address)),
            Fact::new("network", "frames in", Value::Count(seconds * 9 + random % 5000)),
            Fact::new("network", "frames out", Value::Count(seconds * 18 + random % 9000)),
            Fact::new("network", "dropped", Value::Count(random % 3)),
            Fact::new("image", "file", text(format!("/srv/images/{}", KINDS[(id % 8) as usize]))),
            Fact::new("image", "arguments", text(format!("--port 80 --name {}", g.name))),
        ];
        let report = (g.state == State::Faulted).then(|| {
            let mut report =
                format!("guest {} faulted: page fault (#PF), error code 0x6, address 0x0\n", g.name);
            let _ = writeln!(report, "  at 0x210290 in httpd::handler::write_byte (handler.rs:118)");
            let _ =
                write!(report, "  rax 0x20  rbx 0x20100768  rcx 0x0  rdx 0x0  rip 0x210290  rflags 0x10246");
            report
        });
        let (name, owner) = (g.name.clone(), OWNERS[g.owner].0.to_owned());
        Some(Detail { id, name, owner, state: g.state, cell: g.cell, facts, report })
    }

    fn console(&self, id: u64, from: Option<u64>, most: usize) -> Option<Console> {
        let length = line(id, 0).len() as u64;
        let end = self.lines(id) * length;
        let oldest = end.saturating_sub(KEPT as u64);
        let from = from.unwrap_or(end.saturating_sub(most as u64)).clamp(oldest, end);
        let mut bytes = Vec::new();
        for at in from / length..self.lines(id) {
            bytes.extend(line(id, at).into_bytes());
        }
        bytes.drain(..((from % length) as usize).min(bytes.len()));
        bytes.truncate(most);
        Some(Console { from, bytes })
    }

    fn act(&self, id: u64, action: Action) -> Result<(), Refusal> {
        self.acts.lock().unwrap_or_else(PoisonError::into_inner).push((id, action));
        let mut world = self.world();
        let guest = world.guests.iter_mut().find(|g| g.id == id).ok_or(Refusal::Unknown)?;
        guest.state = match (action, guest.state) {
            (Action::Pause, State::Running) => State::Paused,
            (Action::Resume, State::Paused) => State::Running,
            (Action::Stop, _) => State::Exited,
            (Action::Kill, _) => State::Killed,
            (Action::Start, State::Running) => {
                return Err(Refusal::Refused(format!("guest {id} runs already")));
            }
            (Action::Start, _) => State::Starting,
            (_, state) => return Err(Refusal::Refused(format!("guest {id} is {}", state.name()))),
        };
        Ok(())
    }
}
