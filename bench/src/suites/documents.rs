//! HTTP requests per second by the size of the document, of a guest beside the native server, over 64 connections.

use anyhow::Result;

use super::Session;
use super::http::{launch, load, native_twin};
use crate::figure::Figure;
use crate::netns::Namespace;
use crate::stats::Samples;
use crate::wrk;

/// Connections of the load.
pub const CONNECTIONS: u32 = 64;
/// Bytes of the documents.
pub const SIZES: [usize; 6] = [0, 100, 1000, 10_000, 100_000, 1_000_000];

/// Measures every size.
///
/// # Errors
/// When a server, the network or the load fails, or a single request does.
pub fn run(session: &mut Session) -> Result<()> {
    let namespace = Namespace::new()?;
    let paths = SIZES.map(|size| format!("/bytes/{size}"));
    let server = native_twin(session, &namespace, &paths)?;
    for (size, path) in SIZES.iter().zip(&paths) {
        let (mut value, mut baseline) = (Samples::default(), Samples::default());
        for turn in 0..session.runs {
            value.push(load(launch(session)?, path, CONNECTIONS, session.seconds)?.0.per_second);
            baseline.push(wrk::load(&server.url(turn, path), CONNECTIONS, session.seconds)?.per_second);
        }
        (session.report)(&Figure::against(
            "D3",
            size.to_string(),
            "1/s",
            &value,
            "native epoll",
            &baseline,
        )?)?;
    }
    Ok(())
}
