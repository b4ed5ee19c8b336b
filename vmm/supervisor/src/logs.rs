//! What guests write to their consoles: kept beyond their end, bounded for each, and followed live.
//!
//! A cell marks each line with its guest's number and writes it into a pipe of its own; a thread for each cell reads it and hands it to the one thread
//! that owns the logs. That thread is ordinary: when it cannot keep up the pipes fill, and cells drop lines and count them, as they do
//! for any slow reader. No guest waits for a log. Each has its own bound, of which the oldest part goes first; where all together are too much, the longest are
//! shortened, to one length, so that who writes little loses nothing to those who write much.
//!
//! The logs are one SQLite file: ten thousand files that are written a line at a time cost more, and a descriptor each.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use foraker_api::units::now_ms;
use foraker_confine::Kind;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};

use crate::store::{StoreError, prepare};

/// How much is kept, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSizes {
    /// Of each guest's log.
    pub each: u64,
    /// Of all of them.
    pub all: u64,
}

impl Default for LogSizes {
    fn default() -> LogSizes {
        LogSizes { each: 1 << 20, all: 4 << 30 }
    }
}

/// How long what was written may wait until it is kept.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the last lines of a guest may take to come after its end was heard of; they come another way.
const LAST_LINE: Duration = Duration::from_secs(1);
/// How much may wait for that, bytes.
const MOST_PENDING: usize = 4 << 20;
/// How much is read from a cell at a time, bytes.
const READ: usize = 64 << 10;
/// Batches that wait for the thread.
const BATCHES: usize = 64;
/// Pieces that wait for somebody who follows.
const FOLLOWING: usize = 256;
/// A row costs this much beside its text, bytes: who writes a byte at a time does not get more.
const ROW: u64 = 64;

/// Lines of guests, in their order.
type Lines = Vec<(u64, Vec<u8>)>;

enum Message {
    Forget(Vec<u64>),
    Read { id: u64, most: u64, done: oneshot::Sender<Vec<u8>> },
    ReadFrom { id: u64, from: Option<u64>, most: u64, done: oneshot::Sender<(u64, Vec<u8>)> },
    Follow { id: u64, most: u64, to: mpsc::Sender<Vec<u8>> },
    Ended(u64),
}

/// The logs of all guests.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    /// Wakes the thread for either kind of message: it waits for lines.
    lines: SyncSender<Lines>,
    messages: Sender<Message>,
    counted: Arc<AtomicU64>,
}

struct Keeper {
    database: Connection,
    sizes: LogSizes,
    pending: HashMap<u64, Vec<u8>>,
    pending_bytes: usize,
    /// Bytes that each guest has written, as far as they are known; what is kept is their end.
    written: HashMap<u64, u64>,
    kept: Kept,
    followers: HashMap<u64, Vec<mpsc::Sender<Vec<u8>>>>,
    /// Guests whose last line has come, and that the supervisor has not spoken of yet.
    at_end: HashSet<u64>,
    /// Guests that do not come back, as the supervisor says, and whose last line may still come: until then.
    closing: HashMap<u64, Instant>,
}

/// Bytes kept of each log, their rows' costs included.
#[derive(Default)]
struct Kept {
    of: HashMap<u64, u64>,
    all: u64,
}

impl Kept {
    /// Returns what it is now.
    fn add(&mut self, id: u64, bytes: u64) -> u64 {
        self.all += bytes;
        let of = self.of.entry(id).or_default();
        *of += bytes;
        *of
    }

    /// Takes the oldest part of a log away, so that so much is left.
    fn shorten(&mut self, database: &Connection, id: u64, length: u64) -> rusqlite::Result<()> {
        let Some(of) = self.of.get_mut(&id) else { return Ok(()) };
        let mut statement = database
            .prepare_cached("SELECT number, LENGTH(text) FROM pieces WHERE guest = ?1 ORDER BY number")?;
        let mut rows = statement.query([id.cast_signed()])?;
        let before = *of;
        let (mut last, mut part) = (0, None);
        while *of > length
            && let Some(row) = rows.next()?
        {
            let (number, text) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?.cast_unsigned());
            let surplus = *of - length;
            if text <= surplus {
                last = number;
                *of = of.saturating_sub(text + ROW);
            } else {
                part = Some((number, surplus));
                *of = length;
            }
        }
        self.all -= before - *of;
        drop(rows);
        database
            .prepare_cached("DELETE FROM pieces WHERE guest = ?1 AND number <= ?2")?
            .execute([id.cast_signed(), last])?;
        if let Some((number, surplus)) = part {
            database
                .prepare_cached("UPDATE pieces SET text = SUBSTR(text, ?2) WHERE number = ?1")?
                .execute([number, surplus.cast_signed() + 1])?;
        }
        Ok(())
    }

    /// Returns whether there was anything.
    fn forget(&mut self, id: u64) -> bool {
        let bytes = self.of.remove(&id);
        self.all -= bytes.unwrap_or(0);
        bytes.is_some()
    }

    /// To which length the longest are to be shortened, so that all together have no more than so much.
    fn level(&self, most: u64) -> u64 {
        let mut lengths: Vec<u64> = self.of.values().copied().collect();
        lengths.sort_unstable();
        let mut left = most;
        for (at, length) in lengths.iter().enumerate() {
            let share = left / (lengths.len() - at) as u64;
            if *length > share {
                return share;
            }
            left -= length;
        }
        u64::MAX
    }
}

