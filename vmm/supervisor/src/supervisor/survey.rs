//! What guests have used: cells are asked when somebody wants to know, and not otherwise, so that ten thousand idle guests cost nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foraker_api::Counters;
use tokio::sync::oneshot;

use super::Supervisor;
use crate::channel::{CellLoad, Surveyed, ToCell};

/// How long cells have for an answer: what is not there then is left out.
const PATIENCE: Duration = Duration::from_secs(2);
/// So old may the answer to a question about all guests be: many who look at once cost as much as one.
const FRESH: Duration = Duration::from_millis(100);

/// The questions that are open.
#[derive(Debug, Default)]
pub(super) struct Surveys(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    last: u64,
    open: HashMap<u64, Pending>,
    /// The last answer about all guests.
    all: Option<(Instant, Vec<Counters>)>,
}

#[derive(Debug)]
struct Pending {
    missing: BTreeSet<usize>,
    answer: Answer,
    done: oneshot::Sender<Answer>,
}

/// What cells have answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answer {
    guests: Vec<Counters>,
    load: CellLoad,
}

impl Surveys {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, cells: BTreeSet<usize>) -> (u64, oneshot::Receiver<Answer>) {
        let (done, answer) = oneshot::channel();
        let mut open = self.lock();
        open.last += 1;
        let number = open.last;
        if cells.is_empty() {
            // Its receiver is here.
            let _ = done.send(Answer::default());
        } else {
            open.open.insert(number, Pending { missing: cells, answer: Answer::default(), done });
        }
        (number, answer)
    }

    /// A cell has answered.
    pub(super) fn answered(&self, number: u64, cell: usize, guests: Vec<Counters>, load: CellLoad) {
        let mut open = self.lock();
        let Some(pending) = open.open.get_mut(&number) else { return };
        if pending.missing.remove(&cell) {
            pending.answer.guests.extend(guests);
            pending.answer.load = pending.answer.load.plus(&load);
        }
        if pending.missing.is_empty()
            && let Some(pending) = open.open.remove(&number)
        {
            // Who asked may have gone.
            let _ = pending.done.send(pending.answer);
        }
    }

    /// A cell has died, and answers no more.
    pub(super) fn gone(&self, cell: usize) {
        let numbers: Vec<u64> = self.lock().open.keys().copied().collect();
        for number in numbers {
            self.answered(number, cell, Vec::new(), CellLoad::default());
        }
    }

    /// Nobody waits any longer: what has come so far.
    fn abandon(&self, number: u64) -> Answer {
        self.lock().open.remove(&number).map(|pending| pending.answer).unwrap_or_default()
    }
}

impl Supervisor {
    /// What guests that run have used: these, or all. Those whose cells do not answer are left out.
    pub async fn survey(&self, ids: Option<Vec<u64>>) -> Vec<Counters> {
        let all = ids.is_none();
        if all
            && let Some((at, all)) = &self.0.surveys.lock().all
            && at.elapsed() < FRESH
        {
            return all.clone();
        }
        let guests = self.ask_cells(ids.map_or(Surveyed::Each, Surveyed::These)).await.guests;
        if all {
            self.0.surveys.lock().all = Some((Instant::now(), guests.clone()));
        }
        guests
    }

    /// What all guests that run have used together, apart from memory, and what waits in the cells.
    pub async fn sum(&self) -> (Counters, CellLoad) {
        let Answer { guests, load } = self.ask_cells(Surveyed::Sum).await;
        (guests.iter().fold(Counters::default(), |sum, one| sum.plus(one)), load)
    }

    async fn ask_cells(&self, of: Surveyed) -> Answer {
        let (number, answer) = {
            let state = self.lock();
            let mut of_cells: HashMap<usize, Vec<u64>> = HashMap::new();
            if let Surveyed::These(ids) = &of {
                for id in ids {
                    if let Some(g) = state.guests.get(id).filter(|g| g.is_on_a_cell()) {
                        of_cells.entry(g.cell).or_default().push(*id);
                    }
                }
            }
            let some = matches!(of, Surveyed::These(_));
            let asked = |n: &usize| {
                state.cells.get(*n).is_some_and(|c| c.load.alive) && (!some || of_cells.contains_key(n))
            };
            let cells: BTreeSet<usize> = (0..state.cells.len()).filter(asked).collect();
            let (number, answer) = self.0.surveys.begin(cells.clone());
            for cell in cells {
                if let Some(slot) = state.cells.get(cell) {
                    let of = of_cells.remove(&cell).map_or_else(|| of.clone(), Surveyed::These);
                    slot.tell(ToCell::Survey { number, of });
                }
            }
            (number, answer)
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.unwrap_or_default(),
            Err(_) => self.0.surveys.abandon(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: u64) -> Counters {
        Counters { id, ..Counters::default() }
    }

    #[test]
    fn an_answer_is_whole_when_every_cell_has_answered_or_is_gone() {
        let surveys = Surveys::default();
        let one =
            CellLoad { runnable: 1, timers: 2, dropped: 3, senders: 4, frames: 5, missing: 6, filled: 7 };
        let (number, mut answer) = surveys.begin([0, 1, 2].into());
        surveys.answered(number, 0, vec![of(1)], one);
        // Twice, and one that was not asked.
        surveys.answered(number, 0, vec![of(1)], one);
        surveys.answered(number, 7, vec![of(9)], one);
        surveys.answered(number + 1, 1, vec![of(9)], one);
        assert!(answer.try_recv().is_err());
        surveys.gone(2);
        surveys.answered(number, 1, vec![of(2)], one);
        let load =
            CellLoad { runnable: 2, timers: 4, dropped: 6, senders: 8, frames: 10, missing: 12, filled: 14 };
        assert_eq!(answer.try_recv(), Ok(Answer { guests: vec![of(1), of(2)], load }));
        assert!(surveys.lock().open.is_empty());
    }
}
