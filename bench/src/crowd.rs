//! A load generator for HTTP over many servers: `wrk` knows one, or one for each of its threads.
//!
//! A crowd of clients, one thread, epoll. Each request goes to a server that is drawn by Zipf's law, over a connection that is kept
//! alive from an earlier request to the same server and that nobody uses; there is at most one request on a connection at a time. If there is
//! none, one is opened; above a limit the idle one that was used least recently is closed for it.
//!
//! With [`Pace::Closed`] each client makes its next request as soon as it has its answer; with [`Pace::Open`] requests come at a
//! steady rate, whatever the answers do, and latency counts from the moment at which a request was due, so that a server that stalls
//! is charged for all that waited (no coordinated omission). A single failed request makes the run worthless.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::fetch::fetch;
use crate::stats::Samples;
use crate::zipf::Zipf;

/// Longest time without a single answer.
const PATIENCE: Duration = Duration::from_secs(10);
const EVENTS: usize = 256;
const READ: usize = 16 << 10;

/// Whom the crowd asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The servers, the one that is asked most first.
    pub servers: &'a [Ipv4Addr],
    /// Their port.
    pub port: u16,
    /// What is fetched.
    pub path: &'a str,
    /// Most connections.
    pub connections: usize,
}

/// When requests are made.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// By so many clients, each when it has its last answer.
    Closed(usize),
    /// So many each second.
    Open(u32),
}

/// What a run measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests that were answered.
    pub requests: u64,
    /// Connections that were opened.
    pub opened: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// From when each request was due to the end of its answer, milliseconds.
    pub latency: Samples,
}

impl Outcome {
    /// Requests answered per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It is being opened for a request that was due then.
    Opening(Instant),
    /// So many bytes of the answer to a request that was due then are there.
    Waiting(Instant, usize),
    /// Nothing; the number says when it was used last.
    Resting(u64),
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    server: usize,
    doing: Doing,
}

/// The clients, with their connections.
#[derive(Debug)]
pub struct Crowd<'a> {
    target: Target<'a>,
    zipf: Zipf,
    epoll: OwnedFd,
    request: Vec<u8>,
    /// Bytes of a whole answer.
    answer: usize,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Resting connections of each server.
    resting: Vec<Vec<usize>>,
    /// All resting connections, by when they were used last.
    by_use: BTreeMap<u64, usize>,
    uses: u64,
    opened: u64,
    buffer: Vec<u8>,
}