impl Logs {
    /// Opens the logs in a directory.
    pub(crate) fn open(directory: &Path, sizes: LogSizes) -> Result<Logs, StoreError> {
        let path = directory.join("logs.db");
        let failed = |source| StoreError::Database { path: path.clone(), source };
        let database = Connection::open(&path).map_err(failed)?;
        prepare(&database).map_err(failed)?;
        database.pragma_update(None, "wal_autocheckpoint", 4000).map_err(failed)?;
        let tables = "CREATE TABLE IF NOT EXISTS pieces (
            number INTEGER PRIMARY KEY, guest INTEGER NOT NULL, at_ms INTEGER NOT NULL, text BLOB NOT NULL);
            CREATE INDEX IF NOT EXISTS of_guest ON pieces (guest, number);";
        database.execute_batch(tables).map_err(failed)?;
        let (kept, written) = kept(&database).map_err(failed)?;
        let mut keeper = Keeper {
            database,
            sizes,
            pending: HashMap::new(),
            pending_bytes: 0,
            written,
            kept,
            followers: HashMap::new(),
            at_end: HashSet::new(),
            closing: HashMap::new(),
        };
        let (lines, from) = sync_channel(BATCHES);
        let (messages, asked) = channel();
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || {
                foraker_confine::enter(Kind::Store);
                keeper.keep(&from, &asked);
            })
            .map_err(|source| StoreError::Directory { path: directory.to_path_buf(), source })?;
        Ok(Logs { lines, messages, counted: Arc::default() })
    }

    /// Lines that were heard of all guests.
    pub(crate) fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Reads what a cell writes, until its end. `known` says which guests are on it.
    pub(crate) fn hear(&self, mut from: impl Read, known: impl Fn(u64) -> bool) {
        let (mut buffer, mut rest) = (vec![0; READ], Vec::new());
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            rest.extend_from_slice(buffer.get(..read).unwrap_or_default());
            let whole = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let mut lines: Lines = Vec::new();
            let mut count = 0;
            for line in rest.get(..whole).unwrap_or_default().split_inclusive(|b| *b == b'\n') {
                if let Some(id) = ended(line) {
                    // No text at all stands for the end.
                    lines.push((id, Vec::new()));
                    continue;
                }
                let Some((id, text)) = marked(line) else { continue };
                count += 1;
                match lines.last_mut() {
                    Some((last, so_far)) if *last == id && !so_far.is_empty() => {
                        so_far.extend_from_slice(text)
                    }
                    _ => lines.push((id, text.to_vec())),
                }
            }
            rest.drain(..whole);
            // No line is as long as that: what a broken cell says is not kept.
            if rest.len() > READ {
                rest.clear();
            }
            self.counted.fetch_add(count, Ordering::Relaxed);
            lines.retain(|(id, _)| known(*id));
            if !lines.is_empty() && self.lines.send(lines).is_err() {
                return;
            }
        }
    }

    fn ask(&self, message: Message) {
        // Whoever waits for an answer hears that the thread has gone.
        let _ = self.messages.send(message);
        let _ = self.lines.try_send(Vec::new());
    }

    /// The last part of a guest's log.
    pub(crate) async fn read(&self, id: u64, most: u64) -> Vec<u8> {
        let (done, answer) = oneshot::channel();
        self.ask(Message::Read { id, most, done });
        answer.await.unwrap_or_default()
    }

    /// What a guest wrote from a byte on, as far as it is kept, or the last part; and where that begins.
    pub(crate) async fn read_from(&self, id: u64, from: Option<u64>, most: u64) -> (u64, Vec<u8>) {
        let (done, answer) = oneshot::channel();
        self.ask(Message::ReadFrom { id, from, most, done });
        answer.await.unwrap_or_default()
    }

    /// The last part of a guest's log, and what it writes from then on until its end.
    pub(crate) fn follow(&self, id: u64, most: u64) -> mpsc::Receiver<Vec<u8>> {
        let (to, from) = mpsc::channel(FOLLOWING);
        self.ask(Message::Follow { id, most, to });
        from
    }

    /// Guests are forgotten, and so are their logs.
    pub(crate) fn forget(&self, ids: Vec<u64>) {
        self.ask(Message::Forget(ids));
    }

    /// A guest has ended: whoever follows has heard everything soon.
    pub(crate) fn ended(&self, id: u64) {
        self.ask(Message::Ended(id));
    }
}

