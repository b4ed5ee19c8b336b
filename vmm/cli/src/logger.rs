//! The VMM's own messages, on standard error. A guest can cause none of them repeatedly.

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // It says of every packet what it thinks of it, and a client may send any number of them.
        metadata.level() <= log::max_level() && !metadata.target().starts_with("gdbstub")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("vmm: {}: {}", record.level().as_str().to_ascii_lowercase(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Shows messages up to `level`.
pub(crate) fn start(level: log::LevelFilter) {
    // Fails only when called twice, and then the first one stands.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
