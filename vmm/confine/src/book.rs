//! The tables as the book prints them.

use std::fmt::Write;

use crate::kind::Kind;

/// One chapter section for each kind of thread: what it may ask of the kernel, with the arguments that matter.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for kind in Kind::ALL {
        // Writing to a string does not fail.
        let _ = writeln!(text, "### `{}`\n\n{}.", kind.name(), capitalised(kind.purpose()));
        let kept: Vec<_> = kind.capabilities().iter().map(|c| format!("`{c}`")).collect();
        if !kept.is_empty() {
            let otherwise = if kind == Kind::Uplink { ", where `RLIMIT_NICE` cannot be raised" } else { "" };
            let _ = writeln!(text, "\nCapabilities: {}{otherwise}.", kept.join(", "));
        }
        let _ = writeln!(text, "\n| call | allowed |\n|---|---|");
        let names: std::collections::BTreeMap<_, _> = kind.calls().map(|c| (c.number, c.name())).collect();
        let (mut always, mut some) = (Vec::new(), Vec::new());
        for (number, rules) in crate::filter::merged(kind) {
            let name = names.get(&number).copied().unwrap_or("?");
            if number == libc::SYS_clone3 && kind.starts_threads() {
                some.push((name, "answered with `ENOSYS`".to_owned()));
            } else if rules.is_empty() {
                always.push(format!("`{name}`"));
            } else {
                let rules: Vec<_> = rules.iter().map(|rule| rule.text).collect();
                some.push((name, rules.join("; ")));
            }
        }
        always.sort();
        some.sort();
        let _ = writeln!(text, "| {} | always |", always.join(" "));
        for (name, rules) in some {
            let _ = writeln!(text, "| `{name}` | {rules} |");
        }
        text.push('\n');
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
