//! `/guests`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use foraker_api::guest::{Bulk, Counters, Done};
use foraker_api::{Action, Create, Created, Filter, Guest, GuestDetail, Page};
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{GREATEST, Named, Query, Told};
use super::{Failure, Problems, Raw, written};
use crate::supervisor::Supervisor;

/// How long somebody may wait for a guest, seconds.
const LONGEST_WAIT: u16 = 600;
/// How much of a log is sent if nobody says otherwise, and at most, bytes.
const USUAL_LOG: u64 = 64 << 10;
const LONGEST_LOG: u64 = 64 << 20;

/// Which guests, and which part of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Whose name this is.
    name: Option<String>,
    /// Whose owner this is.
    owner: Option<String>,
    /// That were asked for with this image.
    image: Option<String>,
    /// That are in one of these states, separated by commas.
    #[param(
        example = "running,paused",
        pattern = "^(waiting|restarting|starting|running|paused|exited|faulted|killed|refused|lost)(,(waiting|restarting|starting|running|paused|exited|faulted|killed|refused|lost))*$"
    )]
    state: Option<String>,
    /// That have this label, or this label with this value: `tier` or `tier=web`.
    label: Option<String>,
    /// So many at most.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
    /// Those with greater ids.
    #[param(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    after: Option<u64>,
}

impl Which {
    fn filter(&self) -> Result<Filter, Failure> {
        let invalid = |text: String| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text);
        let states = self.state.iter().flat_map(|all| all.split(',')).map(str::parse);
        Ok(Filter {
            ids: None,
            name: self.name.clone(),
            owner: self.owner.clone(),
            image: self.image.clone(),
            states: states.collect::<Result<_, String>>().map_err(invalid)?,
            label: self.label.clone(),
        })
    }

    fn limit(&self) -> Result<usize, Failure> {
        super::limit(self.limit)
    }
}

/// Lists guests, by their ids.
#[utoipa::path(get, path = "/guests", operation_id = "list_guests", tag = "guests", params(Which), responses((status = 200, body = Page<Guest>), Problems))]
pub(super) async fn list(
    State(supervisor): State<Supervisor>,
    Query(which): Query<Which>,
) -> Result<Json<Page<Guest>>, Failure> {
    let limit = which.limit()?;
    let after = which.after.unwrap_or(0);
    if after > GREATEST {
        return Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("after {after}: {GREATEST} at most"),
        ));
    }
    let items = supervisor.list(&which.filter()?, after, limit);
    let next = items.last().filter(|_| items.len() == limit).map(|g| g.id.to_string());
    Ok(Json(Page { items, next }))
}

/// Takes guests: they start as they are admitted.
#[utoipa::path(post, path = "/guests", operation_id = "create_guests", tag = "guests", request_body = Create, responses((status = 201, body = Created), Problems))]
pub(super) async fn create(
    State(supervisor): State<Supervisor>,
    Told(create): Told<Create>,
) -> Result<(StatusCode, Json<Created>), Failure> {
    let (ids, ticket) = supervisor.create(&create)?;
    written(ticket).await?;
    let most = Duration::from_secs(create.wait_seconds.min(LONGEST_WAIT).into());
    let open = supervisor.started(ids.clone(), most).await;
    let (first, last) = (*ids.start(), *ids.end());
    let ipv4 =
        supervisor.guest(first).ok().filter(|g| g.state == foraker_api::State::Running).and_then(|g| g.ipv4);
    Ok((StatusCode::CREATED, Json(Created { first, last, open, ipv4 })))
}

/// Guests with ids from the first to the last.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Range {
    /// The first id.
    #[param(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    first: u64,
    /// The last id.
    #[param(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    last: u64,
    /// Answer after this time at the latest.
    #[serde(default)]
    #[param(minimum = 0, maximum = 600_000)]
    milliseconds: u32,
}

