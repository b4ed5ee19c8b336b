//! `/images`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use foraker_api::{Image, Page};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Content, Named, Query, Told};
use super::{Failure, Part, Problems, Raw, part, written};
use crate::supervisor::Supervisor;

/// Lists images, by their digests.
#[utoipa::path(get, path = "/images", operation_id = "list_images", tag = "images", params(Part), responses((status = 200, body = Page<Image>), Problems))]
pub(super) async fn list(
    State(supervisor): State<Supervisor>,
    Query(of): Query<Part>,
) -> Result<Json<Page<Image>>, Failure> {
    part(supervisor.images(), &of, |image| &image.digest)
}

/// What it is to be called.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Called {
    /// A name, which another image may have had.
    #[param(pattern = "^[A-Za-z0-9._-]{1,63}$")]
    name: Option<String>,
}

/// Takes an image.
#[utoipa::path(post, path = "/images", operation_id = "add_image", tag = "images", params(Called), request_body(content = Raw, content_type = "application/octet-stream"), responses((status = 201, body = Image), Problems))]
pub(super) async fn create(
    State(supervisor): State<Supervisor>,
    Query(Called { name }): Query<Called>,
    Content(bytes): Content,
) -> Result<(StatusCode, Json<Image>), Failure> {
    let directory = supervisor.images_directory();
    // It is hashed, checked and written by a thread that may take its time.
    let stored = tokio::task::spawn_blocking(move || crate::images::store(&directory, &bytes)).await;
    let stored = stored.map_err(|e| Failure::new(StatusCode::SERVICE_UNAVAILABLE, e.to_string()))??;
    let (image, ticket) = supervisor.add_image(stored, name.as_deref())?;
    written(ticket).await?;
    Ok((StatusCode::CREATED, Json(image)))
}

/// Says what an image is. `reference` is its name or its digest.
#[utoipa::path(get, path = "/images/{reference}", operation_id = "inspect_image", tag = "images", params(("reference" = String, Path)), responses((status = 200, body = Image), Problems))]
pub(super) async fn inspect(
    State(supervisor): State<Supervisor>,
    Named(reference): Named,
) -> Result<Json<Image>, Failure> {
    Ok(Json(supervisor.image(&reference)?))
}

/// Which image a name means.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Meaning {
    /// Its digest, or a name that it has already.
    image: String,
}

/// Gives an image that is there a name.
#[utoipa::path(put, path = "/images/{reference}", operation_id = "name_image", tag = "images", params(("reference" = String, Path, pattern = "^[A-Za-z0-9._-]{1,63}$")), request_body = Meaning, responses((status = 200, body = Image), Problems))]
pub(super) async fn name(
    State(supervisor): State<Supervisor>,
    Named(reference): Named,
    Told(Meaning { image }): Told<Meaning>,
) -> Result<Json<Image>, Failure> {
    let (image, ticket) = supervisor.name_image(&reference, &image)?;
    written(ticket).await?;
    Ok(Json(image))
}

/// Removes an image that no guest needs.
#[utoipa::path(delete, path = "/images/{reference}", operation_id = "remove_image", tag = "images", params(("reference" = String, Path)), responses((status = 204, description = "it is gone"), Problems))]
pub(super) async fn remove(
    State(supervisor): State<Supervisor>,
    Named(reference): Named,
) -> Result<StatusCode, Failure> {
    written(supervisor.remove_image(&reference)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
