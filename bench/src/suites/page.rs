//! The live page of a supervisor that holds ten thousand guests, in a browser.
//!
//! - `first_paint`: from the address to the first content that is drawn; and `all_guests`, until every guest has its square. Each run opens it anew.
//! - `updates`: how often in a second the page is drawn anew.
//! - `core`: processor time of the supervisor and its cells while somebody looks, beyond what they use while nobody does, percent of a core. Windows with and
//!   without alternate. In both, guests are asked 200 times a second and ten a second of those that are not asked are killed and started again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use foraker_browser::Chromium;
use serde_json::Value;

use super::Session;
use super::http::PORT;
use crate::crowd::{Crowd, Pace, Target};
use crate::figure::Figure;
use crate::netns;
use crate::processor;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

const GUESTS: u64 = 10_000;
const CELLS: usize = 10;
/// Requests per second to guests.
const RATE: u32 = 200;
const CONNECTIONS: usize = 16_000;
const VISITORS: usize = 16;
const DOCUMENT: &str = "/bytes/100";
/// Between two guests that are killed.
const LIFE: Duration = Duration::from_millis(100);
/// A page that was opened a moment ago is still busy with that.
const SETTLE: Duration = Duration::from_secs(3);
/// Windows of each kind in each run.
const WINDOWS: usize = 2;
const GUEST: [&str; 7] =
    ["--small-pages", "--memory", "16M", "--env", "IDLE_SECONDS=3600", "--name", "httpd"];
/// The first of them are asked, the others are killed in turn.
const ASKED: usize = 9_000;
const EVERYBODY: &str = "globalThis.foraker?.drawn > 2 && foraker.model.slots.size === 10000";

/// Measures everything of this ID.
///
/// # Errors
/// When a guest or a request fails, or there is no browser.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let program = foraker_browser::find()
        .context("there is no chromium to look at the page with: install Debian's package `chromium`")?;
    let image = artifacts.image("httpd")?.to_string_lossy().into_owned();
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let options = ["--memory", "200G", "--ui", &address.to_string()];
    let supervisor = Supervisor::start_with(&artifacts.vmm, CELLS, &options)?;
    supervisor.ask(&[&["run", "-d", "--count", &GUESTS.to_string()], &GUEST[..], &[&image]].concat())?;
    let mut control = supervisor.control()?;
    let mut servers = control.addresses()?;
    servers.truncate(ASKED);
    netns::know_neighbours(&servers)?;
    let target = Target { servers: &servers, port: PORT, path: DOCUMENT, connections: CONNECTIONS };
    let mut crowd = Crowd::gather(target)?;
    crowd.visit_all(VISITORS)?;
    let url = format!("http://{address}/");

    let (mut paint, mut everybody) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        let mut browser = Chromium::start(&program, &[]);
        browser.open(&url);
        browser.until(EVERYBODY);
        let mut mark = |name: &str| {
            let expression = format!("performance.getEntriesByName('{name}')[0].startTime");
            number(&browser.value(&expression))
        };
        paint.push(mark("first-contentful-paint")?);
        everybody.push(mark("foraker-guests")?);
    }
    (session.report)(&Figure::absolute("page", "first_paint", "ms", &paint)?)?;
    (session.report)(&Figure::absolute("page", "all_guests", "ms", &everybody)?)?;

    let mut processes = control.cells()?;
    processes.push(supervisor.process());
    let (mut updates, mut core) = (Samples::default(), Samples::default());
    for _ in 0..WINDOWS * session.runs {
        let mut used = [0.0; 2];
        for (seen, used) in [false, true].into_iter().zip(&mut used) {
            let mut browser = seen.then(|| Chromium::start(&program, &[]));
            if let Some(browser) = &mut browser {
                browser.open(&url);
                browser.until(EVERYBODY);
            }
            std::thread::sleep(SETTLE);
            let drawn = |browser: &mut Option<Chromium>| {
                browser.as_mut().map(|b| number(&b.value("foraker.drawn"))).transpose()
            };
            let over = AtomicBool::new(false);
            let (begun, before, drawn_before) =
                (Instant::now(), processor::seconds_of_all(&processes)?, drawn(&mut browser)?);
            std::thread::scope(|scope| {
                let killer = scope.spawn(|| kill_one_after_another(&supervisor, &over));
                let outcome = crowd.run(Pace::Open(RATE), session.duration());
                over.store(true, Ordering::Relaxed);
                killer.join().map_err(|_| anyhow::anyhow!("the killer failed"))??;
                outcome
            })?;
            let took = begun.elapsed().as_secs_f64();
            *used = (processor::seconds_of_all(&processes)? - before) / took * 100.0;
            if let (Some(before), Some(after)) = (drawn_before, drawn(&mut browser)?) {
                updates.push((after - before) / took);
            }
        }
        core.push(used[1] - used[0]);
    }
    (session.report)(&Figure::absolute("page", "updates", "1/s", &updates)?)?;
    (session.report)(&Figure::absolute("page", "core", "%", &core)?)
}

/// Kills guests and starts them again, until it is over.
fn kill_one_after_another(supervisor: &Supervisor, over: &AtomicBool) -> Result<()> {
    let mut control = supervisor.control()?;
    for id in (ASKED as u64 + 1..=GUESTS).cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        control.kill(id)?;
        control.start(id)?;
        std::thread::sleep(LIFE);
    }
    Ok(())
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("the page says {value}"))
}