/// Waits until guests run or have ended, and says how many do not.
#[utoipa::path(get, path = "/guests/settled", tag = "guests", params(Range), responses((status = 200, body = Done), Problems))]
pub(super) async fn settled(
    State(supervisor): State<Supervisor>,
    Query(Range { first, last, milliseconds }): Query<Range>,
) -> Result<Json<Done>, Failure> {
    if milliseconds > u32::from(LONGEST_WAIT) * 1000 {
        let text = format!("{milliseconds} ms: {LONGEST_WAIT} s at most");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    let count = supervisor.settled(first..=last, Duration::from_millis(milliseconds.into())).await;
    Ok(Json(Done { count }))
}

/// Does something to many guests: to those it can be done to.
#[utoipa::path(post, path = "/guests/actions", tag = "guests", request_body = Bulk, responses((status = 200, body = Done), Problems))]
pub(super) async fn act_on_all(
    State(supervisor): State<Supervisor>,
    Told(bulk): Told<Bulk>,
) -> Result<Json<Done>, Failure> {
    let (count, ticket) = supervisor.act_on_all(bulk.action, &bulk.filter);
    written(ticket).await?;
    Ok(Json(Done { count }))
}

/// Forgets guests that have ended, with their logs.
#[utoipa::path(post, path = "/guests/prune", tag = "guests", request_body = Filter, responses((status = 200, body = Done), Problems))]
pub(super) async fn prune(
    State(supervisor): State<Supervisor>,
    Told(filter): Told<Filter>,
) -> Result<Json<Done>, Failure> {
    let (count, ticket) = supervisor.prune(&filter);
    written(ticket).await?;
    Ok(Json(Done { count }))
}

/// Says everything about a guest. `id` is its id or its name.
#[utoipa::path(get, path = "/guests/{id}", operation_id = "inspect_guest", tag = "guests", params(("id" = String, Path)), responses((status = 200, body = GuestDetail), Problems))]
pub(super) async fn inspect(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
) -> Result<Json<GuestDetail>, Failure> {
    let id = supervisor.id_of(&text)?;
    Ok(Json(supervisor.detail(id).await?))
}

/// Whether a guest that has not ended is ended first.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Force {
    /// One that has not ended is ended first.
    #[serde(default)]
    force: bool,
}

/// Forgets a guest that has ended, with its log.
#[utoipa::path(delete, path = "/guests/{id}", operation_id = "remove_guest", tag = "guests", params(("id" = String, Path), Force), responses((status = 204, description = "it is forgotten"), Problems))]
pub(super) async fn remove(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
    Query(Force { force }): Query<Force>,
) -> Result<StatusCode, Failure> {
    written(supervisor.remove(&text, force)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn act(supervisor: &Supervisor, text: &str, action: Action) -> Result<Json<Guest>, Failure> {
    let (guest, ticket) = supervisor.act(text, action)?;
    written(ticket).await?;
    Ok(Json(guest))
}

/// Has a guest that has ended run again.
#[utoipa::path(post, path = "/guests/{id}/start", tag = "guests", params(("id" = String, Path)), responses((status = 200, body = Guest), Problems))]
pub(super) async fn start(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
) -> Result<Json<Guest>, Failure> {
    act(&supervisor, &text, Action::Start).await
}

/// Asks a guest to end.
#[utoipa::path(post, path = "/guests/{id}/stop", tag = "guests", params(("id" = String, Path)), responses((status = 200, body = Guest), Problems))]
pub(super) async fn stop(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
) -> Result<Json<Guest>, Failure> {
    act(&supervisor, &text, Action::Stop).await
}

/// Ends a guest.
#[utoipa::path(post, path = "/guests/{id}/kill", tag = "guests", params(("id" = String, Path)), responses((status = 200, body = Guest), Problems))]
pub(super) async fn kill(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
) -> Result<Json<Guest>, Failure> {
    act(&supervisor, &text, Action::Kill).await
}

/// Holds a guest: its state stays, it does not run.
#[utoipa::path(post, path = "/guests/{id}/pause", tag = "guests", params(("id" = String, Path)), responses((status = 200, body = Guest), Problems))]
pub(super) async fn pause(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
) -> Result<Json<Guest>, Failure> {
    act(&supervisor, &text, Action::Pause).await
}

/// Has a guest that was held run on.
#[utoipa::path(post, path = "/guests/{id}/resume", tag = "guests", params(("id" = String, Path)), responses((status = 200, body = Guest), Problems))]
pub(super) async fn resume(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
) -> Result<Json<Guest>, Failure> {
    act(&supervisor, &text, Action::Resume).await
}

/// How much of a log.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Tail {
    /// The last so many bytes; 64 KiB otherwise.
    #[param(minimum = 0, maximum = 67_108_864)]
    bytes: Option<u64>,
}

impl Tail {
    fn bytes(&self) -> Result<u64, Failure> {
        let bytes = self.bytes.unwrap_or(USUAL_LOG);
        if bytes > LONGEST_LOG {
            let text = format!("{bytes} bytes of a log: {LONGEST_LOG} at most");
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text));
        }
        Ok(bytes)
    }
}

