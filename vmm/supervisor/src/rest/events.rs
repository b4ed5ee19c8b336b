//! `/events`: what happens, as it happens (server-sent events).

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use foraker_api::Event;
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::Query;
use super::{Failure, Problems};
use crate::events::Told;
use crate::supervisor::Supervisor;

/// Events that are handed over at a time.
const BATCH: usize = 256;
/// How often a client hears that the daemon is there when nothing happens.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Those after this one, as far as they are still known; only new ones otherwise. The header `Last-Event-ID` says the same.
    #[param(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    after: Option<u64>,
    /// Those whose kind begins so, such as `guest.`.
    kind: Option<String>,
    /// Those of this guest, owner, image, network or cell.
    subject: Option<String>,
    /// Only what is known already: the answer ends there.
    #[serde(default)]
    past: bool,
}

/// Sends events as they happen. Their ids are those of server-sent events, so that a client that comes back with `Last-Event-ID` misses
/// nothing; one that comes too late is told so by an event `gap`.
#[utoipa::path(get, path = "/events", tag = "system", params(Which), responses((status = 200, content_type = "text/event-stream", body = String), Problems))]
pub(super) async fn follow(
    State(supervisor): State<Supervisor>,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Failure> {
    let of_header = || headers.get("last-event-id")?.to_str().ok()?.parse().ok();
    let after = which.after.or_else(of_header).unwrap_or_else(|| supervisor.events().last());
    let last = supervisor.events().last();
    let past = which.past;
    let heard = supervisor.events().watch();
    let batches =
        stream::unfold((supervisor, heard, after), move |(supervisor, mut heard, after)| async move {
            loop {
                heard.mark_unchanged();
                let told = supervisor.events().after(after, BATCH);
                if !told.events.is_empty() || told.gap {
                    let next = told.events.last().map_or(last, |event| event.id);
                    return Some((told, (supervisor, heard, next)));
                }
                if past || heard.changed().await.is_err() {
                    return None;
                }
            }
        });
    let sent = batches.flat_map(move |Told { gap, events }| {
        let gap = gap.then(|| Sent::default().event("gap").data("events are missing here"));
        let mine = |event: &Event| {
            which.kind.as_ref().is_none_or(|kind| event.kind.starts_with(kind))
                && which.subject.as_ref().is_none_or(|subject| event.subject == *subject)
        };
        let events: Vec<_> = events.into_iter().filter(mine).filter_map(sent).collect();
        stream::iter(gap.into_iter().chain(events).map(Ok))
    });
    Ok(Sse::new(sent).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn sent(event: Event) -> Option<Sent> {
    Sent::default().id(event.id.to_string()).event(&event.kind).json_data(&event).ok()
}
