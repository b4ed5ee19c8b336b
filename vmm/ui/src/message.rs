//! What browsers are sent: all there is, then differences. `page/model.js` is the other side.
//!
//! Events of server-sent events, whose data is JSON. Short names, as there are ten a second; ids of a whole table are differences from the
//! former, states are a letter each, and names say how much of the former they begin with (front coding).

use axum::body::Bytes;
use serde::Serialize;

use crate::source::{Figures, Graph, Place, State};
use crate::table::{Changes, Row, Table};

/// Queue, bound, passed in each second, refused in each second, refused at all.
type Stage = (Option<u64>, Option<u64>, Option<f64>, Option<f64>, Option<u64>);

/// What the page draws beside the guests.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Moment {
    /// Milliseconds since 1970.
    pub(crate) time: u64,
    /// Guests by state.
    pub(crate) counts: [u64; State::ALL.len()],
    /// How many of them have no square.
    pub(crate) beyond: u64,
    /// Bytes in each second, to guests.
    pub(crate) bytes_in: Option<f64>,
    /// And from them.
    pub(crate) bytes_out: Option<f64>,
    /// Exits in each second.
    pub(crate) exits: Option<f64>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Bytes.
    pub(crate) memory_budget: Option<u64>,
    /// Changes of state in each second.
    pub(crate) changes: Option<f64>,
    /// By stage.
    pub(crate) stages: Vec<Stage>,
}

impl Moment {
    /// From figures and the rates of their counters, in the order of [`counters`].
    pub(crate) fn new(time: u64, table: &Table, figures: &Figures, rates: &[Option<f64>]) -> Self {
        let rate = |at: usize| rates.get(at).copied().flatten();
        let stages = figures.loads.iter().enumerate();
        let stages = stages.map(|(at, l)| (l.queue, l.bound, rate(4 + 2 * at), rate(5 + 2 * at), l.refused));
        Self {
            time,
            counts: table.counts(),
            beyond: table.beyond(),
            bytes_in: rate(0),
            bytes_out: rate(1),
            exits: rate(2),
            memory: figures.memory,
            memory_budget: figures.memory_budget,
            changes: rate(3),
            stages: stages.collect(),
        }
    }
}

/// The counters of which rates are made.
pub(crate) fn counters(table: &Table, figures: &Figures) -> Vec<Option<u64>> {
    let mut counters = vec![figures.bytes_in, figures.bytes_out, figures.exits, Some(table.changed())];
    counters.extend(figures.loads.iter().flat_map(|load| [load.passed, load.refused]));
    counters
}

/// Everything, for a browser that knows nothing.
pub(crate) fn everything(
    table: &Table,
    moment: &Moment,
    cells: &[Place],
    graph: &Graph,
    writable: bool,
) -> Bytes {
    #[derive(Serialize)]
    struct Everything<'a> {
        states: [&'static str; State::ALL.len()],
        writable: bool,
        graph: &'a Graph,
        cells: &'a [Place],
        owners: Vec<String>,
        /// By slot: a letter, `a` for the first state; `-` where nobody is. The rest has no place for those.
        slots: String,
        ids: Vec<i64>,
        cell: Vec<u16>,
        owner: Vec<u32>,
        /// UTF-16 units that a name has in common with the former, and the rest of it.
        common: Vec<usize>,
        names: Vec<&'a str>,
        moment: &'a Moment,
    }
    let slots = table.rows().map(|row| row.map_or('-', |row| letter(row.state))).collect();
    let rows: Vec<&Row> = table.rows().flatten().collect();
    let (mut id, mut name) = (0, "");
    let (mut ids, mut common, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        ids.push(row.id.wrapping_sub(id).cast_signed());
        id = row.id;
        let same: usize = same_start(name, &row.name);
        name = &row.name;
        let (start, rest) = name.split_at_checked(same).unwrap_or(("", name));
        common.push(start.encode_utf16().count());
        names.push(rest);
    }
    let everything = Everything {
        states: State::ALL.map(State::name),
        writable,
        graph,
        cells,
        owners: table.owners().collect(),
        slots,
        ids,
        cell: rows.iter().map(|row| row.cell).collect(),
        owner: rows.iter().map(|row| row.owner).collect(),
        common,
        names,
        moment,
    };
    event("everything", &everything)
}

