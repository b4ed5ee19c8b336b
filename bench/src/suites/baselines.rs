//! The baselines alone: to see what they reach, and how widely they spread, without any guest.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Session;
use crate::bulk::{self, Direction};
use crate::echo;
use crate::figure::Figure;
use crate::floor::Floor;
use crate::memory;
use crate::native_http::{Documents, Server};
use crate::netns::Namespace;
use crate::process;
use crate::stats::Samples;
use crate::wrk;

/// Microseconds of a duration.
fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Round trips of one sample.
pub const ROUND_TRIPS: u32 = 1000;

/// Time from nothing to the first exit of one raw instance, microseconds; and to its end.
///
/// # Errors
/// When KVM fails.
pub fn floor_launch(floor: &mut Floor) -> Result<(f64, f64)> {
    let start = Instant::now();
    let instance = floor.launch()?;
    let launched = start.elapsed();
    let start = Instant::now();
    drop(instance);
    Ok((micros(launched), micros(start.elapsed())))
}

/// Time of one round trip, mean of [`ROUND_TRIPS`], microseconds.
///
/// # Errors
/// When KVM fails.
pub fn floor_round_trip(instance: &mut crate::floor::Instance) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..ROUND_TRIPS {
        instance.round_trip()?;
    }
    Ok(micros(start.elapsed()) / f64::from(ROUND_TRIPS))
}

/// The raw floor.
///
/// # Errors
/// When KVM or a process fails.
pub fn floor(session: &mut Session) -> Result<()> {
    let mut floor = Floor::open()?;
    // The first and the last VM of a host pay for others: one lives all the time.
    let mut live = floor.launch()?;
    let (mut launch, mut end, mut exit) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..session.runs * 20 {
        let (launched, ended) = floor_launch(&mut floor)?;
        launch.push(launched);
        end.push(ended);
    }
    for _ in 0..session.runs {
        exit.push(floor_round_trip(&mut live)?);
    }
    let absolute = |what, unit, samples: &Samples| -> Result<()> {
        (session.report)(&Figure::absolute("floor", what, unit, samples)?)
    };
    absolute("launch", "us", &launch)?;
    absolute("end", "us", &end)?;
    absolute("pio_round_trip", "us", &exit)?;
    drop(live);
    let program = crate::guest::floor_program()?;
    let whole = (0..session.runs * 10).map(|_| process::whole(&program, &[])).collect::<Result<Samples>>()?;
    absolute("whole_process", "us", &whole)?;
    let kib = (0..session.runs).map(|_| memory::measure(memory::Kind::Floor)).collect::<Result<Samples>>()?;
    absolute("memory", "KiB", &kib)
}

/// The native HTTP server.
///
/// # Errors
/// When the network cannot be made or the load fails.
pub fn http(session: &mut Session) -> Result<()> {
    let namespace = Namespace::new()?;
    let sizes = super::documents::SIZES;
    let server = Server::start(&namespace, Documents::with_sizes(&sizes))?;
    for connections in super::http::CONNECTIONS {
        let mut rate = Samples::default();
        for turn in 0..session.runs {
            rate.push(
                wrk::load(&server.url(turn, super::http::DOCUMENT), connections, session.seconds)?.per_second,
            );
        }
        (session.report)(&Figure::absolute("native-http", connections.to_string(), "1/s", &rate)?)?;
    }
    for size in sizes {
        let mut rate = Samples::default();
        for turn in 0..session.runs {
            let url = server.url(turn, &format!("/bytes/{size}"));
            rate.push(wrk::load(&url, super::documents::CONNECTIONS, session.seconds)?.per_second);
        }
        (session.report)(&Figure::absolute("native-http", format!("bytes/{size}"), "1/s", &rate)?)?;
    }
    Ok(())
}

/// Native TCP over veth.
///
/// # Errors
/// When the network cannot be made or a transfer fails.
pub fn bulk(session: &mut Session) -> Result<()> {
    let namespace = Namespace::new()?;
    bulk::start_native(&namespace)?;
    let directions =
        [("host_to_namespace", Direction::ToServer), ("namespace_to_host", Direction::FromServer)];
    for (what, direction) in directions {
        let (mut with, mut without) = (Samples::default(), Samples::default());
        for _ in 0..session.runs {
            for (offload, samples) in [(true, &mut with), (false, &mut without)] {
                namespace.set_segmentation_offload(offload)?;
                samples.push(bulk::measure(namespace.address(), direction, None, session.duration())?);
            }
        }
        (session.report)(&Figure::absolute("native-bulk", format!("{what}/gso"), "Gbit/s", &with)?)?;
        (session.report)(&Figure::absolute("native-bulk", format!("{what}/no_gso"), "Gbit/s", &without)?)?;
    }
    Ok(())
}

/// A native UDP echo over veth.
///
/// # Errors
/// When the network cannot be made or a packet is lost.
pub fn path(session: &mut Session) -> Result<()> {
    let namespace = Namespace::new()?;
    echo::start_native(&namespace)?;
    let mut client = echo::Client::connect(namespace.address())?;
    let mut samples = Samples::default();
    for _ in 0..session.runs {
        samples.push(echo::median_round_trip(&mut client)?);
    }
    (session.report)(&Figure::absolute("native-path", "round_trip", "us", &samples)?)
}
