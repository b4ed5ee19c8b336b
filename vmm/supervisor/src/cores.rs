//! Cores of guests that have faulted: one file for each guest that was started so, in a folder of the state directory. Its cell writes it to a stream; a thread
//! here takes them one after the other, and has room for so much. The oldest go first.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use foraker_confine::Kind;

use crate::background;
use crate::channel::{Begun, LONGEST_BEGUN};

/// Name of the folder.
const FOLDER: &str = "cores";
/// Most bytes of one.
pub(crate) const LARGEST: u64 = 1 << 30;
/// Most bytes of all.
const ALL: u64 = 4 << 30;
/// Most that wait to be taken: the cores of further guests are not kept.
const WAITING: usize = 64;
/// How long a cell may be silent, and how long one may take as a whole: others wait for it.
const PATIENCE: Duration = Duration::from_secs(25);
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Message {
    Take(u64, UnixStream),
    Forget(Vec<u64>),
}

/// The way to the thread that keeps them.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    folder: PathBuf,
    to: Sender<Message>,
    waiting: Arc<AtomicUsize>,
}

impl Cores {
    /// Opens the folder, and removes what is of no guest that `is_known`.
    ///
    /// # Errors
    /// The folder cannot be used, or the host has no thread to give.
    pub(crate) fn open(state: &Path, is_known: impl Fn(u64) -> bool) -> io::Result<Cores> {
        let folder = state.join(FOLDER);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if !id_of(&path).is_some_and(&is_known) {
                fs::remove_file(&path)?;
            }
        }
        let (to, from) = channel();
        let cores = Cores { folder, to, waiting: Arc::default() };
        let keeper = Keeper { folder: cores.folder.clone(), waiting: Arc::clone(&cores.waiting) };
        std::thread::Builder::new().name("cores".to_owned()).spawn(move || {
            background::enter(Kind::Cores);
            keeper.keep(&from);
        })?;
        Ok(cores)
    }

    /// Takes the core of a guest: returns the stream that it is to be written to. None if too many wait, or the host has no stream.
    pub(crate) fn take(&self, id: u64) -> Option<UnixStream> {
        let more = |waiting| (waiting < WAITING).then_some(waiting + 1);
        let (ours, theirs) = UnixStream::pair().ok()?;
        self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        self.to.send(Message::Take(id, ours)).ok()?;
        Some(theirs)
    }

    /// Guests are forgotten, and so are their cores.
    pub(crate) fn forget(&self, ids: Vec<u64>) {
        // Without the thread there is nobody left who keeps any.
        let _ = self.to.send(Message::Forget(ids));
    }

    /// The core of a guest, and its bytes.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(crate) fn read(&self, id: u64) -> io::Result<(File, u64)> {
        let file = File::open(path_of(&self.folder, id))?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    }
}

fn path_of(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("{id}.core"))
}

fn id_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".core")?.parse().ok()
}

/// The thread's.
struct Keeper {
    folder: PathBuf,
    waiting: Arc<AtomicUsize>,
}

impl Keeper {
    fn keep(&self, from: &Receiver<Message>) {
        for message in from {
            match message {
                Message::Take(id, stream) => {
                    match self.take(id, stream) {
                        Ok(bytes) => log::debug!("the core of guest {id} is kept: {bytes} bytes"),
                        Err(e) => log::debug!("the core of guest {id} cannot be kept: {e}"),
                    }
                    self.waiting.fetch_sub(1, Ordering::SeqCst);
                }
                Message::Forget(ids) => {
                    for id in ids {
                        // Most have none.
                        let _ = fs::remove_file(path_of(&self.folder, id));
                    }
                }
            }
        }
    }

    /// Writes what comes to a file beside its name, which it has when it is complete: what was there before is of an earlier fault.
    fn take(&self, id: u64, mut stream: UnixStream) -> io::Result<u64> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let bytes = match begun(&mut stream)? {
            Ok(Some(bytes)) if bytes <= LARGEST => bytes,
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(why) => return Err(io::Error::other(why.lines().next().unwrap_or_default().to_owned())),
        };
        self.make_room(id, bytes)?;
        let part = self.folder.join("part");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        let in_time = InTime { stream, until: Instant::now() + LONGEST };
        let copied = io::copy(&mut in_time.take(bytes), &mut file);
        if !copied.as_ref().is_ok_and(|copied| *copied == bytes) {
            let _ = fs::remove_file(&part);
            return Err(copied.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        }
        fs::rename(&part, path_of(&self.folder, id))?;
        Ok(bytes)
    }

