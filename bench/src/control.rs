//! A client that speaks to a supervisor's API itself: where a start takes a millisecond, a process for each question would be most of what is
//! measured.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use foraker_api::guest::Bulk;
use foraker_api::{Action, Client, Create, Filter, Guest, GuestSpec, State};

/// How long a guest may take to run, seconds.
const PATIENCE: u16 = 60;
/// How often it is looked whether one runs that had to wait in line.
const LOOK: Duration = Duration::from_millis(1);

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Control(Client);

impl Control {
    /// Connects.
    ///
    /// # Errors
    /// When there is no supervisor.
    pub fn connect(socket: &Path) -> Result<Control> {
        Ok(Control(Client::connect(socket)?))
    }

    /// Has the supervisor keep an image. Returns what guests call it.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn image(&mut self, file: &Path) -> Result<String> {
        Ok(self.0.hand_over(file, None)?)
    }

    /// Has a guest run. Returns its id, and where it is reached, as soon as it runs.
    ///
    /// # Errors
    /// When it is refused, or does not run in time.
    pub fn run(&mut self, guest: &GuestSpec) -> Result<(u64, Ipv4Addr)> {
        let create = Create { count: 1, wait_seconds: PATIENCE, guest: guest.clone() };
        let created = self.0.create(&create)?;
        if created.open == 0 {
            return Ok((created.first, created.ipv4.context("the guest has no address")?));
        }
        // It stands in the gatekeeper's line, which nobody waits for who asks for a guest.
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(PATIENCE.into()) {
            let guest = self.guest(created.first)?;
            if guest.state == State::Running {
                return Ok((guest.id, guest.ipv4.context("the guest has no address")?));
            }
            ensure!(!guest.state.is_over(), "guest {} does not run: it is {}", guest.id, guest.state);
            std::thread::sleep(LOOK);
        }
        bail!("guest {} does not run", created.first)
    }

    /// Every guest.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn guests(&mut self) -> Result<Vec<Guest>> {
        Ok(self.0.guests(&Filter::default())?)
    }

    /// The addresses of the guests that run, the first guest's first.
    ///
    /// # Errors
    /// When the supervisor has gone, or a guest does not run.
    pub fn addresses(&mut self) -> Result<Vec<Ipv4Addr>> {
        let of = |g: Guest| g.ipv4.filter(|_| g.state == State::Running).with_context(|| g.state.to_string());
        self.guests()?.into_iter().map(of).collect::<Result<_>>().context("a guest does not run")
    }

    /// How many guests run.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn running(&mut self) -> Result<u64> {
        Ok(self.guests()?.iter().filter(|g| g.state == State::Running).count() as u64)
    }

    /// A guest.
    ///
    /// # Errors
    /// When it is not there.
    pub fn guest(&mut self, id: u64) -> Result<Guest> {
        Ok(self.0.guest(&id.to_string())?.guest)
    }

    /// Ends a guest, without asking it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        Ok(self.0.act(&id.to_string(), Action::Kill).map(drop)?)
    }

    /// Has a guest run again.
    ///
    /// # Errors
    /// When it is not there.
    pub fn start(&mut self, id: u64) -> Result<()> {
        Ok(self.0.act(&id.to_string(), Action::Start).map(drop)?)
    }

    /// Ends all guests, without asking them.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn kill_all(&mut self) -> Result<()> {
        Ok(self.0.act_on_all(&Bulk { action: Action::Kill, filter: Filter::default() }).map(drop)?)
    }

    /// Has the supervisor forget guests that have ended.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn prune(&mut self) -> Result<()> {
        self.0.post::<foraker_api::guest::Done>("/guests/prune", Some(&Filter::default()))?;
        Ok(())
    }

    /// Processes of the cells.
    ///
    /// # Errors
    /// When the supervisor has gone, or a cell has.
    pub fn cells(&mut self) -> Result<Vec<u32>> {
        self.0.cells()?.into_iter().map(|cell| cell.process.context("a cell has died")).collect()
    }

    /// An answer as it is.
    ///
    /// # Errors
    /// When there is none.
    pub fn bytes(&mut self, path: &str) -> Result<Vec<u8>> {
        Ok(self.0.text(path)?)
    }

    /// A figure of the supervisor's metrics that has no labels.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn metric(&mut self, name: &str) -> Result<u64> {
        let text = self.0.text("/metrics?guests=none")?;
        let text = String::from_utf8_lossy(&text);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        Ok(value.with_context(|| format!("no metric {name}"))? as u64)
    }
}
