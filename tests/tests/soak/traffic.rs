//! Clients of the web servers among the guests, which come and go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foraker_tests::bounds::stretched;
use foraker_tests::crowd;

use crate::random::Random;

/// How long a guest that runs may take until it serves.
const FIRST: Duration = Duration::from_secs(10);
/// Pause of a client between requests.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
struct Server {
    address: SocketAddr,
    since: Instant,
    answered: bool,
}

#[derive(Debug, Default)]
struct Board {
    servers: BTreeMap<u64, Server>,
    good: u64,
    problems: Vec<String>,
    slowest: Duration,
}

/// The clients.
#[derive(Debug)]
pub(crate) struct Traffic {
    board: Arc<Mutex<Board>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

fn locked(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// So many clients.
    pub(crate) fn start(clients: u64, seed: u64) -> Traffic {
        let (board, stop) = (Arc::new(Mutex::new(Board::default())), Arc::new(AtomicBool::new(false)));
        let client = |number| {
            let (board, stop, mut random) =
                (Arc::clone(&board), Arc::clone(&stop), Random::new(seed ^ number));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    ask_one(&board, &mut random);
                    std::thread::sleep(PAUSE);
                }
            })
        };
        let threads = (1..=clients).map(client).collect();
        Traffic { board, stop, threads }
    }

    /// A guest runs and is to serve from now on.
    pub(crate) fn add(&self, id: u64, address: SocketAddr) {
        let new = || Server { address, since: Instant::now(), answered: false };
        locked(&self.board).servers.entry(id).or_insert_with(new);
    }

    /// A guest is about to be ended: what becomes of requests to it is nobody's fault.
    pub(crate) fn remove(&self, id: u64) {
        locked(&self.board).servers.remove(&id);
    }

    /// Every guest that is asked.
    pub(crate) fn servers(&self) -> Vec<SocketAddr> {
        locked(&self.board).servers.values().map(|s| s.address).collect()
    }

    /// Requests answered so far, and the slowest of them since the last time.
    pub(crate) fn answered(&self) -> (u64, Duration) {
        let mut board = locked(&self.board);
        (board.good, std::mem::take(&mut board.slowest))
    }

    /// What went wrong since the last time.
    pub(crate) fn problems(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.board).problems)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ask_one(board: &Mutex<Board>, random: &mut Random) {
    let chosen = {
        let board = locked(board);
        let number = random.below(board.servers.len().max(1));
        board.servers.iter().nth(number).map(|(id, server)| (*id, *server))
    };
    let Some((id, server)) = chosen else { return };
    let started = Instant::now();
    let result = crowd::ask(server.address);
    let mut board = locked(board);
    match (result, board.servers.get_mut(&id)) {
        (Ok(()), there) => {
            if let Some(server) = there {
                server.answered = true;
            }
            board.good += 1;
            board.slowest = board.slowest.max(started.elapsed());
        }
        // Ended meanwhile.
        (Err(_), None) => {}
        (Err(_), Some(s)) if !s.answered && s.since.elapsed() < stretched(FIRST) => {}
        (Err(e), Some(s)) => {
            let text = format!(
                "guest {id} at {} ({}): {e}",
                s.address,
                if s.answered { "served" } else { "never served" }
            );
            board.problems.push(text);
        }
    }
}
