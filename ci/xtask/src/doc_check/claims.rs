//! The threat model names the test behind each claim: they exist.
//!
//! A row of a table whose head ends with "backed by" is a claim. In its last column, between backticks:
//!
//! - `path/file.rs` or `path/file.rs::name`: a file from the workspace's root, and a test in it; once named, `file.rs` will do;
//! - `name`: another test of the file that was named last in this cell, or a case of the guest `hostile`;
//! - `some-case` or `some-*`: cases of the guest `hostile`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The chapter.
pub(super) const CHAPTER: &str = "docs/src/security.md";
/// Sources that name the cases of the guest `hostile`.
const CASES: &str = "guest/hostile/src";

/// What the chapter names and is not there, one line for each, and how many references it has.
pub(super) fn missing(root: &Path) -> Result<(Vec<String>, usize)> {
    let chapter = fs::read_to_string(root.join(CHAPTER)).with_context(|| format!("cannot read {CHAPTER}"))?;
    let mut cases = String::new();
    for entry in fs::read_dir(root.join(CASES)).with_context(|| format!("cannot read {CASES}"))? {
        cases.push_str(&fs::read_to_string(entry?.path())?);
    }
    Ok(check(&chapter, &cases, &|path| fs::read_to_string(root.join(path)).ok()))
}

fn check(chapter: &str, cases: &str, read: &dyn Fn(&str) -> Option<String>) -> (Vec<String>, usize) {
    let (mut problems, mut count) = (Vec::new(), 0);
    // Whole paths by the names of their files, and the contents of those.
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut is_claims = false;
    for (number, line) in (1..).zip(chapter.lines()) {
        let Some(cells) = cells(line) else {
            is_claims = false;
            continue;
        };
        let Some(backed) = cells.last() else { continue };
        if *backed == "backed by" {
            is_claims = true;
            continue;
        }
        if !is_claims || backed.chars().all(|c| c == '-') {
            continue;
        }
        let mut last: Option<&str> = None;
        let mut of_claim = 0;
        for token in backed.split('`').skip(1).step_by(2) {
            let (file, name) = match token.split_once("::") {
                Some((file, name)) => (Some(file), Some(name)),
                None if Path::new(token).extension().is_some_and(|e| e == "rs") => (Some(token), None),
                None => (None, Some(token)),
            };
            if let Some(file) = file {
                last = Some(file.rsplit('/').next().unwrap_or(file));
                if let (true, Some(text)) = (file.contains('/'), read(file)) {
                    files.insert(file.rsplit('/').next().unwrap_or(file).to_owned(), text);
                } else if file.contains('/') || !files.contains_key(file) {
                    problems.push(format!("{CHAPTER}, line {number}: there is no {file}"));
                    continue;
                }
            }
            let text = last.and_then(|file| files.get(file)).map_or("", String::as_str);
            if let Some(name) = name
                && !has_test(text, name)
                && (file.is_some() || !has_case(cases, name))
            {
                let of = last.unwrap_or("the guest `hostile`");
                problems.push(format!("{CHAPTER}, line {number}: {of} has no {name}"));
                continue;
            }
            of_claim += 1;
        }
        if of_claim == 0 {
            problems.push(format!("{CHAPTER}, line {number}: nothing that is there backs this claim"));
        }
        count += of_claim;
    }
    (problems, count)
}

/// The cells of a table's row.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// Whether a source has a test of this name.
fn has_test(source: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.iter().enumerate().filter(|(_, line)| line.starts_with(&head)).any(|(at, _)| {
        let above = lines.iter().take(at).rev();
        let mut attributes = above.take_while(|line| line.starts_with('#') || line.starts_with("//"));
        attributes.any(|line| *line == "#[test]")
    })
}

/// Whether the guest has a case of this name; `*` stands for anything.
fn has_case(sources: &str, name: &str) -> bool {
    match name.find('*') {
        // Strings are every second part, as none of them has quotation marks in it.
        Some(_) => {
            let parts: Vec<&str> = name.split('*').filter(|part| !part.is_empty()).collect();
            let fits = |case: &str| {
                let anchored =
                    name.starts_with('*') || parts.first().is_some_and(|part| case.starts_with(part));
                anchored && parts.iter().all(|part| case.contains(part))
            };
            sources.split('"').skip(1).step_by(2).any(fits)
        }
        None => sources.contains(&format!("\"{name}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: &str = r#"case("forged-mac", ..) case("hlt", ..) case("ring-address-wild", ..)"#;
    const SOURCE: &str = "#[test]\n/// Of this.\nfn one() {}\n#[test]\nfn two() {}\n\nfn helper() {}\n";

    fn problems(backed: &str) -> Vec<String> {
        let chapter = format!(
            "| claim | backed by |\n|---|---|\n| that | {backed} |\n\n| other | table |\n| `x` | `y` |\n"
        );
        check(&chapter, CASES, &|path| (path == "tests/a.rs").then(|| SOURCE.to_owned())).0
    }

    #[test]
    fn what_is_there_is_found() {
        for backed in [
            "`tests/a.rs`",
            "`tests/a.rs::one` and `a.rs::two`",
            "`tests/a.rs`: `one`, `two`",
            "`forged-*`, `hlt`",
            "`*-address-*`",
        ] {
            assert_eq!(problems(backed), Vec::<String>::new(), "{backed}");
        }
    }

    #[test]
    fn what_is_not_there_is_named_with_its_line() {
        for (backed, missing) in [
            ("`tests/b.rs`", "no tests/b.rs"),
            ("`a.rs::one`", "no a.rs"),
            ("`tests/a.rs::three`", "no three"),
            ("`tests/a.rs::helper`", "no helper"),
            ("`tests/a.rs::hlt`", "no hlt"),
            ("`tests/a.rs`: `three`", "no three"),
            ("`forged-gateway`", "no forged-gateway"),
            ("`lost-*`", "no lost-*"),
            ("our good will", "nothing that is there"),
        ] {
            let found = problems(backed);
            assert!(
                found.iter().any(|line| line.contains("line 3") && line.contains(missing)),
                "{backed}: {found:?}"
            );
        }
    }
}
