//! What guests use: the difference between two looks, divided by the time between them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foraker_api::{Client, Counters, Filter, Guest};
use serde::Serialize;

use crate::args::clients::Stats;
use crate::clients::{connect, names};
use crate::format::{bytes, left, print, right};

/// Between two looks.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);
/// The first difference is shown after this.
const FIRST: Duration = Duration::from_millis(250);

/// What a guest uses.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Usage {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Percent of a processor.
    pub(crate) cpu: f64,
    /// Bytes.
    pub(crate) resident: u64,
    /// Most bytes.
    pub(crate) memory: u64,
    /// Each second.
    pub(crate) exits: f64,
    /// Bytes each second.
    pub(crate) rx_bytes: f64,
    pub(crate) tx_bytes: f64,
    /// Frames dropped since it started, both ways.
    pub(crate) dropped: u64,
}

/// Two looks at the counters of guests.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    before: HashMap<u64, Counters>,
    at: Option<Instant>,
}

impl Meter {
    /// What guests used since the last look; nothing at the first one.
    pub(crate) fn look(
        &mut self,
        now: Vec<Counters>,
        guests: &impl Fn(u64) -> Option<(String, u64)>,
    ) -> Vec<Usage> {
        let at = Instant::now();
        let seconds = self.at.replace(at).map(|before| (at - before).as_secs_f64());
        let mut used = Vec::with_capacity(now.len());
        for c in &now {
            // Who has started meanwhile began with nothing.
            let before = self.before.get(&c.id).copied().unwrap_or_default();
            let rate = |now: u64, before: u64| {
                seconds.map_or(0.0, |seconds| now.saturating_sub(before) as f64 / seconds.max(1e-3))
            };
            let Some((name, memory)) = guests(c.id) else { continue };
            used.push(Usage {
                id: c.id,
                name,
                memory,
                cpu: rate(c.cpu_ns, before.cpu_ns) / 1e7,
                resident: c.resident,
                exits: rate(c.exits, before.exits),
                rx_bytes: rate(c.rx_bytes, before.rx_bytes),
                tx_bytes: rate(c.tx_bytes, before.tx_bytes),
                dropped: c.rx_dropped + c.tx_dropped,
            });
        }
        self.before = now.into_iter().map(|c| (c.id, c)).collect();
        used
    }
}

/// Prints what guests use.
pub(crate) fn run(stats: &Stats) -> anyhow::Result<u8> {
    let mut client = connect(&stats.socket)?;
    let mut wanted = Vec::new();
    for guest in &stats.guests {
        wanted.push(client.guest(guest)?.guest.id);
    }
    let mut meter = Meter::default();
    look(&mut client, &mut meter)?;
    std::thread::sleep(FIRST);
    loop {
        let mut used = look(&mut client, &mut meter)?;
        used.retain(|u| wanted.is_empty() || wanted.contains(&u.id));
        used.sort_by_key(|u| u.id);
        let columns = [
            right("ID", |u: &Usage| u.id.to_string()),
            left("NAME", |u| u.name.clone()),
            right("CPU", |u| format!("{:.1}%", u.cpu)),
            right("MEMORY", |u| format!("{}/{}", bytes(u.resident), bytes(u.memory))),
            right("RECEIVED", |u| format!("{}/s", bytes(u.rx_bytes as u64))),
            right("SENT", |u| format!("{}/s", bytes(u.tx_bytes as u64))),
            right("EXITS", |u| format!("{:.0}/s", u.exits)),
            right("DROPPED", |u| u.dropped.to_string()),
        ];
        print(&stats.printed, &used, |u| u.id.to_string(), &columns)?;
        if stats.no_stream {
            return Ok(0);
        }
        println!();
        std::thread::sleep(PERIOD);
    }
}

fn look(client: &mut Client, meter: &mut Meter) -> anyhow::Result<Vec<Usage>> {
    let now: Vec<Counters> = client.get("/stats")?;
    let guests = names(client, &Filter::default())?;
    let of = |g: &Guest| (g.name.clone(), g.memory);
    Ok(meter.look(now, &|id| guests.get(&id).map(of)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences() {
        let mut meter = Meter::default();
        let counters = |cpu_ns| vec![Counters { id: 1, cpu_ns, ..Counters::default() }];
        let guests = |id| (id == 1).then(|| ("one".to_owned(), 7));
        assert_eq!(meter.look(counters(5), &guests)[0].cpu, 0.0);
        std::thread::sleep(Duration::from_millis(20));
        let used = meter.look(counters(5 + 10_000_000), &guests);
        assert!(used[0].cpu > 1.0 && used[0].cpu <= 50.0, "{used:?}");
        // Whoever is not known is not shown.
        assert!(meter.look(vec![Counters { id: 2, ..Counters::default() }], &guests).is_empty());
    }
}
