//! `cargo xtask doc-check`: the reference chapter of the book is generated from the contract's crate, and the tests that the threat model names are there.

mod claims;

use std::{fs, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    process, terminal,
    workspace::{self, Workspace},
};

/// The chapter, and the example that prints it.
const CHAPTER: &str = "docs/src/reference/abi.md";
const GENERATOR: &str = "reference";

#[derive(Args)]
pub(crate) struct Options {
    /// Write the chapter instead of comparing it
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    Ok(if check(workspace, options.write)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks at both chapters, and writes the reference first if that is wanted; false when one is not true.
pub(crate) fn check(workspace: &Workspace, write: bool) -> Result<bool> {
    let reference = reference(workspace, write)?;
    let (missing, count) = claims::missing(&workspace.root)?;
    for line in &missing {
        terminal::error(line);
    }
    if missing.is_empty() {
        println!("{}: all {count} tests and cases that it names are there", claims::CHAPTER);
    }
    Ok(reference && missing.is_empty())
}

/// Compares the chapter with what the contract says, or writes it; false when they differ.
fn reference(workspace: &Workspace, write: bool) -> Result<bool> {
    let arguments = ["run", "--quiet", "--package", "foraker-abi", "--example", GENERATOR];
    let generated = process::output(&mut workspace.cargo(&arguments))?;
    let path = workspace.root.join(CHAPTER);
    if write {
        workspace::write_atomically(&path, generated.as_bytes())?;
        println!("{CHAPTER} written");
        return Ok(true);
    }
    let chapter = fs::read_to_string(&path).with_context(|| format!("cannot read {CHAPTER}"))?;
    match difference(&chapter, &generated) {
        None => {
            println!("{CHAPTER} says what the contract says");
            Ok(true)
        }
        Some((line, book, contract)) => {
            terminal::error(&format!(
                "{CHAPTER}, line {line} is out of date: run `cargo xtask doc-check --write`\n  book:     {book}\n  contract: {contract}"
            ));
            Ok(false)
        }
    }
}

/// The first line (from 1) in which two texts differ, with both of its forms.
fn difference<'a>(one: &'a str, two: &'a str) -> Option<(usize, &'a str, &'a str)> {
    if one == two {
        return None;
    }
    let (mut ones, mut twos) = (one.lines(), two.lines());
    let mut number = 0;
    loop {
        number += 1;
        match (ones.next(), twos.next()) {
            (Some(a), Some(b)) if a == b => {}
            // Only the line ends differ.
            (None, None) => return Some((number, "(end of file)", "(end of file)")),
            (a, b) => return Some((number, a.unwrap_or("(end of file)"), b.unwrap_or("(end of file)"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n"), Some((2, "b", "c")));
        assert_eq!(difference("a\n", "a\nc\n"), Some((2, "(end of file)", "c")));
        assert_eq!(difference("a", "a\n"), Some((2, "(end of file)", "(end of file)")));
    }
}