/// How a cell marks the lines of a guest: its number, and a space.
pub(crate) fn mark(id: u64) -> String {
    format!("{id} ")
}

/// What a cell writes behind the last line of a guest that has ended.
pub(crate) fn end_mark(id: u64) -> String {
    format!("{id}\n")
}

/// The guest that has ended, if a line says that.
fn ended(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?.parse().ok()
}

/// Takes a line's mark from it.
fn marked(line: &[u8]) -> Option<(u64, &[u8])> {
    let space = line.iter().take(21).position(|b| *b == b' ')?;
    let (number, text) = line.split_at(space);
    Some((std::str::from_utf8(number).ok()?.parse().ok()?, text.get(1..)?))
}

/// Of each log, what it costs and how long it is, bytes.
fn kept(database: &Connection) -> rusqlite::Result<(Kept, HashMap<u64, u64>)> {
    let mut statement = database
        .prepare("SELECT guest, SUM(LENGTH(text) + ?1), SUM(LENGTH(text)) FROM pieces GROUP BY guest")?;
    let mut rows = statement.query([ROW.cast_signed()])?;
    let (mut kept, mut written) = (Kept::default(), HashMap::new());
    while let Some(row) = rows.next()? {
        let whole = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
        kept.add(whole(0)?, whole(1)?);
        written.insert(whole(0)?, whole(2)?);
    }
    Ok((kept, written))
}