    /// Removes the oldest until there is room for so many bytes more.
    fn make_room(&self, id: u64, bytes: u64) -> io::Result<()> {
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some(other) = id_of(&entry.path()).filter(|other| *other != id) {
                let metadata = entry.metadata()?;
                there.insert((metadata.modified()?, other, metadata.len()));
            }
        }
        let mut sum = there.iter().map(|(.., bytes)| bytes).sum::<u64>() + bytes;
        while sum > ALL
            && let Some((_, oldest, bytes)) = there.pop_first()
        {
            fs::remove_file(path_of(&self.folder, oldest))?;
            sum -= bytes;
        }
        Ok(())
    }
}

/// A stream that gives everything within a time, or fails.
struct InTime {
    stream: UnixStream,
    until: Instant,
}

impl Read for InTime {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.read(to)
    }
}

/// What the cell says first.
fn begun(stream: &mut UnixStream) -> io::Result<Begun> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_BEGUN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::send;
    use std::io::Write;

    /// Hands a core over as a cell does, and waits until the keeper has done with it.
    fn hand_over(cores: &Cores, id: u64, said: &Begun, content: &[u8]) {
        let mut stream = cores.take(id).unwrap();
        send(&mut stream, said).unwrap();
        // One that is refused is no longer read.
        let _ = stream.write_all(content);
        drop(stream);
        while cores.waiting.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn content(cores: &Cores, id: u64) -> Option<Vec<u8>> {
        let (mut file, bytes) = cores.read(id).ok()?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, bytes);
        Some(content)
    }

    #[test]
    fn what_is_complete_is_kept_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let cores = Cores::open(root.path(), |_| false).unwrap();
        hand_over(&cores, 1, &Ok(Some(5)), b"whole");
        assert_eq!(content(&cores, 1).unwrap(), b"whole");
        // Broken off, too long, without a length, refused: what was there before stays.
        hand_over(&cores, 1, &Ok(Some(6)), b"short");
        hand_over(&cores, 1, &Ok(Some(LARGEST + 1)), b"large");
        hand_over(&cores, 1, &Ok(None), b"endless");
        hand_over(&cores, 1, &Err("no".to_owned()), b"");
        assert_eq!(content(&cores, 1).unwrap(), b"whole");
        hand_over(&cores, 1, &Ok(Some(4)), b"next and more");
        assert_eq!(content(&cores, 1).unwrap(), b"next");
        hand_over(&cores, 2, &Ok(Some(1)), b"2");
        cores.forget(vec![1, 7]);
        hand_over(&cores, 3, &Ok(Some(1)), b"3");
        assert!(content(&cores, 1).is_none());
        drop(cores);
        // The next one knows of one guest.
        let cores = Cores::open(root.path(), |id| id == 3).unwrap();
        assert!(content(&cores, 2).is_none());
        assert_eq!(content(&cores, 3).unwrap(), b"3");
    }

    #[test]
    fn the_oldest_go_for_the_newest() {
        let root = tempfile::tempdir().unwrap();
        let keeper = Keeper { folder: root.path().to_path_buf(), waiting: Arc::default() };
        let since = std::time::UNIX_EPOCH;
        for id in 1..=5 {
            // Sparse.
            let file = File::create(path_of(root.path(), id)).unwrap();
            file.set_len(ALL / 5).unwrap();
            file.set_modified(since + Duration::from_secs(100 - id)).unwrap();
        }
        keeper.make_room(6, ALL / 5 + 2).unwrap();
        let there = |id| path_of(root.path(), id).exists();
        assert_eq!((1..=5).filter(|id| there(*id)).collect::<Vec<_>>(), [1, 2, 3]);
        // What it replaces does not count.
        keeper.make_room(1, ALL / 5 * 3).unwrap();
        assert_eq!((1..=5).filter(|id| there(*id)).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
