//! The pages.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::guard::{Options, guard};
use crate::hub::Hub;
use crate::inert;
use crate::source::{Action, Detail, Fact, Refusal, Source, Value};
use crate::table::NAME;

/// Most bytes of a console in one answer.
const CONSOLE: usize = 32 << 10;
/// Most facts of a guest.
const FACTS: usize = 256;
/// Most characters of one.
const FACT: usize = 4096;
/// Most characters of a report.
const REPORT: usize = 16 << 10;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files of the page: path, type, content.
macro_rules! files {
    ($(($path:literal, $file:literal, $kind:expr),)*) => {
        [$(($path, $kind, include_bytes!(concat!("../page/", $file)).as_slice())),*]
    };
}

const FILES: &[(&str, &str, &[u8])] = &files![
    ("/", "index.html", HTML),
    ("/style.css", "style.css", "text/css; charset=utf-8"),
    ("/icon.svg", "icon.svg", "image/svg+xml"),
    ("/main.js", "main.js", SCRIPT),
    ("/stream.js", "stream.js", SCRIPT),
    ("/model.js", "model.js", SCRIPT),
    ("/filter.js", "filter.js", SCRIPT),
    ("/layout.js", "layout.js", SCRIPT),
    ("/grid.js", "grid.js", SCRIPT),
    ("/look.js", "look.js", SCRIPT),
    ("/legend.js", "legend.js", SCRIPT),
    ("/charts.js", "charts.js", SCRIPT),
    ("/stages.js", "stages.js", SCRIPT),
    ("/detail.js", "detail.js", SCRIPT),
    ("/format.js", "format.js", SCRIPT),
];

/// The page of a source. Nothing runs until somebody opens it.
pub fn router(source: Arc<dyn Source>, options: Options) -> Router {
    let hub = Hub::new(source, options.is_writable());
    let mut router = Router::new();
    for (path, kind, content) in FILES {
        let file = move || async move { ([(CONTENT_TYPE, *kind)], Bytes::from_static(content)) };
        router = router.route(path, get(file));
    }
    router
        .route("/api/stream", get(stream))
        .route("/api/guests/{id}", get(guest))
        .route("/api/guests/{id}/{action}", post(act))
        .with_state(hub)
        .layer(from_fn_with_state(Arc::new(options), guard))
}

/// Everything, then differences, until the browser goes.
async fn stream(State(hub): State<Arc<Hub>>) -> Response {
    let Some(watcher) = hub.watch() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many browsers look at this page\n").into_response();
    };
    let messages = futures_util::stream::unfold(watcher, |mut watcher| async move {
        let bytes = watcher.next().await?;
        Some((Ok::<_, Infallible>(bytes), watcher))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(messages)).into_response()
}

#[derive(Deserialize)]
struct From {
    /// Byte of the console.
    from: Option<u64>,
}

/// A guest and what it wrote, as the page is told.
#[derive(Serialize)]
struct Told {
    id: u64,
    name: String,
    owner: String,
    state: &'static str,
    cell: u16,
    facts: Vec<Fact>,
    report: Option<String>,
    console: Option<Written>,
}

/// A piece of a console.
#[derive(Serialize)]
struct Written {
    from: u64,
    /// Where the next one begins.
    next: u64,
    text: String,
}

async fn guest(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<u64>,
    Query(From { from }): Query<From>,
) -> Response {
    let told = move || {
        let detail = hub.source.guest(id)?;
        Some(tell(detail, written(&*hub.source, id, from)))
    };
    match tokio::task::spawn_blocking(told).await {
        Ok(Some(told)) => match serde_json::to_vec(&told) {
            Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
            Err(e) => failed(&e),
        },
        Ok(None) => (StatusCode::NOT_FOUND, "there is no such guest any more\n").into_response(),
        Err(e) => failed(&e),
    }
}

async fn act(State(hub): State<Arc<Hub>>, Path((id, action)): Path<(u64, String)>) -> Response {
    let Some(action) = Action::ALL.into_iter().find(|a| a.name() == action) else {
        return (StatusCode::NOT_FOUND, "there is no such action\n").into_response();
    };
    match tokio::task::spawn_blocking(move || hub.source.act(id, action)).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(Refusal::Unknown)) => {
            (StatusCode::NOT_FOUND, "there is no such guest any more\n").into_response()
        }
        Ok(Err(Refusal::Refused(why))) => (StatusCode::CONFLICT, inert::line(&why, FACT)).into_response(),
        Err(e) => failed(&e),
    }
}

fn failed(why: &dyn std::fmt::Display) -> Response {
    log::error!("the page: {why}");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

/// Whatever a guest could have had a hand in is made harmless.
fn tell(detail: Detail, console: Option<Written>) -> Told {
    let facts = detail.facts.into_iter().take(FACTS).map(|fact| Fact {
        value: match fact.value {
            Value::Text(text) => Value::Text(inert::line(&text, FACT)),
            other => other,
        },
        ..fact
    });
    Told {
        id: detail.id,
        name: inert::line(&detail.name, NAME),
        owner: inert::line(&detail.owner, NAME),
        state: detail.state.name(),
        cell: detail.cell,
        facts: facts.collect(),
        report: detail.report.map(|report| inert::lines(&report, REPORT)),
        console,
    }
}

fn written(source: &dyn Source, id: u64, from: Option<u64>) -> Option<Written> {
    let mut console = source.console(id, from, CONSOLE)?;
    console.bytes.truncate(CONSOLE);
    let (text, used) = inert::console(&console.bytes);
    Some(Written { from: console.from, next: console.from + used as u64, text })
}
