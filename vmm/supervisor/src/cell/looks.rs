//! Those who look into guests of a cell: debuggers, dumps and traces, each over a stream of its own and on a thread of its own.
//!
//! Nobody waits for them but the guest that is held meanwhile: they are few, and one that reads too slowly is left. Whoever closes the stream has gone.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foraker_api::Traced;
use foraker_api::trace::TracedKind;
use foraker_cell::trace::{Event, Happened};
use foraker_cell::{Guest, InspectError, Trace};
use foraker_confine::Kind;
use foraker_debug::{DumpError, Prepared};

use super::State;
use crate::channel::{Begun, LONGEST_BEGUN, Look, send};

/// Most at a time in a cell.
const MOST: usize = 32;
/// How long a guest may take to leave its cores: as long as a round of all guests, on a busy cell.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long what is sent may stay unread.
const UNREAD: Duration = Duration::from_secs(30);
/// How long a guest is held for a dump at most.
const LONGEST_DUMP: Duration = Duration::from_secs(120);
/// Room for what has happened and was not sent yet: 400 KiB.
const RECORDS: usize = 16 << 10;
/// How often a trace is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What is sent of a trace at a time, bytes.
const PIECE: usize = 32 << 10;

/// How many there are.
static THERE: AtomicUsize = AtomicUsize::new(0);

/// Somebody's place; free again when it is dropped.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let more = |there| (there < MOST).then_some(there + 1);
        THERE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok().then_some(Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        THERE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A core that the supervisor takes. However that goes, the guest's end can be told afterwards.
struct Taken(Arc<State>, u64);

impl Drop for Taken {
    fn drop(&mut self) {
        super::core_is_taken(&self.0, self.1);
    }
}

/// Serves somebody who looks into a guest, if it is there and there is room.
pub(super) fn begin(state: &Arc<State>, id: u64, how: Look, mut stream: UnixStream) {
    let taken = matches!(how, Look::Core { .. }).then(|| Taken(Arc::clone(state), id));
    let Some(guest) = super::some_of(state, &[id]).pop() else {
        return answer(&mut stream, &Err("it has ended".to_owned()));
    };
    let Some(place) = Place::take() else {
        let text = format!("{MOST} others look into guests of its cell: try again when one of them is gone");
        return answer(&mut stream, &Err(text));
    };
    let started = std::thread::Builder::new().name("debug".to_owned()).spawn(move || {
        foraker_confine::enter(Kind::Debug);
        serve(&guest, how, stream);
        drop(guest);
        drop((taken, place));
    });
    if let Err(e) = started {
        // The other end is closed with what the thread would have had.
        log::warn!("nobody can look into a guest: {e}");
    }
}

/// Says whether it begins. Who asked may have gone.
fn answer(stream: &mut UnixStream, begun: &Begun) {
    let short = |text: &String| text.chars().take(LONGEST_BEGUN / 8).collect::<String>();
    let said = send(stream, &begun.as_ref().map_err(short));
    if let Err(e) = said {
        log::debug!("whoever asked for a look has gone: {e}");
    }
}

fn serve(guest: &Arc<Guest>, how: Look, mut stream: UnixStream) {
    if let Err(e) = stream.set_write_timeout(Some(UNREAD)) {
        return log::debug!("a stream cannot be used: {e}");
    }
    let ended = match how {
        Look::Debug => debug(guest, stream),
        Look::Dump { most } => dump(foraker_debug::prepare(guest, PATIENCE, most), Some(guest), stream),
        Look::Core { most } => dump(last_dump(guest, most), None, stream),
        Look::Trace { milliseconds, count } => match guest.trace(RECORDS) {
            Some(trace) => {
                answer(&mut stream, &Ok(None));
                let until = milliseconds.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
                Tracing { trace, stream, until, left: count, dropped: 0 }.run()
            }
            None => {
                answer(&mut stream, &Err("somebody else traces it: try again when that is over".to_owned()));
                Ok(())
            }
        },
    };
    if let Err(e) = ended {
        log::debug!("a look into guest {} has ended: {e}", guest.id);
    }
}

fn debug(guest: &Arc<Guest>, mut stream: UnixStream) -> io::Result<()> {
    match foraker_debug::attach(guest, PATIENCE) {
        Ok(attached) => {
            answer(&mut stream, &Ok(None));
            attached.serve(stream).map(drop).map_err(io::Error::other)
        }
        Err(e) => {
            answer(&mut stream, &Err(e.to_string()));
            Ok(())
        }
    }
}

/// A dump of a guest that has ended, into which somebody may still look for a moment: its debugger, who sees it end.
fn last_dump(guest: &Arc<Guest>, most: u64) -> Result<Prepared, DumpError> {
    let since = Instant::now();
    loop {
        match foraker_debug::prepare(guest, PATIENCE, most) {
            Err(DumpError::Inspect(InspectError::Busy)) if since.elapsed() < PATIENCE => {
                std::thread::sleep(LOOK);
            }
            prepared => return prepared,
        }
    }
}

/// Sends a dump, as long as a guest is there if one is named: what it had is promised to others when it has ended.
fn dump(
    prepared: Result<Prepared, DumpError>,
    of: Option<&Arc<Guest>>,
    mut stream: UnixStream,
) -> io::Result<()> {
    match prepared {
        Ok(prepared) => {
            answer(&mut stream, &Ok(Some(prepared.size().bytes)));
            prepared.write(InTime { to: stream, until: Instant::now() + LONGEST_DUMP, of }).map(drop)
        }
        Err(e) => {
            answer(&mut stream, &Err(e.to_string()));
            Ok(())
        }
    }
}

/// A stream that takes everything within a time and a guest's life, or fails.
struct InTime<'a> {
    to: UnixStream,
    until: Instant,
    of: Option<&'a Arc<Guest>>,
}

