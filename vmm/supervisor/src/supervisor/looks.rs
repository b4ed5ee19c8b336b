//! Those who look into guests: debuggers, dumps, traces. A cell serves each on a stream of its own; here the other end of it is given to whoever asked.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::Supervisor;
use super::state::Phase;
use crate::channel::{Begun, LONGEST_BEGUN, Look, ToCell};
use crate::refused::Refused;

/// Most at a time, and most of one guest.
const MOST: usize = 64;
const MOST_OF_ONE: usize = 8;
/// How long a cell may take to begin: somewhat longer than a guest may take to leave its cores.
const PATIENCE: Duration = Duration::from_secs(25);

/// How many look into each guest.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<HashMap<u64, usize>>);

impl Looks {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, id: u64) -> Result<(), Refused> {
        let mut looks = self.lock();
        let (all, of_one) = (looks.values().sum::<usize>(), looks.get(&id).copied().unwrap_or(0));
        if all >= MOST || of_one >= MOST_OF_ONE {
            return Err(Refused::Conflict(format!(
                "{of_one} look into guest {id} and {all} into all, {MOST_OF_ONE} and {MOST} are the most: try again when one of them is gone"
            )));
        }
        looks.insert(id, of_one + 1);
        Ok(())
    }

    fn give_back(&self, id: u64) {
        let mut looks = self.lock();
        match looks.get_mut(&id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = looks.remove(&id),
        }
    }
}

/// A place among those who look into guests, free again when this is dropped.
#[derive(Debug)]
struct Place(Supervisor, u64);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.looks.give_back(self.1);
    }
}

/// Somebody's look into a guest. It is over when this is dropped: the guest goes on as it did.
#[derive(Debug)]
pub struct Looking {
    /// What the cell says, and hears.
    pub stream: UnixStream,
    /// Of how many bytes it is, if that is known.
    pub bytes: Option<u64>,
    _place: Place,
}

impl Supervisor {
    /// The core that was kept of a guest, and its bytes. None if there is none.
    pub async fn kept_core(&self, id: u64) -> Option<(File, u64)> {
        let cores = self.lock().records.cores.clone()?;
        tokio::task::spawn_blocking(move || cores.read(id)).await.ok()?.ok()
    }

    /// Has somebody look into a guest that runs.
    ///
    /// # Errors
    /// It is not there, does not run, is looked into by somebody else, or by too many; or its cell does not answer.
    pub async fn look(&self, id: u64, how: Look) -> Result<Looking, Refused> {
        let broken = |e: std::io::Error| Refused::Broken(format!("the host has no stream to give: {e}"));
        self.0.looks.take(id)?;
        let place = Place(self.clone(), id);
        let (ours, theirs) = StdStream::pair().map_err(broken)?;
        ours.set_nonblocking(true).map_err(broken)?;
        let mut stream = UnixStream::from_std(ours).map_err(broken)?;
        {
            let state = self.lock();
            let found = state.guests.get(&id);
            let g = found.ok_or_else(|| Refused::NotFound(format!("there is no guest {id}")))?;
            if g.phase != Phase::Running {
                return Err(Refused::Conflict(format!("guest {id} does not run: it is {}", g.shown())));
            }
            if let Some(cell) = state.cells.get(g.cell) {
                cell.tell(ToCell::Look { id, how, stream: Some(theirs) });
            }
        }
        let refused = |why: &str| Refused::Conflict(format!("guest {id} cannot be looked into: {why}"));
        match tokio::time::timeout(PATIENCE, begun(&mut stream)).await {
            Ok(Ok(Ok(bytes))) => Ok(Looking { stream, bytes, _place: place }),
            // A cell says what is printed: one line of it.
            Ok(Ok(Err(why))) => Err(refused(why.lines().next().unwrap_or_default())),
            Ok(Err(_)) => Err(refused("its cell has ended, or has no descriptor left")),
            Err(_) => Err(refused("its cell is busy, try again")),
        }
    }
}

/// What the cell says first.
async fn begun(stream: &mut UnixStream) -> std::io::Result<Begun> {
    let length = stream.read_u32_le().await? as usize;
    if length > LONGEST_BEGUN {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    serde_json::from_slice(&bytes).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_of_one_and_of_all() {
        let looks = Looks::default();
        for id in 0..8 {
            for _ in 0..MOST_OF_ONE {
                looks.take(id).unwrap();
            }
            if id < 7 {
                assert!(matches!(looks.take(id), Err(Refused::Conflict(_))));
            }
        }
        assert!(matches!(looks.take(99), Err(Refused::Conflict(why)) if why.contains("64 into all")));
        looks.give_back(3);
        looks.take(99).unwrap();
        assert!(looks.take(3).is_err());
        for _ in 0..MOST_OF_ONE {
            looks.give_back(5);
        }
        assert!(!looks.lock().contains_key(&5), "what is over leaves nothing");
    }
}
