//! What a person sees: colours when they are wanted, times that are easy to read.

use std::{env, io::IsTerminal, sync::OnceLock, time::Duration};

/// A way to draw text.
#[derive(Clone, Copy)]
pub(crate) enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Warn,
    Accent,
}

/// Colours are drawn on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
fn colours() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| {
        let refused = env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        !refused && std::io::stdout().is_terminal() && env::var_os("TERM").is_none_or(|t| t != "dumb")
    })
}

/// Draws text.
pub(crate) fn paint(style: Style, text: &str) -> String {
    if !colours() {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Good => "32",
        Style::Bad => "1;31",
        Style::Warn => "33",
        Style::Accent => "36",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// What to tell programs whose output is shown.
pub(crate) fn color_choice() -> &'static str {
    if colours() { "always" } else { "never" }
}

/// Whether a person sees the output.
pub(crate) fn interactive() -> bool {
    std::io::stdout().is_terminal()
}

/// Says what went wrong.
pub(crate) fn error(text: &str) {
    eprintln!("{} {text}", paint(Style::Bad, "error:"));
}

/// Says something that should not go unseen.
pub(crate) fn note(text: &str) {
    crate::process::print_line(&format!("{} {text}", paint(Style::Warn, "note:")));
}

/// A time of three digits or so.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 60.0 {
        let whole = duration.as_secs();
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if seconds >= 1.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.1} ms", seconds * 1e3)
    }
}

/// Bytes, in binary units.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..0x10_0000 => format!("{} KiB", count.div_ceil(1024)),
        _ => format!("{:.1} MiB", count as f64 / f64::from(1 << 20)),
    }
}

/// Text without terminal control sequences, for reading numbers out of coloured output.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            out.push(c);
        } else if chars.next() == Some('[') {
            for c in chars.by_ref() {
                if ('@'..='~').contains(&c) {
                    break;
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(time(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(time(Duration::from_millis(2340)), "2.3 s");
        assert_eq!(time(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(600 << 10), "600 KiB");
        assert_eq!(bytes(3 << 19), "1.5 MiB");
    }

    #[test]
    fn control_sequences_are_removed() {
        assert_eq!(plain("\x1b[1;32mok\x1b[0m 3 \x1b[Kpassed"), "ok 3 passed");
        assert_eq!(plain("cut \x1b["), "cut ");
    }
}
