//! `cargo xtask reproducible`: the same sources give the same images, whatever folder they are in.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    images, process, sources,
    terminal::{self, Style},
    workspace::Workspace,
};

#[derive(Args)]
pub(crate) struct Options {}

pub(crate) fn run(workspace: &Workspace, _: &Options) -> Result<ExitCode> {
    Ok(if check(workspace)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds twice, compares, prints the sums; false when an image differs.
pub(crate) fn check(workspace: &Workspace) -> Result<bool> {
    let started = Instant::now();
    let scratch = Scratch::new()?;
    // Folders of different depth and length, so that a path that leaks changes sizes too.
    let first = build(workspace, &scratch.0.join("one"))?;
    let second = build(workspace, &scratch.0.join("another/folder/with a longer name"))?;
    let mut same = true;
    for name in first.keys().chain(second.keys()).collect::<std::collections::BTreeSet<_>>() {
        match (first.get(name), second.get(name)) {
            (Some(one), Some(two)) if one == two => println!("{one}  {name}"),
            (one, two) => {
                same = false;
                let shown = |sum: Option<&String>| sum.map_or("missing", String::as_str).to_owned();
                terminal::error(&format!("{name} differs: {} and {}", shown(one), shown(two)));
            }
        }
    }
    if same {
        let text = format!(
            "{} images, the same in both folders ({})",
            first.len(),
            terminal::time(started.elapsed())
        );
        println!("{}", terminal::paint(Style::Good, &text));
    }
    Ok(same)
}

/// Copies the tree to `folder`, builds its images there, and returns their sums by name.
fn build(workspace: &Workspace, folder: &Path) -> Result<BTreeMap<String, String>> {
    let copy = sources::copy(workspace, folder)?;
    println!("{}", terminal::paint(Style::Dim, &format!("building in {}", folder.display())));
    let images = images::build(&copy, &copy.generated("images"), None)?;
    images.iter().map(|image| Ok((name(image)?, sum(image)?))).collect()
}

fn name(image: &Path) -> Result<String> {
    Ok(image.file_name().context("an image has a name")?.to_string_lossy().into_owned())
}

/// SHA-256, by coreutils.
fn sum(file: &Path) -> Result<String> {
    let output = process::quiet(Command::new("sha256sum").arg("--binary").arg(file))?;
    let sum =
        output.trim_start_matches('\\').split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(sum.to_owned())
}

/// A folder that is gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = env::temp_dir().join(format!("foraker-reproducible-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_sha_256() {
        let folder = env::temp_dir().join(format!("foraker-sum-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("abc");
        fs::write(&file, "abc").unwrap();
        let found = sum(&file).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
