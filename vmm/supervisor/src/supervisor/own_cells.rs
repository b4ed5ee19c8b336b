//! Cells of an owner's own: they run its guests and no others, so that whoever breaks out of a machine is among its own.

use std::collections::BTreeSet;

use super::state::{CellSlot, Phase, State};
use super::{Config, restore::cell_of};
use crate::admission::Admission;
use crate::refused::Refused;
use crate::store::Change;

/// Who has which cell from now on.
pub(super) type Plan = Vec<(usize, Option<String>)>;

impl State {
    /// The cells that have to change hands for an owner to have so many of its own: empty ones, and those with the highest numbers first.
    ///
    /// # Errors
    /// Too few are empty.
    pub(super) fn plan_cells(&self, config: &Config, owner: &str, wanted: usize) -> Result<Plan, Refused> {
        let busy = self.busy_cells(config);
        let of = |whose: Option<&str>| {
            let cells = self.cells.iter().enumerate().rev();
            let these = cells.filter(move |(_, c)| c.owner.as_deref() == whose).map(|(number, _)| number);
            these.collect::<Vec<_>>()
        };
        let (own, shared) = (of(Some(owner)), of(None));
        if wanted >= own.len() {
            let missing = wanted - own.len();
            let empty: Vec<_> = shared.iter().copied().filter(|at| !busy.contains(at)).collect();
            // Somebody else has to be somewhere, too.
            let most = empty.len().min(shared.len().saturating_sub(1));
            if missing > most {
                return Err(Refused::Conflict(format!(
                    "owner {owner} can have {} cells of its own now, not {wanted}: {} of {} shared cells have no guests, and one stays for all others; start the supervisor with more --cells",
                    own.len() + most,
                    empty.len(),
                    shared.len(),
                )));
            }
            Ok(empty.into_iter().take(missing).map(|at| (at, Some(owner.to_owned()))).collect())
        } else {
            let surplus = own.len() - wanted;
            let empty: Vec<_> = own.iter().copied().filter(|at| !busy.contains(at)).collect();
            if surplus > empty.len() {
                return Err(Refused::Conflict(format!(
                    "owner {owner} has guests on {} of its own cells: end them first",
                    own.len() - empty.len()
                )));
            }
            Ok(empty.into_iter().take(surplus).map(|at| (at, None)).collect())
        }
    }

    /// Cells change hands. Returns what is to be written.
    pub(super) fn carry_out_plan(&mut self, plan: Plan) -> Vec<Change> {
        let mut changes = Vec::new();
        for (number, owner) in plan {
            if let Some(cell) = self.cells.get_mut(number) {
                cell.owner.clone_from(&owner);
                changes.push(Change::Cell(number, owner));
            }
        }
        changes
    }

    /// Cells with guests on them, or with guests that can be nowhere else.
    fn busy_cells(&self, config: &Config) -> BTreeSet<usize> {
        let at = |g: &super::state::Record| match g.phase {
            Phase::Ended(_) => None,
            Phase::Starting | Phase::Running => Some(g.cell),
            Phase::Waiting | Phase::Admitted | Phase::Resting => {
                g.spec.1.network.ipv4.and_then(|address| cell_of(config, address))
            }
        };
        self.guests.values().filter_map(at).collect()
    }

    /// Whether a guest of an owner may be on a cell.
    pub(super) fn may_be_on(&self, owner: &str, cell: usize) -> bool {
        let whose = Whose::new(&self.cells, &self.admission);
        whose.pool(owner).is_some_and(|pool| whose.has(pool, cell))
    }
}

/// Which cells guests may be on.
pub(super) struct Whose<'a> {
    cells: Vec<Option<&'a str>>,
    admission: &'a Admission,
}

/// Those of one owner, or those that all others share.
#[derive(Clone, Copy)]
pub(super) struct Pool<'a>(Option<&'a str>);

impl<'a> Whose<'a> {
    pub(super) fn new(cells: &'a [CellSlot], admission: &'a Admission) -> Whose<'a> {
        Whose { cells: cells.iter().map(|cell| cell.owner.as_deref()).collect(), admission }
    }

    /// The cells for an owner's guests. None while those that it is to have alone are not there: nobody else's are for them.
    pub(super) fn pool(&self, owner: &str) -> Option<Pool<'a>> {
        let own = self.cells.iter().copied().find(|of| *of == Some(owner));
        own.or_else(|| (!self.admission.has_own_cells(owner)).then_some(None)).map(Pool)
    }

    /// Whether a cell is one of them.
    pub(super) fn has(&self, pool: Pool<'_>, cell: usize) -> bool {
        self.cells.get(cell).is_some_and(|of| *of == pool.0)
    }
}
