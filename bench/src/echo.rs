//! UDP echoes, one in flight at a time, each stamped with the time-stamp counter along its path.
//!
//! A request is [`SIZE`] bytes: its number, then zeros. A server sends it back; one that has stamps writes them
//! behind the number. The counter is the same one everywhere on the machine (and in guests of the development machine's KVM).

use std::arch::x86_64::_rdtsc;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::arrival;
use crate::netns::Namespace;
use crate::stats::Samples;

/// Where servers listen.
pub const PORT: u16 = 5003;
/// Bytes of a request and of an answer.
pub const SIZE: usize = 64;
/// Stamps that an answer has room for.
pub const STAMPS: usize = 4;

const WARM_UP: u64 = 200;
const ECHOES: u64 = 2000;

/// One echo as the client saw it. Times in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    /// Just before the request was sent.
    pub sent: u64,
    /// What the server wrote; zeros if it writes none.
    pub stamps: [u64; STAMPS],
    /// Just after the answer was received.
    pub received: u64,
}

/// Sends requests and waits for their answers.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    next: u64,
}

/// The time-stamp counter.
#[must_use]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _rdtsc() }
}

/// Ticks per microsecond, measured against the clock for 50 ms.
#[must_use]
pub fn ticks_per_microsecond() -> f64 {
    let (start, from) = (Instant::now(), ticks());
    while start.elapsed() < Duration::from_millis(50) {
        std::hint::spin_loop();
    }
    (ticks() - from) as f64 / (start.elapsed().as_secs_f64() * 1e6)
}

impl Client {
    /// A client of the server at `address`.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn connect(address: Ipv4Addr) -> Result<Client> {
        let socket = UdpSocket::bind("0.0.0.0:0").context("cannot make a socket")?;
        socket.connect(SocketAddrV4::new(address, PORT)).with_context(|| format!("no route to {address}"))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        arrival::note(&socket).context("the host does not note when packets arrive")?;
        Ok(Client { socket, next: 1 })
    }

    /// One round trip.
    ///
    /// # Errors
    /// When the answer is lost or another one than expected.
    pub fn echo(&mut self) -> Result<Echo> {
        let mut packet = self.next_packet();
        let sent = ticks();
        self.socket.send(&packet).context("cannot send")?;
        let n = self.socket.recv(&mut packet).context("an echo was lost")?;
        let received = ticks();
        self.check(&packet, n)?;
        let mut stamps = [0; STAMPS];
        for (stamp, bytes) in stamps.iter_mut().zip(packet[8..].chunks_exact(8)) {
            *stamp = u64::from_le_bytes(bytes.try_into()?);
        }
        Ok(Echo { sent, stamps, received })
    }

    /// One round trip, from before the request is sent to when the host's network has the answer. This client only looks for it at `then`: it is not woken by
    /// it, so that it takes no time from whoever computes on the same processors, nor waits for one.
    ///
    /// # Errors
    /// As [`Client::echo`].
    pub fn echo_by_arrival(&mut self, then: Instant) -> Result<Duration> {
        let mut packet = self.next_packet();
        let sent = SystemTime::now();
        self.socket.send(&packet).context("cannot send")?;
        std::thread::sleep(then.saturating_duration_since(Instant::now()));
        let (n, arrived) = arrival::receive(&self.socket, &mut packet).context("an echo was lost")?;
        self.check(&packet, n)?;
        arrived.duration_since(sent).context("the clock was set back")
    }

    fn next_packet(&mut self) -> [u8; SIZE] {
        let mut packet = [0; SIZE];
        packet[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        packet
    }

    /// Whether these `n` bytes answer the request that was sent last.
    fn check(&self, packet: &[u8; SIZE], n: usize) -> Result<()> {
        let answers = n == SIZE && packet[..8] == (self.next - 1).to_le_bytes();
        ensure!(answers, "an answer to something else came");
        Ok(())
    }

    /// Echoes in a row, after a warm-up that is not returned.
    ///
    /// # Errors
    /// As [`Client::echo`].
    pub fn echoes(&mut self) -> Result<Vec<Echo>> {
        for _ in 0..WARM_UP {
            self.echo()?;
        }
        (0..ECHOES).map(|_| self.echo()).collect()
    }
}

/// Median round trip of many echoes, microseconds.
///
/// # Errors
/// As [`Client::echo`].
pub fn median_round_trip(client: &mut Client) -> Result<f64> {
    let scale = ticks_per_microsecond();
    let trips: Samples = client.echoes()?.iter().map(|e| (e.received - e.sent) as f64 / scale).collect();
    trips.median().context("no echoes")
}

/// Starts a native echo server inside `namespace`. Its thread ends with the process.
///
/// # Errors
/// When the port is in use.
pub fn start_native(namespace: &Namespace) -> Result<()> {
    let address = SocketAddrV4::new(namespace.address(), PORT);
    let socket = namespace.run(move || UdpSocket::bind(address))?.context("cannot listen")?;
    namespace.spawn("native-echo", move || {
        let mut packet = [0; SIZE];
        while let Ok((n, from)) = socket.recv_from(&mut packet) {
            if socket.send_to(&packet[..n], from).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}