impl<'a> Crowd<'a> {
    /// Gathers it. Fetches the document once, to know its length.
    ///
    /// # Errors
    /// When the first server does not answer, or descriptors cannot be had.
    pub fn gather(target: Target<'a>) -> Result<Crowd<'a>> {
        let first = *target.servers.first().context("no servers")?;
        let answer = fetch(SocketAddrV4::new(first, target.port), target.path)?.len();
        raise_descriptor_limit()?;
        // SAFETY: no preconditions; the result is checked.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        ensure!(epoll >= 0, "epoll_create1: {}", io::Error::last_os_error());
        Ok(Crowd {
            zipf: Zipf::new(target.servers.len(), 1.0, 1),
            // SAFETY: the kernel has just given it to us, and nobody else has it.
            epoll: unsafe { OwnedFd::from_raw_fd(epoll) },
            request: format!("GET {} HTTP/1.1\r\nHost: server\r\n\r\n", target.path).into_bytes(),
            answer,
            connections: Vec::new(),
            free: Vec::new(),
            resting: vec![Vec::new(); target.servers.len()],
            by_use: BTreeMap::new(),
            uses: 0,
            opened: 0,
            buffer: vec![0; READ],
            target,
        })
    }

    /// One request to every server, as many at a time as `clients`: so that what a server does only once is done.
    ///
    /// # Errors
    /// When one is not answered.
    pub fn visit_all(&mut self, clients: usize) -> Result<()> {
        let mut next = 0..self.target.servers.len();
        self.drive(clients, |_| {
            next.next().map(|server| Next::Due(server, Instant::now())).unwrap_or(Next::Over)
        })
        .map(drop)
    }

    /// Requests for so long.
    ///
    /// # Errors
    /// When one is not answered.
    pub fn run(&mut self, pace: Pace, duration: Duration) -> Result<Outcome> {
        let (start, mut made) = (Instant::now(), 0u32);
        let mut zipf = self.zipf.clone();
        let most = match pace {
            Pace::Closed(clients) => clients,
            Pace::Open(_) => self.target.connections,
        };
        let outcome = self.drive(most, |now| {
            let due = match pace {
                Pace::Closed(_) => now,
                Pace::Open(rate) => start + Duration::from_secs(1) * made / rate,
            };
            match () {
                () if due >= start + duration => Next::Over,
                () if due > now => Next::Later(due),
                () => {
                    made += 1;
                    Next::Due(zipf.draw(), due)
                }
            }
        });
        self.zipf = zipf;
        outcome
    }

    /// Makes requests as `next` says until it says that there are no more, at most `most` at a time, and waits for all answers.
    fn drive(&mut self, most: usize, mut next: impl FnMut(Instant) -> Next) -> Result<Outcome> {
        let (start, opened) = (Instant::now(), self.opened);
        let (mut under_way, mut latency, mut heard) = (0, Samples::default(), start);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        loop {
            let (mut wait, mut over) = (PATIENCE, false);
            while under_way < most {
                let now = Instant::now();
                match next(now) {
                    Next::Due(server, due) => {
                        self.ask(server, due)?;
                        under_way += 1;
                    }
                    Next::Later(due) => {
                        wait = due - now;
                        break;
                    }
                    Next::Over => {
                        over = true;
                        break;
                    }
                }
            }
            if over && under_way == 0 {
                break;
            }
            let count = self.wait(&mut events, wait)?;
            let now = Instant::now();
            for event in &events[..count] {
                if let Some(due) = self.progress(event.u64 as usize)? {
                    latency.push((Instant::now() - due).as_secs_f64() * 1e3);
                    under_way -= 1;
                    heard = now;
                }
            }
            ensure!(under_way == 0 || now - heard < PATIENCE, "{under_way} requests are not answered");
        }
        let opened = self.opened - opened;
        Ok(Outcome { requests: latency.len() as u64, opened, elapsed: start.elapsed(), latency })
    }

    /// Waits for events: to the microsecond, which `epoll_wait` does not.
    fn wait(&self, events: &mut [libc::epoll_event; EVENTS], most: Duration) -> Result<usize> {
        let time = libc::timespec {
            tv_sec: most.as_secs().cast_signed(),
            tv_nsec: libc::c_long::from(most.subsec_nanos()),
        };
        // SAFETY: the array has room for EVENTS events, the time lives on, and no signals are masked.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS as libc::c_int,
                &raw const time,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        match usize::try_from(n) {
            Ok(n) => Ok(n),
            Err(_) if io::Error::last_os_error().kind() == ErrorKind::Interrupted => Ok(0),
            Err(_) => Err(io::Error::last_os_error()).context("epoll_pwait2"),
        }
    }

    /// Makes a request of a server that was due at a time.
    fn ask(&mut self, server: usize, due: Instant) -> Result<()> {
        if let Some(slot) = self.resting[server].pop() {
            let connection = self.connections[slot].as_mut().context("a resting connection is gone")?;
            if let Doing::Resting(used) = connection.doing {
                self.by_use.remove(&used);
            }
            connection.doing = Doing::Waiting(due, 0);
            return send(&connection.stream, &self.request);
        }
        if self.connections.len() - self.free.len() >= self.target.connections
            && let Some((_, slot)) = self.by_use.pop_first()
        {
            self.close(slot);
        }
        let address = SocketAddr::from((self.target.servers[server], self.target.port));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot connect to {address}")),
        }
        self.opened += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        // Edges, so that a connection costs one call in its life.
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: interest.cast_unsigned(), u64: slot as u64 };
        // SAFETY: two open descriptors and a live event.
        let added = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event)
        };
        ensure!(added == 0, "epoll_ctl: {}", io::Error::last_os_error());
        self.connections[slot] =
            Some(Connection { stream: socket.into(), server, doing: Doing::Opening(due) });
        Ok(())
    }

    fn close(&mut self, slot: usize) {
        if let Some(connection) = self.connections[slot].take() {
            self.resting[connection.server].retain(|s| *s != slot);
            self.free.push(slot);
        }
    }

    /// Something happened on a connection. Returns when its request was due, if that has its answer now.
    fn progress(&mut self, slot: usize) -> Result<Option<Instant>> {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else {
            return Ok(None);
        };
        let server = self.target.servers[connection.server];
        if let Doing::Opening(due) = connection.doing {
            if let Some(e) = connection.stream.take_error()? {
                return Err(e).with_context(|| format!("cannot connect to {server}"));
            }
            if connection.stream.peer_addr().is_err() {
                return Ok(None);
            }
            connection.doing = Doing::Waiting(due, 0);
            send(&connection.stream, &self.request)?;
        }
        loop {
            let n = match connection.stream.read(&mut self.buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e).with_context(|| format!("a connection to {server}")),
            };
            let Doing::Waiting(due, had) = connection.doing else {
                // Servers may close what rests.
                ensure!(n == 0, "{server} sent what nobody asked for");
                if let Doing::Resting(used) = connection.doing {
                    self.by_use.remove(&used);
                }
                self.close(slot);
                return Ok(None);
            };
            ensure!(n > 0, "{server} closed a connection in the middle of an answer");
            ensure!(had > 0 || self.buffer.starts_with(b"HTTP/1.1 200"), "{server} gave no good answer");
            let have = had + n;
            ensure!(have <= self.answer, "{server} gave an answer of another length");
            connection.doing = Doing::Waiting(due, have);
            if have == self.answer {
                self.uses += 1;
                connection.doing = Doing::Resting(self.uses);
                self.by_use.insert(self.uses, slot);
                self.resting[connection.server].push(slot);
                return Ok(Some(due));
            }
        }
    }
}