/// What the guest wrote: bytes of its own, which may be anything.
fn console_bytes(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, body).into_response()
}

/// Sends the last part of a guest's log.
#[utoipa::path(get, path = "/guests/{id}/log", tag = "guests", params(("id" = String, Path), Tail), responses((status = 200, content_type = "application/octet-stream", body = Raw), Problems))]
pub(super) async fn log(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
    Query(tail): Query<Tail>,
) -> Result<Response, Failure> {
    let id = supervisor.id_of(&text)?;
    let bytes = tail.bytes()?;
    let log = match supervisor.logs() {
        Some(logs) => logs.read(id, bytes).await,
        None => Vec::new(),
    };
    Ok(console_bytes(Body::from(log)))
}

/// Sends the last part of a guest's log and then what it writes, until it has ended.
#[utoipa::path(get, path = "/guests/{id}/console", tag = "guests", params(("id" = String, Path), Tail), responses((status = 200, content_type = "application/octet-stream", body = Raw), Problems))]
pub(super) async fn console(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
    Query(tail): Query<Tail>,
) -> Result<Response, Failure> {
    let id = supervisor.id_of(&text)?;
    let bytes = tail.bytes()?;
    let Some(logs) = supervisor.logs() else { return Ok(console_bytes(Body::empty())) };
    let follower = logs.follow(id, bytes);
    if supervisor.guest(id)?.state.is_over() {
        // It ended before it was followed: nobody else would say so.
        logs.ended(id);
    }
    let pieces = stream::unfold(follower, async |mut follower| {
        let piece = follower.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), follower))
    });
    Ok(console_bytes(Body::from_stream(pieces)))
}

/// Says what a guest has used.
#[utoipa::path(get, path = "/guests/{id}/stats", tag = "guests", params(("id" = String, Path)), responses((status = 200, body = Counters), Problems))]
pub(super) async fn stats(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
) -> Result<Json<Counters>, Failure> {
    let id = supervisor.id_of(&text)?;
    let found = supervisor.survey(Some(vec![id])).await.into_iter().find(|c| c.id == id);
    found.map(Json).ok_or_else(|| Failure::new(StatusCode::CONFLICT, format!("guest {text} does not run")))
}

/// Says what all guests that run have used.
#[utoipa::path(get, path = "/stats", tag = "guests", responses((status = 200, body = Vec<Counters>), Problems))]
pub(super) async fn all_stats(State(supervisor): State<Supervisor>) -> Json<Vec<Counters>> {
    Json(supervisor.survey(None).await)
}

/// For how long.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// So many seconds at most; 60 otherwise.
    #[param(minimum = 0, maximum = 600)]
    seconds: Option<u16>,
}

/// Waits until a guest has ended and does not come back by itself.
#[utoipa::path(get, path = "/guests/{id}/wait", tag = "guests", params(("id" = String, Path), Wait), responses((status = 200, body = Guest), (status = 204, description = "it has not ended in this time"), Problems))]
pub(super) async fn wait(
    State(supervisor): State<Supervisor>,
    Named(text): Named,
    Query(wait): Query<Wait>,
) -> Result<Response, Failure> {
    let id = supervisor.id_of(&text)?;
    let seconds = wait.seconds.unwrap_or(60);
    if seconds > LONGEST_WAIT {
        let text = format!("{seconds} seconds: {LONGEST_WAIT} at most");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    Ok(match supervisor.ended(id, Duration::from_secs(seconds.into())).await {
        Some(guest) => Json(guest).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}
