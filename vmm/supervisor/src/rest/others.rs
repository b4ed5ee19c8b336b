//! Owners, networks, and the daemon itself.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use foraker_api::network::NetworkSettings;
use foraker_api::{
    Cell, Gatekeeper, GatekeeperSettings, Health, Network, Owner, OwnerSettings, Page, Version,
};

use super::extract::{Named, Query, Told};
use super::{API_VERSION, Failure, Part, Problems, part, written};
use crate::supervisor::Supervisor;

/// Lists owners, by their names.
#[utoipa::path(get, path = "/owners", tag = "owners", params(Part), responses((status = 200, body = Page<Owner>), Problems))]
pub(super) async fn owners(
    State(supervisor): State<Supervisor>,
    Query(of): Query<Part>,
) -> Result<Json<Page<Owner>>, Failure> {
    part(supervisor.owners(), &of, |owner| &owner.name)
}

/// Says what an owner has, and what is settled for it.
#[utoipa::path(get, path = "/owners/{name}", tag = "owners", params(("name" = String, Path, pattern = "^[A-Za-z0-9._-]{1,64}$")), responses((status = 200, body = Owner), Problems))]
pub(super) async fn owner(
    State(supervisor): State<Supervisor>,
    Named(name): Named,
) -> Result<Json<Owner>, Failure> {
    let found = supervisor.owners().into_iter().find(|owner| owner.name == name);
    found.map(Json).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("there is no owner {name}")))
}

/// Settles what an owner may have.
#[utoipa::path(put, path = "/owners/{name}", tag = "owners", params(("name" = String, Path, pattern = "^[A-Za-z0-9._-]{1,64}$")), request_body = OwnerSettings, responses((status = 200, body = Owner), Problems))]
pub(super) async fn set_owner(
    supervisor: State<Supervisor>,
    Named(name): Named,
    Told(settings): Told<OwnerSettings>,
) -> Result<Json<Owner>, Failure> {
    written(supervisor.set_owner(&name, &settings)?).await?;
    owner(supervisor, Named(name)).await
}

/// Removes an owner of whom there is nothing else.
#[utoipa::path(delete, path = "/owners/{name}", tag = "owners", params(("name" = String, Path, pattern = "^[A-Za-z0-9._-]{1,64}$")), responses((status = 204, description = "it is gone"), Problems))]
pub(super) async fn remove_owner(
    State(supervisor): State<Supervisor>,
    Named(name): Named,
) -> Result<StatusCode, Failure> {
    written(supervisor.remove_owner(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists networks, by their names.
#[utoipa::path(get, path = "/networks", tag = "networks", params(Part), responses((status = 200, body = Page<Network>), Problems))]
pub(super) async fn networks(
    State(supervisor): State<Supervisor>,
    Query(of): Query<Part>,
) -> Result<Json<Page<Network>>, Failure> {
    part(supervisor.networks(), &of, |network| &network.name)
}

/// Says whose a network is.
#[utoipa::path(get, path = "/networks/{name}", tag = "networks", params(("name" = String, Path, pattern = "^[A-Za-z0-9._-]{1,64}$")), responses((status = 200, body = Network), Problems))]
pub(super) async fn network(
    State(supervisor): State<Supervisor>,
    Named(name): Named,
) -> Result<Json<Network>, Failure> {
    let found = supervisor.networks().into_iter().find(|network| network.name == name);
    found.map(Json).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("there is no network {name}")))
}

/// Makes a network.
#[utoipa::path(put, path = "/networks/{name}", tag = "networks", params(("name" = String, Path, pattern = "^[A-Za-z0-9._-]{1,64}$")), request_body = NetworkSettings, responses((status = 200, body = Network), Problems))]
pub(super) async fn make_network(
    supervisor: State<Supervisor>,
    Named(name): Named,
    Told(settings): Told<NetworkSettings>,
) -> Result<Json<Network>, Failure> {
    written(supervisor.make_network(&name, &settings)?).await?;
    network(supervisor, Named(name)).await
}

/// Removes a network that no guest is in.
#[utoipa::path(delete, path = "/networks/{name}", tag = "networks", params(("name" = String, Path, pattern = "^[A-Za-z0-9._-]{1,64}$")), responses((status = 204, description = "it is gone"), Problems))]
pub(super) async fn remove_network(
    State(supervisor): State<Supervisor>,
    Named(name): Named,
) -> Result<StatusCode, Failure> {
    written(supervisor.remove_network(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says what there is to give, what is given, and who waits.
#[utoipa::path(get, path = "/gatekeeper", tag = "system", responses((status = 200, body = Gatekeeper), Problems))]
pub(super) async fn gatekeeper(State(supervisor): State<Supervisor>) -> Json<Gatekeeper> {
    Json(supervisor.gatekeeper())
}

/// Settles what all guests may have together: until something else is settled, also beyond the end of the daemon.
#[utoipa::path(put, path = "/gatekeeper", tag = "system", request_body = GatekeeperSettings, responses((status = 200, body = Gatekeeper), Problems))]
pub(super) async fn set_gatekeeper(
    State(supervisor): State<Supervisor>,
    Told(settings): Told<GatekeeperSettings>,
) -> Result<Json<Gatekeeper>, Failure> {
    written(supervisor.set_gatekeeper(Some(settings))?).await?;
    Ok(Json(supervisor.gatekeeper()))
}

/// Has it be again as the daemon's command line says.
#[utoipa::path(delete, path = "/gatekeeper", tag = "system", responses((status = 204, description = "nothing is settled"), Problems))]
pub(super) async fn reset_gatekeeper(State(supervisor): State<Supervisor>) -> Result<StatusCode, Failure> {
    written(supervisor.set_gatekeeper(None)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists cells, by their numbers.
#[utoipa::path(get, path = "/cells", tag = "system", responses((status = 200, body = Page<Cell>), Problems))]
pub(super) async fn cells(State(supervisor): State<Supervisor>) -> Json<Page<Cell>> {
    Json(Page { items: supervisor.cells(), next: None })
}

/// Says which daemon it is.
#[utoipa::path(get, path = "/version", tag = "system", responses((status = 200, body = Version), Problems))]
pub(super) async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
        abi: foraker_abi::VERSION,
    })
}

/// Says whether all is well.
#[utoipa::path(get, path = "/health", tag = "system", responses((status = 200, body = Health), (status = 503, body = Health, description = "a cell is missing"), Problems))]
pub(super) async fn health(State(supervisor): State<Supervisor>) -> (StatusCode, Json<Health>) {
    let health = supervisor.health();
    let status = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}
