//! How lists are printed: a table for people, JSON for programs, a template for scripts.

use std::io::{self, IsTerminal, Write};
use std::str::FromStr;

use anyhow::Context;
use serde::Serialize;

use crate::args::clients::Printed;

/// A form of lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Columns.
    Table,
    /// An object on each line.
    Json,
    /// A line of each, in the language of Jinja.
    Template(String),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "table" => Ok(Format::Table),
            "json" => Ok(Format::Json),
            template if template.contains("{{") || template.contains("{%") => {
                // What is wrong with it is said now, not at the first item.
                minijinja::Environment::new()
                    .template_from_str(template)
                    .map_err(|e| format!("'{template}' is no template: {e}"))?;
                Ok(Format::Template(template.to_owned()))
            }
            _ => Err(format!("no format {text}: choose table, json, or a template such as '{{{{ id }}}}'")),
        }
    }
}

/// A column of a table: its head, whether it is aligned to the right, and what stands in it.
pub(crate) struct Column<T> {
    pub(crate) head: &'static str,
    pub(crate) right: bool,
    pub(crate) text: fn(&T) -> String,
}

/// A column of texts.
pub(crate) fn left<T>(head: &'static str, text: fn(&T) -> String) -> Column<T> {
    Column { head, right: false, text }
}

/// A column of numbers.
pub(crate) fn right<T>(head: &'static str, text: fn(&T) -> String) -> Column<T> {
    Column { head, right: true, text }
}

/// Prints items as was asked for.
pub(crate) fn print<T: Serialize>(
    printed: &Printed,
    items: &[T],
    key: impl Fn(&T) -> String,
    columns: &[Column<T>],
) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    if printed.quiet {
        for item in items {
            writeln!(output, "{}", key(item))?;
        }
        return Ok(());
    }
    match &printed.format {
        Format::Table => table(&mut output, items, columns)?,
        Format::Json => {
            for item in items {
                serde_json::to_writer(&mut output, item)?;
                writeln!(output)?;
            }
        }
        Format::Template(text) => {
            let environment = minijinja::Environment::new();
            let template = environment.template_from_str(text)?;
            for item in items {
                writeln!(
                    output,
                    "{}",
                    template.render(minijinja::value::Serde(item)).context("the template does not suit")?
                )?;
            }
        }
    }
    Ok(())
}

fn table<T>(output: &mut impl Write, items: &[T], columns: &[Column<T>]) -> io::Result<()> {
    let cells: Vec<Vec<String>> =
        items.iter().map(|item| columns.iter().map(|c| inert(&(c.text)(item))).collect()).collect();
    let width = |n: usize| {
        let of_row = |row: &Vec<String>| row.get(n).map_or(0, |text| text.chars().count());
        cells.iter().map(of_row).chain(columns.get(n).map(|c| c.head.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut line = |texts: &mut dyn Iterator<Item = &str>, style: anstyle::Style| {
        let mut line = String::new();
        for ((text, width), column) in texts.zip(&widths).zip(columns) {
            let gap = " ".repeat(width - text.chars().count());
            line += &if column.right { format!("{gap}{text}  ") } else { format!("{text}{gap}  ") };
        }
        writeln!(output, "{style}{}{style:#}", line.trim_end())
    };
    let head = if colours(&io::stdout()) { anstyle::Style::new().bold() } else { anstyle::Style::new() };
    line(&mut columns.iter().map(|c| c.head), head)?;
    for row in &cells {
        line(&mut row.iter().map(String::as_str), anstyle::Style::new())?;
    }
    Ok(())
}

/// Whether colours are wanted on an output: a terminal, and nobody has said otherwise (<https://no-color.org>).
pub(crate) fn colours(output: &impl IsTerminal) -> bool {
    output.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A text without anything that a terminal would act on, or that nobody would see: what guests are called and say is not ours.
pub(crate) fn inert(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || foraker_ui::is_invisible(c) { '\u{fffd}' } else { c }).collect()
}

/// The same of a text that has lines.
pub(crate) fn inert_lines(text: &str) -> String {
    text.lines().map(inert).collect::<Vec<_>>().join("\n")
}

/// Bytes as people read them, such as `16.0M`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{bytes}{name}") } else { format!("{value:.1}{name}") }
}

/// A time that has passed, such as `3 minutes`.
pub(crate) fn age(since_ms: u64) -> String {
    let seconds = foraker_api::units::now_ms().saturating_sub(since_ms) / 1000;
    let text = |count: u64, unit: &str| format!("{count} {unit}{}", if count == 1 { "" } else { "s" });
    match seconds {
        0..60 => text(seconds, "second"),
        60..3600 => text(seconds / 60, "minute"),
        3600..86_400 => text(seconds / 3600, "hour"),
        _ => text(seconds / 86_400, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!(matches!("{{ id }}".parse(), Ok(Format::Template(_))));
        assert!("{{ id ".parse::<Format>().unwrap_err().contains("no template"));
        assert!("yaml".parse::<Format>().unwrap_err().contains("choose table, json"));
    }

    #[test]
    fn tables_are_aligned_and_inert() {
        let mut text = Vec::new();
        let items = [("a\x1b[31\u{202e}", 7), ("longer", 1234)];
        let columns = [left("NAME", |i: &(&str, u32)| i.0.to_owned()), right("N", |i| i.1.to_string())];
        table(&mut text, &items, &columns).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "NAME       N\na\u{fffd}[31\u{fffd}     7\nlonger  1234\n");
    }

    #[test]
    fn amounts() {
        assert_eq!(
            (bytes(1023), bytes(16 << 20), bytes(3 << 29)),
            ("1023B".into(), "16.0M".into(), "1.5G".into())
        );
    }
}
