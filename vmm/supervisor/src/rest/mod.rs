//! The API: REST over HTTP/1.1 on a Unix socket. Handlers hold the supervisor's state for moments only and never wait for a cell with it.
//!
//! Clients are bounded in number and in what they may send, and those that are slow are cut off: none of them reaches the guests' data path, which runs in
//! other processes.

mod configuration;
mod events;
mod extract;
mod guests;
mod images;
mod links;
mod looks;
mod metrics;
mod others;
mod serve;
mod strict;
mod unread;

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use foraker_api::{Page, Problem, page};
use serde::Deserialize;
use utoipa::openapi::{Content, RefOr, ResponseBuilder};
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::refused::Refused;
use crate::store::Ticket;
use crate::supervisor::Supervisor;
pub use serve::{Listener, NoRemote, serve};

/// The version of the API.
pub const API_VERSION: &str = "1";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Foraker",
        description = "The control API of an isolation kernel: guests, their images, owners and networks.",
        version = "1",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")
    ),
    components(schemas(Problem)),
    tags(
        (name = "guests", description = "Virtual machines, a service in each"),
        (name = "images", description = "What guests run"),
        (name = "owners", description = "Whose guests are, and what they may have"),
        (name = "networks", description = "Which guests reach each other"),
        (name = "system", description = "The daemon itself")
    )
)]
struct Description;

fn routes() -> OpenApiRouter<Supervisor> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(guests::list, guests::create))
        .routes(routes!(guests::settled))
        .routes(routes!(guests::act_on_all))
        .routes(routes!(guests::prune))
        .routes(routes!(guests::inspect, guests::remove))
        .routes(routes!(guests::start))
        .routes(routes!(guests::stop))
        .routes(routes!(guests::kill))
        .routes(routes!(guests::pause))
        .routes(routes!(guests::resume))
        .routes(routes!(guests::log))
        .routes(routes!(guests::console))
        .routes(routes!(guests::stats))
        .routes(routes!(guests::wait))
        .routes(routes!(guests::all_stats))
        .routes(routes!(looks::core))
        .routes(routes!(looks::trace))
        .routes(routes!(looks::debug))
        .routes(routes!(images::list, images::create))
        .routes(routes!(images::inspect, images::name, images::remove))
        .routes(routes!(others::owners))
        .routes(routes!(others::owner, others::set_owner, others::remove_owner))
        .routes(routes!(others::networks))
        .routes(routes!(others::network, others::make_network, others::remove_network))
        .routes(routes!(others::gatekeeper, others::set_gatekeeper, others::reset_gatekeeper))
        .routes(routes!(others::cells))
        .routes(routes!(others::version))
        .routes(routes!(others::health))
        .routes(routes!(configuration::read, configuration::apply))
        .routes(routes!(events::follow))
        .routes(routes!(metrics::metrics))
}

/// The whole API, as OpenAPI describes it.
fn description() -> serde_json::Value {
    let mut description = serde_json::to_value(routes().into_openapi()).unwrap_or_default();
    links::add(&mut description);
    description
}

fn router(supervisor: Supervisor) -> Router {
    let (router, _) = routes().split_for_parts();
    let json = description().to_string();
    let described = async move || ([(header::CONTENT_TYPE, "application/json")], json.clone());
    router
        .route("/openapi.json", axum::routing::get(described))
        .fallback(async || {
            Failure::new(StatusCode::NOT_FOUND, "there is no such resource: see /openapi.json")
        })
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "the resource has no such method: see /openapi.json")
        })
        .layer(axum::middleware::from_fn(unread::read))
        .with_state(supervisor)
}

/// Bytes of any kind, as the API describes them.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
struct Raw(#[expect(dead_code, reason = "only described")] Vec<u8>);

/// An error, on its way to a client.
#[derive(Debug)]
struct Failure(Problem);

impl Failure {
    fn new(status: StatusCode, detail: impl Into<String>) -> Failure {
        Failure(Problem::new(status.as_u16(), status.canonical_reason().unwrap_or("error"), detail))
    }
}

impl From<Refused> for Failure {
    fn from(why: Refused) -> Failure {
        let status = match &why {
            Refused::NotFound(_) => StatusCode::NOT_FOUND,
            Refused::Conflict(_) => StatusCode::CONFLICT,
            Refused::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refused::Broken(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Failure::new(status, why.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// Which part of a collection.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Part {
    /// So many at most.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
    /// Those behind this one.
    after: Option<String>,
}

/// How many items a page has.
fn limit(asked: Option<usize>) -> Result<usize, Failure> {
    match asked.unwrap_or(page::MOST) {
        limit @ 1..=page::MOST => Ok(limit),
        limit => {
            let text = format!("{limit} items: choose 1 to {}", page::MOST);
            Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text))
        }
    }
}

/// A part of items that are in the order of their keys.
fn part<T>(items: Vec<T>, of: &Part, key: impl Fn(&T) -> &String) -> Result<Json<Page<T>>, Failure> {
    let limit = limit(of.limit)?;
    let behind = |item: &T| of.after.as_ref().is_none_or(|after| key(item) > after);
    let items: Vec<T> = items.into_iter().filter(behind).take(limit).collect();
    let next = items.last().filter(|_| items.len() == limit).map(|last| key(last).clone());
    Ok(Json(Page { items, next }))
}

/// What every resource may answer instead.
struct Problems;

impl utoipa::IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = Content::new(Some(RefOr::<utoipa::openapi::Schema>::Ref(
            utoipa::openapi::Ref::from_schema_name(Problem::name()),
        )));
        let response = ResponseBuilder::new()
            .description("what is wrong, and what to do")
            .content("application/problem+json", content)
            .build();
        [("default".to_owned(), RefOr::T(response))].into()
    }
}

/// What is acknowledged is written.
async fn written(ticket: Ticket) -> Result<(), Failure> {
    if ticket.written().await {
        return Ok(());
    }
    let text = "it is done, but cannot be written down, so that it does not outlive this daemon: see its log";
    Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, text))
}
