//! What a client sends and nobody reads, because the answer is known before: it is read to its end, if that is near.
//!
//! A connection that is closed with something unread on it is torn down by the kernel, and the client, which may still be sending, does not see the answer that
//! says what was wrong with its request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

/// Most bytes that are read for this, and for how long.
const MOST: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a body is put that was not read to its end.
type Place = Arc<Mutex<Option<Body>>>;

/// A body that is not lost when its reader loses interest.
struct Kept(Body, Place);

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.0.is_end_stream() {
            let rest = std::mem::take(&mut self.0);
            *self.1.lock().unwrap_or_else(PoisonError::into_inner) = Some(rest);
        }
    }
}

/// Has the request answered, and then reads what is left of it.
pub(super) async fn read(request: Request, next: Next) -> Response {
    let place = Place::default();
    let kept = Arc::clone(&place);
    let response = next.run(request.map(|body| Body::new(Kept(body, kept)))).await;
    let rest = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    // What is longer, or late, is cut off.
    if let Some(rest) = rest.filter(|rest| rest.size_hint().lower() <= MOST as u64) {
        let _ = tokio::time::timeout(PATIENCE, axum::body::to_bytes(rest, MOST)).await;
    }
    response
}
