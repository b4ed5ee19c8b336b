//! Clients that keep asking many web servers at once, each request over a connection of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::http;

/// What is asked for, and how long it is.
const PATH: &str = "/bytes/2000";
const SIZE: usize = 2000;
/// Pause of each client between requests: the servers' neighbours are to have time for their deeds.
const PAUSE: Duration = Duration::from_millis(3);

/// A request that was not answered right.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Who was asked.
    pub server: SocketAddr,
    /// What went wrong.
    pub error: String,
}

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Requests answered right.
    pub good: u64,
    /// Requests that were not.
    pub failed: Vec<Failed>,
    /// The longest time of an answer, connection included.
    pub slowest: Duration,
}

/// The clients.
#[derive(Debug)]
pub struct Crowd {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Asked>>,
    threads: Vec<JoinHandle<()>>,
}

/// One request.
///
/// # Errors
/// What is wrong with the answer.
pub fn ask(server: SocketAddr) -> Result<(), String> {
    match http::get(server, PATH) {
        Ok(answer) if answer.status == 200 && answer.body.len() == SIZE => Ok(()),
        Ok(answer) => Err(format!("status {}, {} bytes", answer.status, answer.body.len())),
        Err(e) => Err(e.to_string()),
    }
}

/// Asks every server once, from several threads; those that did not answer right.
#[must_use]
pub fn ask_each(servers: &[SocketAddr]) -> Vec<Failed> {
    let part = servers.len().div_ceil(4).max(1);
    let one = |server: &SocketAddr| ask(*server).err().map(|error| Failed { server: *server, error });
    std::thread::scope(|scope| {
        let parts: Vec<_> = servers
            .chunks(part)
            .map(|part| scope.spawn(move || part.iter().filter_map(one).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("a client does not panic")).collect()
    })
}

impl Crowd {
    /// Starts asking, `clients` at a time, one server after the other.
    #[must_use]
    pub fn start(servers: &[SocketAddr], clients: usize) -> Crowd {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Asked::default())));
        let client = |first: usize| {
            let (stop, seen, servers) = (Arc::clone(&stop), Arc::clone(&seen), servers.to_vec());
            std::thread::spawn(move || {
                for server in servers.iter().cycle().skip(first).step_by(clients) {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let start = Instant::now();
                    let result = ask(*server);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(()) => {
                            seen.good += 1;
                            seen.slowest = seen.slowest.max(start.elapsed());
                        }
                        Err(error) => seen.failed.push(Failed { server: *server, error }),
                    }
                    drop(seen);
                    std::thread::sleep(PAUSE);
                }
            })
        };
        let threads = (0..clients).map(client).collect();
        Crowd { stop, seen, threads }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Asked {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops asking; what was seen.
    #[must_use]
    pub fn finish(mut self) -> Asked {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}
