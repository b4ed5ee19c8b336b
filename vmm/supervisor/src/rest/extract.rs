//! What requests say: each part read with a bound, and an error that says what is wrong with it.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Failure, strict};

/// Longest body of JSON, bytes: room for a configuration of ten thousand guests.
const LONGEST: usize = 16 << 20;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body of JSON.
pub(super) struct Told<T>(pub(super) T);

/// A body of bytes.
pub(super) struct Content(pub(super) Bytes);

/// What follows the `?`.
pub(super) struct Query<T>(pub(super) T);

/// The part of the path that names something.
pub(super) struct Named(pub(super) String);

/// Reads a body whole, with a bound and within a time.
async fn whole(body: Body, most: usize) -> Result<Bytes, Failure> {
    match tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) if e.to_string().contains("length limit") => Err(Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is too long: {most} bytes at most"),
        )),
        Ok(Err(_)) => Err(Failure::new(StatusCode::BAD_REQUEST, "the body breaks off")),
        Err(_) => Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "the body takes too long to come")),
    }
}

fn is_of_kind(request: &Request, kinds: &[&str]) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
    kinds.iter().any(|known| kind.eq_ignore_ascii_case(known))
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Told<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        if !is_of_kind(&request, &["application/json"]) {
            let text = "the body must be JSON: say Content-Type: application/json";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let bytes = whole(request.into_body(), LONGEST).await?;
        let mut value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {e}")))?;
        let senseless = |why: String| {
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, format!("the body makes no sense: {why}"))
        };
        if !value.is_object() {
            return Err(senseless("it must be an object".to_owned()));
        }
        whole_numbers(&mut value).map_err(senseless)?;
        strict::read(value).map(Told).map_err(|e| senseless(e.to_string()))
    }
}

pub(super) use foraker_api::guest::GREATEST;

/// In JSON, `5.0` is the whole number 5; and whole numbers that not every client can tell from the next one are none.
fn whole_numbers(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            if let Some(float) =
                number.as_f64().filter(|f| !number.is_u64() && !number.is_i64() && f.fract() == 0.0)
            {
                // Below 2^53 every whole number is exact.
                if (0.0..=GREATEST as f64).contains(&float) {
                    *number = (float as u64).into();
                }
            }
            if number.as_u64().is_some_and(|n| n > GREATEST) {
                return Err(format!("{number} is too large"));
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().try_for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

impl<S: Send + Sync> FromRequest<S> for Content {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        if !is_of_kind(&request, &["application/octet-stream"]) {
            let text = "the body must be the image: say Content-Type: application/octet-stream";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        whole(request.into_body(), crate::images::LONGEST).await.map(Content)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Query(query)),
            Err(e) => Err(Failure::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("the query makes no sense: {}", cause(&e)),
            )),
        }
    }
}

/// The innermost cause: the outer ones name our own functions.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let found: Result<axum::extract::Path<String>, PathRejection> =
            axum::extract::Path::from_request_parts(parts, state).await;
        match found {
            Ok(axum::extract::Path(name)) => Ok(Named(name)),
            Err(e) => {
                Err(Failure::new(StatusCode::BAD_REQUEST, format!("the path makes no sense: {}", cause(&e))))
            }
        }
    }
}
