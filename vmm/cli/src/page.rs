//! `vmm serve --ui`: what the live page shows, told from the supervisor.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use foraker_api::{Counters, GuestDetail};
use foraker_confine::Kind;
use foraker_supervisor::channel::CellLoad;
use foraker_supervisor::{Refused, Supervisor};
use foraker_ui::{
    Action, Console, Detail, Fact, Figures, Graph, Key, Load, Options, Place, Refusal, Roll, Seen, Source,
    State, Value,
};
use tokio::runtime::Handle;

/// How often cells are asked what they have counted, while somebody looks: the page draws rates, and each answer looks at every guest.
const PERIOD: Duration = Duration::from_secs(1);

/// The supervisor, as the page sees it.
struct Told {
    supervisor: Supervisor,
    /// The last answer of the cells.
    sum: Mutex<Option<(Instant, Counters, CellLoad)>>,
}

/// The page before anybody can see it: its socket, which is made before the supervisor gives up its rights.
pub(crate) struct Page {
    listener: TcpListener,
    options: Options,
}

impl Page {
    /// Listens.
    pub(crate) fn bind(address: SocketAddr, writable: bool) -> anyhow::Result<Page> {
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot serve the page on {address}"))?;
        let address = listener.local_addr().context("the page has no address")?;
        let options = if writable {
            Options::writable(address, Key::random().context("cannot make a key for the page")?)
        } else {
            Options::read_only(address)
        };
        Ok(Page { listener, options })
    }

    /// Starts to serve the page, and says where.
    pub(crate) fn serve(self, supervisor: Supervisor) -> anyhow::Result<()> {
        let Page { listener, options } = self;
        println!("the page is at {}", options.url());
        let source = Arc::new(Told { supervisor, sum: Mutex::default() });
        std::thread::Builder::new()
            .name("page".to_owned())
            .spawn(move || {
                foraker_supervisor::background::enter(Kind::Control);
                if let Err(e) = foraker_ui::serve(listener, source, options) {
                    log::error!("the page is not served any more: {e}");
                }
            })
            .context("cannot start a thread")?;
        Ok(())
    }
}

fn state(state: foraker_api::State) -> State {
    use foraker_api::State as Is;
    match state {
        Is::Waiting => State::Waiting,
        Is::Restarting => State::Restarting,
        Is::Starting => State::Starting,
        Is::Running => State::Running,
        Is::Paused => State::Paused,
        Is::Exited => State::Exited,
        Is::Faulted => State::Faulted,
        Is::Killed => State::Killed,
        Is::Refused => State::Refused,
        Is::Lost => State::Lost,
    }
}

fn cell(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

impl Told {
    /// What all guests have used and what waits, not older than a period.
    fn sum(&self) -> (Counters, CellLoad) {
        let mut last = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, counters, load)) = *last
            && at.elapsed() < PERIOD
        {
            return (counters, load);
        }
        let (counters, load) = Handle::current().block_on(self.supervisor.sum());
        *last = Some((Instant::now(), counters, load));
        (counters, load)
    }
}

impl Source for Told {
    fn guests(&self, roll: &mut Roll<'_>) {
        self.supervisor.each(|id, name, owner, is, on| {
            roll.call(Seen { id, name, owner, state: state(is), cell: cell(on) });
        });
    }

    fn figures(&self) -> Figures {
        let (counters, load) = self.sum();
        let gate = self.supervisor.gatekeeper();
        let frames = counters.rx_frames + counters.tx_frames;
        let queue = |length: usize| Some(length as u64);
        let starting = gate.states.get(foraker_api::State::Starting.name()).copied().unwrap_or(0);
        // In the order of `Graph::of_a_cell`. What cells do not count is not shown.
        let loads = vec![
            Load {
                queue: queue(load.senders),
                passed: Some(frames),
                refused: Some(load.dropped),
                ..Load::default()
            },
            Load {
                queue: queue(load.frames),
                passed: Some(frames),
                refused: Some(counters.rx_dropped + counters.tx_dropped),
                ..Load::default()
            },
            Load {
                queue: queue(gate.waiting),
                bound: Some(gate.settings.most_waiting.into()),
                refused: Some(gate.refused),
                ..Load::default()
            },
            Load { queue: queue(load.runnable), passed: Some(counters.exits), ..Load::default() },
            Load { queue: queue(load.timers), ..Load::default() },
            Load { queue: queue(load.missing), passed: Some(load.filled), ..Load::default() },
            Load { queue: queue(starting), ..Load::default() },
        ];
        Figures {
            bytes_in: Some(counters.rx_bytes),
            bytes_out: Some(counters.tx_bytes),
            exits: Some(counters.exits),
            memory: gate.has.memory,
            memory_budget: gate.settings.budget.memory,
            loads,
        }
    }

