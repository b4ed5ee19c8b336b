//! `/config`: everything that is settled, to be read back and applied again.

use axum::Json;
use axum::extract::State;
use foraker_api::Configuration;
use foraker_api::config::Applied;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Query, Told};
use super::{Failure, Problems, written};
use crate::supervisor::Supervisor;

/// Reads it back.
#[utoipa::path(get, path = "/config", tag = "system", responses((status = 200, body = Configuration), Problems))]
pub(super) async fn read(State(supervisor): State<Supervisor>) -> Json<Configuration> {
    Json(supervisor.configuration())
}

/// What becomes of what is not in it.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Guests that it does not name are removed.
    #[serde(default)]
    prune: bool,
}

/// Makes it true: what is so already stays as it is.
#[utoipa::path(put, path = "/config", tag = "system", params(How), request_body = Configuration, responses((status = 200, body = Applied), Problems))]
pub(super) async fn apply(
    State(supervisor): State<Supervisor>,
    Query(How { prune }): Query<How>,
    Told(configuration): Told<Configuration>,
) -> Result<Json<Applied>, Failure> {
    let (applied, tickets) = supervisor.apply(&configuration, prune);
    for ticket in tickets {
        written(ticket).await?;
    }
    Ok(Json(applied?))
}
