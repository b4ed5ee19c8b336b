//! The control socket: a client sends a [`Request`] and gets a [`Reply`], in the form of [`crate::channel`].

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use foraker_policy::restart::Restart;
use serde::{Deserialize, Serialize};

use crate::admission::{ListedOwner, OwnerSettings};
use crate::channel::{Order, receive, send};
use crate::supervisor::Supervisor;

/// How long a request to wait is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// Most guests of one request.
const MOST: u64 = 1_000_000;

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run guests.
    Run {
        /// What each is.
        order: Box<Order>,
        /// How many.
        count: u64,
        /// When one comes back: `no`, `on-failure`, `always`.
        restart: String,
        /// Answer only when they run.
        wait: bool,
    },
    /// List guests.
    List,
    /// List cells.
    Cells,
    /// End guests: these, or all.
    Stop {
        /// Which.
        ids: Option<Vec<u64>>,
        /// Do not ask them.
        kill: bool,
    },
    /// Forget guests that have ended.
    Prune,
    /// Settle what an owner may have.
    SetOwner {
        /// Its name.
        name: String,
        /// All that is settled.
        settings: OwnerSettings,
    },
    /// List owners.
    Owners,
}

/// What it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Guests were taken: the first id and the last; so many of them do not run yet.
    Taken {
        /// First id.
        first: u64,
        /// Last id.
        last: u64,
        /// Not running yet.
        open: usize,
        /// Where the first is reached, if it runs already.
        ipv4: Option<Ipv4Addr>,
    },
    /// The guests.
    Guests(Vec<Listed>),
    /// The cells: process, TAP device, guests, restarts.
    Cells(Vec<(Option<u32>, Option<String>, usize, u32)>),
    /// The owners.
    Owners(Vec<ListedOwner>),
    /// So many guests, or owners, were concerned.
    Done(usize),
    /// The request makes no sense, or cannot be granted: why.
    Refused(String),
}

/// A guest in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Its image's file.
    pub image: String,
    /// Where it is in its life: `waiting`, `starting`, `running`, or how it ended.
    pub phase: String,
    /// Its cell.
    pub cell: usize,
    /// Its address.
    pub ipv4: Option<Ipv4Addr>,
    /// How often it came back.
    pub restarts: u32,
    /// From the request (or its coming back) to its first instruction, microseconds; none until its cell has told.
    pub start_us: Option<u64>,
}

/// Makes the control socket, for this user alone.
///
/// # Errors
/// Another supervisor uses it, or the path cannot be used.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        let text =
            format!("a supervisor runs already on {}: stop it, or name another --socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // Left behind by one that was killed; whatever else is there stays, and is an error.
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type()));
    if is_socket {
        std::fs::remove_file(path)?;
    }
    // Not changed afterwards: others could connect in between.
    // SAFETY: a system call that cannot fail; no other thread makes files yet.
    let mask = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    listener
}

/// Answers clients for ever.
pub fn serve(listener: &UnixListener, supervisor: &Supervisor) {
    for stream in listener.incoming().flatten() {
        let supervisor = supervisor.clone();
        let spawned =
            std::thread::Builder::new().name("client".to_owned()).spawn(move || client(stream, &supervisor));
        if let Err(e) = spawned {
            log::warn!("a client was turned away: {e}");
        }
    }
}

fn client(mut stream: UnixStream, supervisor: &Supervisor) {
    while let Ok(Some(request)) = receive::<Request>(&mut stream) {
        if send(&mut stream, &answer(supervisor, request)).is_err() {
            return;
        }
    }
}

fn answer(supervisor: &Supervisor, request: Request) -> Reply {
    match request {
        Request::Run { count, .. } if count == 0 || count > MOST => {
            Reply::Refused(format!("{count} guests: choose 1 to {MOST}"))
        }
        Request::Run { order, count, .. } if !order.publish.is_empty() && count > 1 => {
            Reply::Refused(format!(
                "{count} guests cannot all have port {} of the host: publish one guest at a time",
                order.publish.first().map_or(0, |(host, _)| host.port())
            ))
        }
        Request::Run { order, .. } if !order.publish.is_empty() && order.network.is_none() => Reply::Refused(
            format!("guest {} has no network, so its ports cannot be published: add --net", order.name),
        ),
        Request::Run { order, count, restart, wait } => {
            let restart = match restart.as_str() {
                "no" => Restart::No,
                "on-failure" => Restart::OnFailure,
                "always" => Restart::Always,
                other => {
                    return Reply::Refused(format!(
                        "no restart policy {other}: choose no, on-failure or always"
                    ));
                }
            };
            match supervisor.run(&order, count, restart) {
                Ok((first, last)) => {
                    let most = if wait { PATIENCE } else { Duration::ZERO };
                    let open = supervisor.wait_settled(first..=last, most);
                    Reply::Taken { first, last, open, ipv4: supervisor.address(first) }
                }
                Err(why) => Reply::Refused(why.to_string()),
            }
        }
        Request::List => Reply::Guests(supervisor.list()),
        Request::Cells => Reply::Cells(supervisor.cells()),
        Request::Stop { ids, kill } => Reply::Done(supervisor.end(ids.as_deref(), kill)),
        Request::Prune => Reply::Done(supervisor.forget_ended()),
        Request::SetOwner { name, settings } => match supervisor.set_owner(&name, &settings) {
            Ok(()) => Reply::Done(1),
            Err(why) => Reply::Refused(why.to_string()),
        },
        Request::Owners => Reply::Owners(supervisor.owners()),
    }
}

/// Asks a supervisor.
///
/// # Errors
/// There is none, or it went away.
pub fn ask(path: &Path, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(path)?;
    send(&mut stream, request)?;
    receive(&mut stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
