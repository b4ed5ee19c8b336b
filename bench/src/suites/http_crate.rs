//! HTTP requests per second of a server made of the crate `picoserve`, beside the guest's own code, by number of connections.
//! Both run on the library OS, each run in a guest of its own.

use anyhow::Result;

use super::Session;
use super::http::{DOCUMENT, PORT, launch, load};
use crate::figure::Figure;
use crate::stats::Samples;

/// Connections of the load.
pub const CONNECTIONS: [u32; 4] = [16, 64, 256, 1000];
const VARIANT: &str = "httpd-picoserve";
/// What the manifest of the own server says.
const OPTIONS: [&str; 3] = ["--large-pages", "--memory", "256M"];

/// Measures every number of connections.
///
/// # Errors
/// When the variant does not build, or a guest or a request fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let variant = artifacts.apart(VARIANT)?;
    for connections in CONNECTIONS {
        let (mut value, mut baseline) = (Samples::default(), Samples::default());
        for _ in 0..session.runs {
            let guest = artifacts.serve_file(&mut session.subnets, &OPTIONS, &variant, &[], PORT)?;
            value.push(load(guest, DOCUMENT, connections, session.seconds)?.0.per_second);
            baseline.push(load(launch(session)?, DOCUMENT, connections, session.seconds)?.0.per_second);
        }
        let what = connections.to_string();
        (session.report)(&Figure::against("http_crate", what, "1/s", &value, "own code", &baseline)?)?;
    }
    Ok(())
}
