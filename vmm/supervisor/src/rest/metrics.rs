//! `/metrics`: figures for Prometheus. No label tells guests apart unless that is asked for: ten thousand of them would be ten thousand series.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use foraker_api::Counters;
use prometheus::core::Collector;
use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::extract::Query;
use super::{Failure, Problems};
use crate::supervisor::Supervisor;

/// What is said of guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OfGuests {
    /// Nothing that cells would have to be asked for.
    None,
    /// The sums of their counters.
    #[default]
    Sum,
    /// The counters of each, too.
    Each,
}

/// How much is wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// What is said of guests: `none`, `sum` or `each`.
    #[serde(default)]
    #[param(inline)]
    guests: OfGuests,
}

/// Says everything that is counted, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "system", params(How), responses((status = 200, content_type = "text/plain", body = String), Problems))]
pub(super) async fn metrics(
    State(supervisor): State<Supervisor>,
    Query(How { guests }): Query<How>,
) -> Result<impl IntoResponse, Failure> {
    let counters = match guests {
        OfGuests::None => None,
        OfGuests::Sum | OfGuests::Each => Some(supervisor.survey(None).await),
    };
    let text = collect(&supervisor, counters.as_deref(), guests == OfGuests::Each)
        .map_err(|e| Failure::new(StatusCode::SERVICE_UNAVAILABLE, e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

/// A counter of guests: its name, its help, and where it is.
type OfGuest = (&'static str, &'static str, fn(&Counters) -> u64);

const OF_GUESTS: [OfGuest; 9] = [
    ("exits_total", "Exits of guests to the VMM.", |c| c.exits),
    ("receive_frames_total", "Frames received by guests.", |c| c.rx_frames),
    ("receive_bytes_total", "Bytes received by guests.", |c| c.rx_bytes),
    ("transmit_frames_total", "Frames sent by guests.", |c| c.tx_frames),
    ("transmit_bytes_total", "Bytes sent by guests.", |c| c.tx_bytes),
    ("receive_dropped_frames_total", "Frames for guests that were dropped.", |c| c.rx_dropped),
    ("transmit_dropped_frames_total", "Frames of guests that were refused.", |c| c.tx_dropped),
    ("console_dropped_bytes_total", "Console bytes of guests that were dropped.", |c| c.console_dropped),
    ("resident_bytes", "Memory that guests have touched and not given back.", |c| c.resident),
];

struct Figures(Registry);

impl Figures {
    fn add(&self, figure: impl Collector + 'static) -> prometheus::Result<()> {
        self.0.register(Box::new(figure))
    }

    fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        Ok(text)
    }

    fn gauge(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let gauge = IntGauge::new(format!("foraker_{name}"), help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.add(gauge)
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = prometheus::IntCounter::new(format!("foraker_{name}"), help)?;
        counter.inc_by(value);
        self.add(counter)
    }
}

fn collect(
    supervisor: &Supervisor,
    counters: Option<&[Counters]>,
    each_guest: bool,
) -> prometheus::Result<Vec<u8>> {
    let figures = Figures(Registry::new());
    let gatekeeper = supervisor.gatekeeper();
    let states = IntGaugeVec::new(
        Opts::new("foraker_guests", "Guests by where they are in their lives."),
        &["state"],
    )?;
    for (state, count) in &gatekeeper.states {
        states.with_label_values(&[state]).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    figures.add(states)?;
    figures.gauge("waiting_guests", "Guests in the gatekeeper's line.", gatekeeper.waiting as u64)?;
    figures.counter(
        "refused_requests_total",
        "Requests for guests that were refused.",
        gatekeeper.refused,
    )?;
    let (has, budget) = (gatekeeper.has, gatekeeper.settings.budget);
    for (name, help, has, most) in [
        ("memory_bytes", "Memory", has.memory, budget.memory),
        ("machines", "Machines", has.machines, budget.machines),
        ("processor_permille", "Thousandths of processors", has.cpus, budget.cpus),
        ("bandwidth_bytes_per_second", "Bandwidth", has.bandwidth, budget.bandwidth),
    ] {
        figures.gauge(
            &format!("allocated_{name}"),
            &format!("{help} that admitted guests have."),
            has.unwrap_or(0),
        )?;
        if let Some(most) = most {
            figures.gauge(&format!("budget_{name}"), &format!("{help} that all guests may have."), most)?;
        }
    }
    let cells = supervisor.cells();
    let up = IntGaugeVec::new(Opts::new("foraker_cell_up", "Whether a cell is there."), &["cell"])?;
    let guests = IntGaugeVec::new(Opts::new("foraker_cell_guests", "Guests of a cell."), &["cell"])?;
    let restarts = IntCounterVec::new(
        Opts::new("foraker_cell_restarts_total", "How often a cell was started again."),
        &["cell"],
    )?;
    for cell in &cells {
        let number = cell.number.to_string();
        up.with_label_values(&[&number]).set(i64::from(cell.process.is_some()));
        guests.with_label_values(&[&number]).set(i64::try_from(cell.guests).unwrap_or(i64::MAX));
        restarts.with_label_values(&[&number]).inc_by(cell.restarts.into());
    }
    figures.add(up)?;
    figures.add(guests)?;
    figures.add(restarts)?;
    let lines = supervisor.logs().map_or(0, crate::logs::Logs::counted);
    figures.counter("console_lines_total", "Lines of guests' consoles that were heard.", lines)?;
    let Some(counters) = counters else { return figures.text() };
    for (name, help, pick) in OF_GUESTS {
        let sum = counters.iter().map(pick).fold(0, u64::saturating_add);
        // Guests that have ended take theirs with them: as Prometheus sees it, that is a gauge.
        let name = name.trim_end_matches("_total");
        figures.gauge(&format!("running_guests_{name}"), &format!("{help} Those that run now."), sum)?;
    }
    if each_guest {
        each(&figures, counters)?;
    }
    figures.text()
}

/// The counters of each guest.
fn each(figures: &Figures, counters: &[Counters]) -> prometheus::Result<()> {
    let seconds = GaugeVec::new(
        Opts::new("foraker_guest_cpu_seconds", "Processor time that the guest has used since it started."),
        &["guest"],
    )?;
    for c in counters {
        seconds.with_label_values(&[&c.id.to_string()]).set(c.cpu_ns as f64 / 1e9);
    }
    figures.add(seconds)?;
    for (name, help, pick) in OF_GUESTS {
        let name = name.trim_end_matches("_total");
        let gauge = IntGaugeVec::new(Opts::new(format!("foraker_guest_{name}"), help), &["guest"])?;
        for c in counters {
            gauge.with_label_values(&[&c.id.to_string()]).set(i64::try_from(pick(c)).unwrap_or(i64::MAX));
        }
        figures.add(gauge)?;
    }
    Ok(())
}