/// What has changed.
pub(crate) fn difference<'t>(
    table: &'t Table,
    changes: &'t Changes,
    moment: &Moment,
    cells: Option<&[Place]>,
) -> Bytes {
    #[derive(Serialize)]
    struct Difference<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        cells: Option<&'a [Place]>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        owners: Vec<(u32, String)>,
        #[serde(skip_serializing_if = "<[u32]>::is_empty")]
        gone: &'a [u32],
        /// Slot, id, state, cell, owner, name.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        new: Vec<(u32, u64, u8, u16, u32, &'a str)>,
        /// Slot and cell.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        moved: Vec<(u32, u16)>,
        /// Slot * 16 + state.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        changed: Vec<u32>,
        moment: &'a Moment,
    }
    // Sixteen states are enough for a number, and slots for 28 bits.
    const { assert!(State::ALL.len() <= 16 && crate::table::MOST_SHOWN <= 1 << 28) };
    let rows = |slots: &'t [u32]| slots.iter().filter_map(|slot| Some((*slot, table.row(*slot)?)));
    let new = rows(&changes.new)
        .map(|(slot, r)| (slot, r.id, r.state.number(), r.cell, r.owner, r.name.as_str()))
        .collect();
    let difference = Difference {
        cells,
        owners: changes.owners.iter().map(|number| (*number, table.owner(*number))).collect(),
        gone: &changes.gone,
        new,
        moved: rows(&changes.cells).map(|(slot, row)| (slot, row.cell)).collect(),
        changed: rows(&changes.states).map(|(slot, row)| slot * 16 + u32::from(row.state.number())).collect(),
        moment,
    };
    event("difference", &difference)
}

fn letter(state: State) -> char {
    char::from(b'a' + state.number())
}

/// Bytes that two names have in common at their start, whole characters.
fn same_start(former: &str, name: &str) -> usize {
    former.chars().zip(name.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// JSON has no line breaks of its own, so that one line holds it.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut bytes = format!("event: {name}\ndata: ").into_bytes();
    if let Err(e) = serde_json::to_writer(&mut bytes, data) {
        // Numbers and strings: there is nothing that could fail.
        log::error!("the page's message: {e}");
    }
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::source::Seen;

    fn json(bytes: &Bytes) -> Value {
        let text = std::str::from_utf8(bytes).unwrap();
        let (_, data) = text.split_once("data: ").unwrap();
        serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap()
    }

    #[test]
    fn names_are_put_together_again() {
        let names = ["web-1", "web-2", "web-10", "日本", "日光", "🦀a", "🦀b", "", "x"];
        let mut table = Table::default();
        table.look(|roll| {
            for (id, name) in (7..).zip(names) {
                roll.call(Seen { id, name, owner: "o", state: State::Paused, cell: 3 });
            }
        });
        let graph = Graph { stages: vec![], edges: vec![] };
        let all = json(&everything(&table, &Moment::default(), &[], &graph, false));
        let mut former: Vec<u16> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            former.truncate(usize::try_from(all["common"][at].as_u64().unwrap()).unwrap());
            former.extend(all["names"][at].as_str().unwrap().encode_utf16());
            assert_eq!(String::from_utf16(&former).unwrap(), *name);
        }
        assert_eq!(all["slots"], "e".repeat(names.len()));
        assert_eq!(all["ids"][0], 7);
        assert_eq!(all["ids"][8], 1);
    }

    #[test]
    fn a_difference_holds_nothing_else() {
        let mut table = Table::default();
        let mut look = |state| {
            let changes = table.look(|roll| {
                for id in 0..1000 {
                    let state = if id == 500 { state } else { State::Running };
                    roll.call(Seen { id, name: "line\nbreak", owner: "o", state, cell: 0 });
                }
            });
            difference(&table, &changes, &Moment::default(), None)
        };
        look(State::Running);
        let bytes = look(State::Lost);
        assert_eq!(json(&bytes)["changed"], serde_json::json!([500 * 16 + 9]));
        assert!(bytes.len() < 300, "{}", bytes.len());
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 3);
    }
}