impl Keeper {
    fn keep(&mut self, lines: &Receiver<Lines>, messages: &Receiver<Message>) {
        static COMPLAINED: OnceLock<()> = OnceLock::new();
        let mut flush_at: Option<Instant> = None;
        loop {
            let next = flush_at.into_iter().chain(self.closing.values().copied()).min();
            let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
            let got = match wait {
                Some(wait) => lines.recv_timeout(wait),
                None => lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match got {
                Ok(lines) => self.take(lines),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Lines that came before a question are part of the answer.
            while let Ok(more) = lines.try_recv() {
                self.take(more);
                if self.pending_bytes > MOST_PENDING {
                    break;
                }
            }
            while let Ok(message) = messages.try_recv() {
                self.answer(message);
            }
            let now = Instant::now();
            let late: Vec<u64> = self.closing.extract_if(|_, at| *at <= now).map(|(id, _)| id).collect();
            for id in late {
                self.followers.remove(&id);
            }
            let due = flush_at.is_some_and(|at| at <= Instant::now());
            if due || self.pending_bytes > MOST_PENDING {
                if let Err(e) = self.flush() {
                    COMPLAINED.get_or_init(|| log::error!("logs of guests cannot be kept: {e}"));
                }
                flush_at = None;
            } else if self.pending_bytes > 0 && flush_at.is_none() {
                flush_at = Some(Instant::now() + PATIENCE);
            }
        }
        if let Err(e) = self.flush() {
            log::warn!("the last lines of guests are lost: {e}");
        }
    }

    fn take(&mut self, lines: Lines) {
        for (id, text) in lines {
            if text.is_empty() {
                if self.closing.remove(&id).is_some() {
                    self.followers.remove(&id);
                } else {
                    self.at_end.insert(id);
                }
                continue;
            }
            self.at_end.remove(&id);
            if let Some(followers) = self.followers.get_mut(&id) {
                // Who does not keep up loses a part, as with any terminal; who has gone is forgotten.
                followers.retain(|to| {
                    !matches!(to.try_send(text.clone()), Err(mpsc::error::TrySendError::Closed(_)))
                });
            }
            *self.written.entry(id).or_default() += text.len() as u64;
            let pending = self.pending.entry(id).or_default();
            self.pending_bytes += text.len();
            pending.extend(text);
            // Half of a log in one piece at most: the other half stays when it is shortened.
            let surplus =
                pending.len().saturating_sub(usize::try_from(self.sizes.each / 2).unwrap_or(usize::MAX));
            pending.drain(..surplus);
            self.pending_bytes -= surplus;
        }
    }

    fn answer(&mut self, message: Message) {
        match message {
            Message::Forget(ids) => {
                if let Err(e) = self.forget(&ids) {
                    log::warn!("logs of forgotten guests stay: {e}");
                }
            }
            Message::Read { id, most, done } => {
                // Who asked may have gone.
                let _ = done.send(self.tail(id, most));
            }
            Message::ReadFrom { id, from, most, done } => {
                let written = self.written.get(&id).copied().unwrap_or(0);
                let wanted = from.map_or(most, |from| written.saturating_sub(from));
                let mut text = self.tail(id, wanted);
                let first = written - (text.len() as u64).min(written);
                text.truncate(usize::try_from(most).unwrap_or(usize::MAX));
                // Who asked may have gone.
                let _ = done.send((first, text));
            }
            Message::Follow { id, most, to } => {
                let so_far = self.tail(id, most);
                if so_far.is_empty() || to.try_send(so_far).is_ok() {
                    self.followers.entry(id).or_default().push(to);
                }
            }
            Message::Ended(id) => {
                if self.at_end.remove(&id) {
                    self.followers.remove(&id);
                } else if self.followers.contains_key(&id) {
                    self.closing.insert(id, Instant::now() + LAST_LINE);
                }
            }
        }
    }

    fn forget(&mut self, ids: &[u64]) -> rusqlite::Result<()> {
        let transaction = self.database.transaction()?;
        let mut delete = transaction.prepare_cached("DELETE FROM pieces WHERE guest = ?1")?;
        for id in ids {
            if let Some(text) = self.pending.remove(id) {
                self.pending_bytes -= text.len();
            }
            self.followers.remove(id);
            self.written.remove(id);
            self.at_end.remove(id);
            self.closing.remove(id);
            if self.kept.forget(*id) {
                delete.execute([id.cast_signed()])?;
            }
        }
        drop(delete);
        transaction.commit()
    }

    /// The last part of a log.
    fn tail(&self, id: u64, most: u64) -> Vec<u8> {
        let most = most.min(self.sizes.each);
        let pending = self.pending.get(&id).map(Vec::as_slice).unwrap_or_default();
        let mut pieces = self.pieces(id, most.saturating_sub(pending.len() as u64)).unwrap_or_default();
        pieces.reverse();
        let mut text = pieces.concat();
        text.extend_from_slice(pending);
        let surplus = text.len().saturating_sub(usize::try_from(most).unwrap_or(usize::MAX));
        text.split_off(surplus)
    }

    fn pieces(&self, id: u64, most: u64) -> rusqlite::Result<Vec<Vec<u8>>> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        let mut statement =
            self.database.prepare_cached("SELECT text FROM pieces WHERE guest = ?1 ORDER BY number DESC")?;
        let mut rows = statement.query([id.cast_signed()])?;
        while bytes < most
            && let Some(row) = rows.next()?
        {
            let piece: Vec<u8> = row.get(0)?;
            bytes += piece.len() as u64;
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Keeps what waits.
    fn flush(&mut self) -> rusqlite::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.pending_bytes = 0;
        let pending = std::mem::take(&mut self.pending);
        let transaction = self.database.transaction()?;
        let mut insert =
            transaction.prepare_cached("INSERT INTO pieces (guest, at_ms, text) VALUES (?1, ?2, ?3)")?;
        let mut over = Vec::new();
        let now = now_ms().cast_signed();
        for (id, text) in pending {
            insert.execute(params![id.cast_signed(), now, text])?;
            if self.kept.add(id, text.len() as u64 + ROW) > self.sizes.each {
                over.push((id, self.sizes.each / 4 * 3));
            }
        }
        for (id, length) in over {
            self.kept.shorten(&transaction, id, length)?;
        }
        if self.kept.all > self.sizes.all {
            // A tenth less, so that this is not to be done each time.
            let level = self.kept.level(self.sizes.all / 10 * 9);
            let long: Vec<u64> =
                self.kept.of.iter().filter(|(_, k)| **k > level).map(|(id, _)| *id).collect();
            for id in long {
                self.kept.shorten(&transaction, id, level)?;
            }
        }
        drop(insert);
        transaction.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn lines_go_to_their_guests_and_outlive_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path(), LogSizes::default()).unwrap();
        let said = b"1 one\n2 two\n1 three\nnonsense\n99 unknown\n18446744073709551616 too far\n2 \n";
        logs.hear(&said[..], |id| id < 50);
        assert_eq!(run(logs.read(1, 1 << 20)), b"one\nthree\n");
        assert_eq!(run(logs.read(2, 1 << 20)), b"two\n\n");
        assert_eq!(run(logs.read(2, 3)), b"o\n\n");
        assert_eq!(run(logs.read_from(1, None, 6)), (4, b"three\n".to_vec()));
        assert_eq!(run(logs.read_from(1, Some(1), 3)), (1, b"ne\n".to_vec()));
        assert_eq!(run(logs.read_from(1, Some(99), 3)), (10, Vec::new()));
        assert_eq!(run(logs.read(99, 1 << 20)), b"");
        logs.forget(vec![2]);
        assert_eq!(run(logs.read(2, 1 << 20)), b"");
        drop(logs);
        let again = || {
            let logs = Logs::open(directory.path(), LogSizes::default()).unwrap();
            run(logs.read(1, 1 << 20))
        };
        let until = Instant::now() + Duration::from_secs(10);
        while again() != b"one\nthree\n" {
            assert!(Instant::now() < until, "the thread of the first ends by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_log_is_bounded_and_its_end_stays() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path(), LogSizes { each: 4096, ..LogSizes::default() }).unwrap();
        for n in 0..200 {
            logs.hear(format!("7 line {n}\n8 other\n").as_bytes(), |_| true);
            std::thread::sleep(Duration::from_millis(if n % 40 == 0 { 250 } else { 0 }));
        }
        std::thread::sleep(Duration::from_millis(300));
        let text = run(logs.read(7, 1 << 20));
        assert!(text.len() <= 4096 && text.ends_with(b"line 199\n"), "{}", text.len());
    }

    #[test]
    fn all_together_are_bounded_and_the_longest_are_shortened() {
        let directory = tempfile::tempdir().unwrap();
        let sizes = LogSizes { each: 1 << 20, all: 64 << 10 };
        let logs = Logs::open(directory.path(), sizes).unwrap();
        let line = |id: u64, n: u64| format!("{id} {:>98}\n", format!("guest {id} line {n}"));
        let length = |id| run(logs.read(id, 1 << 20)).len();
        for (id, lines) in [(1, 10), (2, 300), (3, 500)] {
            let text: String = (0..lines).map(|n| line(id, n)).collect();
            logs.hear(text.as_bytes(), |_| true);
            std::thread::sleep(2 * PATIENCE);
        }
        let all = 64 << 10;
        let until = Instant::now() + Duration::from_secs(10);
        while !(all / 10 * 8..all).contains(&(length(1) + length(2) + length(3))) {
            assert!(Instant::now() < until, "{} {} {}", length(1), length(2), length(3));
            std::thread::sleep(PATIENCE);
        }
        assert_eq!(length(1), 990, "who writes little loses nothing");
        assert!(length(2).abs_diff(length(3)) < 100, "{} {}", length(2), length(3));
        assert!(run(logs.read(3, 1 << 20)).ends_with(b"guest 3 line 499\n"), "the end stays");
        // The next daemon counts the same, and goes on.
        drop(logs);
        let database = Connection::open(directory.path().join("logs.db")).unwrap();
        let counted = kept(&database).unwrap().0;
        assert!(counted.all <= sizes.all && counted.of.len() == 3, "{} of {:?}", counted.all, counted.of);
        assert_eq!(counted.all, counted.of.values().sum::<u64>());
    }

    #[test]
    fn the_level_is_where_all_fits() {
        let of = |lengths: &[u64]| Kept { of: (0..).zip(lengths.iter().copied()).collect(), all: 0 };
        assert_eq!(of(&[]).level(10), u64::MAX);
        assert_eq!(of(&[4, 6]).level(10), u64::MAX);
        assert_eq!(of(&[1, 100, 100]).level(101), 50);
        assert_eq!(of(&[9, 9, 9]).level(0), 0);
    }

    #[test]
    fn who_follows_hears_what_was_and_what_comes_until_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path(), LogSizes::default()).unwrap();
        logs.hear(&b"1 before\n"[..], |_| true);
        let mut follower = logs.follow(1, 1 << 20);
        assert_eq!(run(follower.recv()).unwrap(), b"before\n");
        logs.hear(&b"2 other\n1 after\n"[..], |_| true);
        assert_eq!(run(follower.recv()).unwrap(), b"after\n");
        // The last line comes another way than the news of the end.
        logs.ended(1);
        logs.hear(&b"1 last\n1\n"[..], |_| true);
        assert_eq!(run(follower.recv()).unwrap(), b"last\n");
        assert_eq!(run(follower.recv()), None);
        let mut late = logs.follow(1, 0);
        logs.ended(1);
        assert_eq!(run(late.recv()), None);
    }
}