    fn cells(&self) -> Vec<Place> {
        let place = |c: foraker_api::Cell| Place {
            number: cell(c.number),
            process: c.process,
            label: c.tap.unwrap_or_default(),
            restarts: c.restarts,
        };
        self.supervisor.cells().into_iter().map(place).collect()
    }

    fn graph(&self) -> Graph {
        Graph::of_a_cell()
    }

    fn guest(&self, id: u64) -> Option<Detail> {
        let detail = Handle::current().block_on(self.supervisor.detail(id)).ok()?;
        let facts = facts(&detail);
        let GuestDetail { guest, fault, .. } = detail;
        Some(Detail {
            id,
            state: state(guest.state),
            cell: cell(guest.cell.unwrap_or(usize::MAX)),
            report: fault.map(|fault| fault.text()).or(guest.reason),
            name: guest.name,
            owner: guest.owner,
            facts,
        })
    }

    fn console(&self, id: u64, from: Option<u64>, most: usize) -> Option<Console> {
        let (from, bytes) = Handle::current().block_on(self.supervisor.console(id, from, most as u64));
        Some(Console { from, bytes })
    }

    fn act(&self, id: u64, action: Action) -> Result<(), Refusal> {
        let action = match action {
            Action::Start => foraker_api::Action::Start,
            Action::Stop => foraker_api::Action::Stop,
            Action::Kill => foraker_api::Action::Kill,
            Action::Pause => foraker_api::Action::Pause,
            Action::Resume => foraker_api::Action::Resume,
        };
        match self.supervisor.act(&id.to_string(), action) {
            Ok((_, ticket)) => {
                Handle::current().block_on(ticket.written());
                Ok(())
            }
            Err(Refused::NotFound(_)) => Err(Refusal::Unknown),
            Err(why) => Err(Refusal::Refused(why.to_string())),
        }
    }
}

/// What there is to say of a guest, in the order in which it is to be read.
fn facts(detail: &GuestDetail) -> Vec<Fact> {
    let g = &detail.guest;
    let mut facts = vec![
        Fact::new("life", "since", Value::Time(g.since_ms)),
        Fact::new("life", "asked for", Value::Time(g.created_ms)),
        Fact::new("life", "comes back", Value::Text(g.restart.to_string())),
        Fact::new("life", "came back", Value::Count(g.restarts.into())),
        Fact::new("image", "name", Value::Text(g.image.clone())),
        Fact::new("image", "digest", Value::Text(detail.digest.clone())),
        Fact::new("memory", "size", Value::Bytes(g.memory)),
    ];
    if let Some(us) = g.start_us {
        facts.insert(2, Fact::new("life", "first instruction after", Value::Nanoseconds(us * 1000)));
    }
    if let Some(c) = &detail.counters {
        facts.push(Fact::new("memory", "resident", Value::Bytes(c.resident)));
        facts.push(Fact::new("processor", "time", Value::Nanoseconds(c.cpu_ns)));
        facts.push(Fact::new("processor", "exits", Value::Count(c.exits)));
        for (name, frames, bytes, dropped) in [
            ("received", c.rx_frames, c.rx_bytes, c.rx_dropped),
            ("sent", c.tx_frames, c.tx_bytes, c.tx_dropped),
        ] {
            facts.push(Fact::new("network", format!("{name} frames"), Value::Count(frames)));
            facts.push(Fact::new("network", format!("{name} bytes"), Value::Bytes(bytes)));
            facts.push(Fact::new("network", format!("{name} dropped"), Value::Count(dropped)));
        }
    }
    if let Some(bytes) = detail.core_bytes {
        facts.push(Fact::new("life", "core kept", Value::Bytes(bytes)));
    }
    if let Some(address) = g.ipv4 {
        facts.push(Fact::new("network", "address", Value::Text(address.to_string())));
    }
    facts.extend(g.labels.iter().map(|(k, v)| Fact::new("labels", k.clone(), Value::Text(v.clone()))));
    facts
}