/// What a crowd does next.
enum Next {
    /// A request of this server, which was due then.
    Due(usize, Instant),
    /// Nothing until then.
    Later(Instant),
    /// Nothing more.
    Over,
}

fn send(mut stream: &TcpStream, request: &[u8]) -> Result<()> {
    let n = stream.write(request).context("a request cannot be sent")?;
    // On a connection on which nothing is under way a request always fits.
    ensure!(n == request.len(), "a request was sent in part");
    Ok(())
}

/// As many descriptors as the host allows.
fn raise_descriptor_limit() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure for the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(got == 0 && set == 0, "RLIMIT_NOFILE: {}", io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A server on each of so many loopback addresses; counts connections.
    fn serve(count: u8, answer: &'static [u8]) -> (Vec<Ipv4Addr>, u16, Arc<AtomicUsize>) {
        let accepted = Arc::new(AtomicUsize::new(0));
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let servers: Vec<_> = (1..=count).map(|n| Ipv4Addr::new(127, 0, 0, n)).collect();
        let mut listeners = vec![first];
        listeners.extend(servers.iter().skip(1).map(|a| TcpListener::bind((*a, port)).unwrap()));
        for listener in listeners {
            let accepted = Arc::clone(&accepted);
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    accepted.fetch_add(1, Ordering::SeqCst);
                    std::thread::spawn(move || {
                        let mut request = [0; 1024];
                        while matches!(stream.read(&mut request), Ok(1..)) && stream.write_all(answer).is_ok()
                        {
                        }
                    });
                }
            });
        }
        (servers, port, accepted)
    }

    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    #[test]
    fn every_server_is_visited_and_connections_are_kept() {
        let (servers, port, accepted) = serve(5, GOOD);
        let target = Target { servers: &servers, port, path: "/", connections: 64 };
        let mut crowd = Crowd::gather(target).unwrap();
        crowd.visit_all(2).unwrap();
        // One more that only learned the length.
        assert_eq!(accepted.load(Ordering::SeqCst), 6);
        let outcome = crowd.run(Pace::Closed(1), Duration::from_millis(50)).unwrap();
        assert!(outcome.requests > 10 && outcome.opened == 0, "{outcome:?}");
        assert_eq!(outcome.latency.len() as u64, outcome.requests);
    }

    #[test]
    fn no_more_connections_than_allowed() {
        let (servers, port, _) = serve(5, GOOD);
        let target = Target { servers: &servers, port, path: "/", connections: 2 };
        let mut crowd = Crowd::gather(target).unwrap();
        crowd.visit_all(1).unwrap();
        let outcome = crowd.run(Pace::Closed(2), Duration::from_millis(50)).unwrap();
        assert!(outcome.opened > 2 && crowd.connections.len() <= 2, "{} open", crowd.connections.len());
    }

    #[test]
    fn an_open_pace_makes_as_many_requests_as_it_says() {
        let (servers, port, _) = serve(1, GOOD);
        let target = Target { servers: &servers, port, path: "/", connections: 8 };
        let outcome =
            Crowd::gather(target).unwrap().run(Pace::Open(500), Duration::from_millis(200)).unwrap();
        assert_eq!(outcome.requests, 100);
    }

    #[test]
    fn a_wrong_answer_makes_the_run_worthless() {
        let (servers, port, _) = serve(1, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
        let target = Target { servers: &servers, port, path: "/", connections: 8 };
        assert!(Crowd::gather(target).is_err());
    }
}
