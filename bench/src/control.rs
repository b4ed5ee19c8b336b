//! A client that speaks the language of a supervisor's control socket itself: where a start takes a millisecond, a process for each question
//! would be most of what is measured.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use foraker_supervisor::channel::{receive, send};
use foraker_supervisor::{Listed, Order, Reply, Request};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Control {
    /// Connects.
    ///
    /// # Errors
    /// When there is no supervisor.
    pub fn connect(socket: &Path) -> Result<Control> {
        let stream = UnixStream::connect(socket).context("no supervisor answers")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Control(stream))
    }

    fn ask(&mut self, request: &Request) -> Result<Reply> {
        send(&mut self.0, request)?;
        match receive(&mut self.0)?.context("the supervisor has gone")? {
            Reply::Refused(why) => bail!("refused: {why}"),
            reply => Ok(reply),
        }
    }

    /// Has a guest run. Returns its id, and where it is reached, as soon as it runs.
    ///
    /// # Errors
    /// When it is refused, or does not run in time.
    pub fn run(&mut self, order: &Order) -> Result<(u64, Ipv4Addr)> {
        let order = Box::new(order.clone());
        let request = Request::Run { order, count: 1, restart: "no".to_owned(), wait: true };
        match self.ask(&request)? {
            Reply::Taken { first, ipv4: Some(address), .. } => Ok((first, address)),
            other => bail!("the supervisor answered {other:?}"),
        }
    }

    /// Every guest.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn guests(&mut self) -> Result<Vec<Listed>> {
        match self.ask(&Request::List)? {
            Reply::Guests(guests) => Ok(guests),
            other => bail!("the supervisor answered {other:?}"),
        }
    }

    /// The addresses of the guests that run, the first guest's first.
    ///
    /// # Errors
    /// When the supervisor has gone, or a guest does not run.
    pub fn addresses(&mut self) -> Result<Vec<Ipv4Addr>> {
        let of = |g: Listed| g.ipv4.filter(|_| g.phase == "running").with_context(|| g.phase.clone());
        self.guests()?.into_iter().map(of).collect::<Result<_>>().context("a guest does not run")
    }

    /// A guest, if it is there.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn guest(&mut self, id: u64) -> Result<Option<Listed>> {
        Ok(self.guests()?.into_iter().find(|g| g.id == id))
    }

    /// Ends a guest, without asking it.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        self.ask(&Request::Stop { ids: Some(vec![id]), kill: true }).map(drop)
    }

    /// Has the supervisor forget guests that have ended.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn prune(&mut self) -> Result<()> {
        self.ask(&Request::Prune).map(drop)
    }

    /// Processes of the cells.
    ///
    /// # Errors
    /// When the supervisor has gone, or a cell has.
    pub fn cells(&mut self) -> Result<Vec<u32>> {
        match self.ask(&Request::Cells)? {
            Reply::Cells(cells) => {
                cells.into_iter().map(|(process, ..)| process.context("a cell has died")).collect()
            }
            other => bail!("the supervisor answered {other:?}"),
        }
    }
}