impl Write for InTime<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if Instant::now() >= self.until || self.of.is_some_and(|guest| guest.has_ended()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A trace on its way to whoever wants it.
struct Tracing {
    trace: Trace,
    stream: UnixStream,
    until: Option<Instant>,
    /// How many more are wanted, if that is bounded.
    left: Option<u64>,
    /// How many have found no room, as far as that was said.
    dropped: u64,
}

impl Tracing {
    /// Sends what happens, until enough has, or the guest has ended, or nobody listens.
    fn run(mut self) -> io::Result<()> {
        loop {
            // First of all, so that what it did last is there.
            let ended = self.trace.guest().has_ended();
            self.pass_on()?;
            let late = self.until.is_some_and(|until| Instant::now() >= until);
            if ended || late || self.left == Some(0) || self.is_closed() {
                return Ok(());
            }
        }
    }

    /// Sends what is there, once around the ring at most.
    fn pass_on(&mut self) -> io::Result<()> {
        let mut piece = Vec::new();
        for _ in 0..RECORDS {
            if self.left == Some(0) {
                break;
            }
            let Some(happened) = self.trace.take() else { break };
            self.left = self.left.map(|left| left - 1);
            line(&mut piece, &traced(&happened))?;
            if piece.len() >= PIECE {
                self.stream.write_all(&piece)?;
                piece.clear();
            }
        }
        let dropped = self.trace.dropped();
        if dropped > self.dropped {
            let what = format!("{} things happened for which there was no room", dropped - self.dropped);
            self.dropped = dropped;
            let at_ns = self.trace.guest().clock.now();
            line(&mut piece, &Traced { at_ns, core: 0, kind: TracedKind::Dropped, what, bytes: None })?;
        }
        self.stream.write_all(&piece)
    }

    /// Waits a moment for the other side to go. Returns whether it has.
    fn is_closed(&self) -> bool {
        let mut entry = libc::pollfd { fd: self.stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let most = libc::c_int::try_from(LOOK.as_millis()).unwrap_or(0);
        // SAFETY: one valid structure for the call.
        let ready = unsafe { libc::poll(&raw mut entry, 1, most) };
        // It has nothing to say, so that this is the end.
        ready > 0
    }
}

fn line(to: &mut Vec<u8>, traced: &Traced) -> io::Result<()> {
    serde_json::to_writer(&mut *to, traced)?;
    to.push(b'\n');
    Ok(())
}

fn traced(happened: &Happened) -> Traced {
    let (kind, bytes) = match happened.event {
        Event::Received(bytes) | Event::Sent(bytes) => (TracedKind::Packet, Some(bytes)),
        Event::Raised(_) => (TracedKind::Interrupt, None),
        Event::Hypercall(_)
        | Event::Doorbell
        | Event::Interrupted
        | Event::Fault(_)
        | Event::Port
        | Event::Machine
        | Event::Other(_) => (TracedKind::Exit, None),
    };
    Traced { at_ns: happened.at, core: happened.core, kind, what: happened.event.to_string(), bytes }
}
