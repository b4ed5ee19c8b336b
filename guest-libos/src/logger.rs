//! Back end of the `log` crate: lines with guest time and level on the console.

use log::{LevelFilter, Metadata, Record};

struct ConsoleLogger;

static LOGGER: ConsoleLogger = ConsoleLogger;

impl log::Log for ConsoleLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let us = crate::now() / 1000;
            let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
            crate::println!(
                "[{seconds:5}.{fraction:06}] {:5} {}: {}",
                record.level(),
                record.target(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

/// Sends the `log` macros to the console, at the level that the environment's `LOG` names (`off`, `error`, `warn`,
/// `info`, `debug`, `trace`), else at `default`. [`task::run`](crate::task::run) does this with `Info`.
pub fn init(default: LevelFilter) {
    let level = crate::env("LOG").and_then(|text| text.parse().ok()).unwrap_or(default);
    // A second call changes the level alone.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}
