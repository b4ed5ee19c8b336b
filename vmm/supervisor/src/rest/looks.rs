//! `/guests/{id}/core`, `trace` and `debug`: looking into a guest. Its cell serves it; here bytes go from one stream to the other.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use utoipa::IntoParams;

use super::extract::{Named, Query};
use super::{Failure, Problems};
use crate::channel::Look;
use crate::supervisor::{Looking, Supervisor};

/// What the connection of a debugger changes to.
const PROTOCOL: &str = "gdb-remote";
/// Most bytes of a dump if nobody says otherwise, and at all.
const USUAL_DUMP: u64 = 16 << 30;
const LARGEST_DUMP: u64 = 128 << 30;
/// Longest trace, seconds; most of what has happened in it.
const LONGEST_TRACE: u32 = 86_400;
const MOST_TRACED: u64 = 1_000_000_000;
/// What is passed on at a time, bytes.
const PIECE: usize = 64 << 10;
/// How long a client may take to change protocols.
const CHANGE: Duration = Duration::from_secs(30);

/// Which dump, and how large it may be.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The one that was kept when the guest faulted last, also if it runs again.
    #[serde(default)]
    kept: bool,
    /// So many bytes at most; 16 GiB otherwise.
    #[param(minimum = 1, maximum = 137_438_953_472_u64)]
    most: Option<u64>,
}

/// How much of a trace.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct HowMuch {
    /// It ends after so many milliseconds; with the guest or the connection otherwise.
    #[param(minimum = 1, maximum = 86_400_000)]
    milliseconds: Option<u32>,
    /// It ends after so many lines.
    #[param(minimum = 1, maximum = 1_000_000_000)]
    count: Option<u64>,
}

fn within<T: PartialOrd + std::fmt::Display + Copy>(
    what: &str,
    value: Option<T>,
    from: T,
    most: T,
) -> Result<Option<T>, Failure> {
    match value {
        Some(n) if n < from || n > most => {
            let text = format!("{n} {what}: choose {from} to {most}");
            Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text))
        }
        value => Ok(value),
    }
}

/// What the cell says, as the body of an answer.
fn body(looking: Looking) -> Body {
    Body::from_stream(stream::try_unfold(looking, async |mut looking: Looking| {
        let mut piece = vec![0; PIECE];
        let read = looking.stream.read(&mut piece).await?;
        piece.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then_some((piece, looking)))
    }))
}

fn answer(kind: &'static str, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, body).into_response()
}

/// Sends a guest's memory and registers as an ELF core file, which gdb opens beside the guest's image. A guest that runs is held meanwhile, and goes on; of one
/// that has ended it is what was kept when it faulted (`keep_core`).
#[utoipa::path(get, path = "/guests/{id}/core", tag = "guests", params(("id" = String, Path), Which), responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), Problems))]
pub(super) async fn core(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
    Query(Which { kept, most }): Query<Which>,
) -> Result<Response, Failure> {
    let id = supervisor.id_of(&text)?;
    let most = within("bytes", most, 1, LARGEST_DUMP)?.unwrap_or(USUAL_DUMP);
    let state = supervisor.guest(id)?.state;
    if kept || state.is_over() {
        let conflict = |text| Failure::new(StatusCode::CONFLICT, text);
        let Some((file, bytes)) = supervisor.kept_core(id).await else {
            return Err(conflict(format!(
                "guest {id} is {state}, and no core of it was kept: one that is started with --keep-core leaves one when it faults"
            )));
        };
        if bytes > most {
            return Err(conflict(format!("the dump takes {bytes} bytes and may have {most}")));
        }
        return Ok(dump(file_body(file), Some(bytes)));
    }
    let looking = supervisor.look(id, Look::Dump { most }).await?;
    let bytes = looking.bytes;
    Ok(dump(body(looking), bytes))
}

fn dump(body: Body, bytes: Option<u64>) -> Response {
    let mut answer = answer("application/octet-stream", body);
    if let Some(bytes) = bytes {
        // Whoever reads sees when it breaks off.
        answer.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
    }
    answer
}

/// What a file holds, as the body of an answer.
fn file_body(file: File) -> Body {
    Body::from_stream(stream::try_unfold(file, async |file: File| {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let read = (&file).read(&mut piece)?;
            piece.truncate(read);
            Ok::<_, std::io::Error>((read > 0).then_some((piece, file)))
        });
        read.await.map_err(std::io::Error::other)?
    }))
}

/// Sends what happens to a guest, as it happens: exits, interrupts and packets, a [`foraker_api::Traced`] as JSON on each line. What finds no room is
/// counted, and said in a line of kind `dropped`; the guest never waits. One at a time traces a guest.
#[utoipa::path(get, path = "/guests/{id}/trace", tag = "guests", params(("id" = String, Path), HowMuch), responses((status = 200, content_type = "application/x-ndjson", body = foraker_api::Traced), Problems))]
pub(super) async fn trace(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
    Query(HowMuch { milliseconds, count }): Query<HowMuch>,
) -> Result<Response, Failure> {
    let id = supervisor.id_of(&text)?;
    let milliseconds = within("milliseconds", milliseconds, 1, LONGEST_TRACE * 1000)?.map(u64::from);
    let count = within("lines", count, 1, MOST_TRACED)?;
    let looking = supervisor.look(id, Look::Trace { milliseconds, count }).await?;
    Ok(answer("application/x-ndjson", body(looking)))
}

/// Has gdb debug a guest: the connection changes to its remote protocol (`Upgrade: gdb-remote`). The guest stands from then on, and goes on when gdb leaves, in
/// whatever way. One at a time debugs a guest.
#[utoipa::path(get, path = "/guests/{id}/debug", tag = "guests", params(("id" = String, Path)), responses((status = 101, description = "from now on the connection speaks gdb's remote protocol"), Problems))]
pub(super) async fn debug(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
    mut request: Request,
) -> Result<Response, Failure> {
    let id = supervisor.id_of(&text)?;
    if !wants_change(request.headers()) {
        let text =
            format!("this is for gdb: say Connection: Upgrade and Upgrade: {PROTOCOL}, or use `vmm debug`");
        let mut failure = Failure::new(StatusCode::UPGRADE_REQUIRED, text).into_response();
        failure.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
        return Ok(failure);
    }
    let looking = supervisor.look(id, Look::Debug).await?;
    let changed = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Without the client's word for it within a time, the guest goes on.
        if let Ok(Ok(client)) = tokio::time::timeout(CHANGE, changed).await {
            splice(client, looking).await;
        }
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn wants_change(headers: &HeaderMap) -> bool {
    let says = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    says(header::CONNECTION, "upgrade") && says(header::UPGRADE, PROTOCOL)
}

/// Passes bytes on until the cell has said everything. A client that leaves is the end for the cell, which then says nothing more.
async fn splice(client: Upgraded, looking: Looking) {
    let Looking { mut stream, .. } = looking;
    let (mut from_cell, mut to_cell) = stream.split();
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let up = async {
        // Whatever it was, the client has gone, or the cell has.
        let _ = tokio::io::copy(&mut from_client, &mut to_cell).await;
        let _ = to_cell.shutdown().await;
        std::future::pending::<Infallible>().await
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_cell, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        never = up => match never {},
        () = down => {}
    }
}
