//! A client that keeps asking a well-behaved guest while its neighbours misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::http::Connection;

/// Bytes of the document that is asked for.
const SIZE: usize = 10_000;
/// Requests on one connection before the next is made.
const REQUESTS_PER_CONNECTION: usize = 20;
/// Pause between requests: the neighbours are to be disturbed, not this machine's other tests.
const PAUSE: Duration = Duration::from_millis(2);

/// What a client saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests answered right.
    pub good: u64,
    /// What went wrong.
    pub errors: Vec<String>,
    /// The longest time of an answer, connection included.
    pub slowest: Duration,
}

/// The client.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Prober {
    /// Starts asking.
    #[must_use]
    pub fn start(server: SocketAddr) -> Prober {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !flag.load(Ordering::SeqCst) {
                if let Err(e) = one_connection(server, &flag, &mut seen) {
                    seen.errors.push(e);
                }
            }
            seen
        });
        Prober { stop, thread: Some(thread) }
    }

    /// Stops asking; what was seen.
    ///
    /// # Panics
    /// The client's thread panicked.
    #[must_use]
    pub fn finish(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("finished once").join().expect("the client does not panic")
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn one_connection(server: SocketAddr, stop: &AtomicBool, seen: &mut Seen) -> Result<(), String> {
    let path = format!("/bytes/{SIZE}");
    let mut connection = None;
    for _ in 0..REQUESTS_PER_CONNECTION {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let start = Instant::now();
        let connection = match &mut connection {
            Some(open) => open,
            none => none.insert(Connection::open(server).map_err(|e| format!("connect: {e}"))?),
        };
        let response = connection.get(&path).map_err(|e| format!("get: {e}"))?;
        if response.status != 200 || response.body.len() != SIZE {
            return Err(format!("status {}, {} bytes", response.status, response.body.len()));
        }
        seen.good += 1;
        seen.slowest = seen.slowest.max(start.elapsed());
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
