//! `cargo xtask images`: guests are built and become images: one ELF file each, with its manifest inside.
//!
//! The same sources give the same bytes, wherever the tree and Cargo's folders are: paths are replaced in debug
//! information and panic messages, nothing holds a time or a build id, and one code generation unit is linked with
//! fat LTO. `cargo xtask reproducible` checks it.

mod manifest;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    packages, process,
    terminal::{self, Style},
    workspace::{self, STATIC, TARGET, Workspace},
};
pub(crate) use manifest::Manifest;

/// The ELF section in which the VMM looks for the manifest.
const MANIFEST_SECTION: &str = ".foraker.manifest";

#[derive(Args)]
pub(crate) struct Options {
    /// Where to write the images [default: target/images]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Build this image only
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    let out = match &options.out {
        Some(out) => env::current_dir().context("the current folder is gone")?.join(out),
        None => workspace.generated("images"),
    };
    let images = build(workspace, &out, options.only.as_deref())?;
    for image in &images {
        let size = fs::metadata(image)?.len();
        let shown = image.strip_prefix(&workspace.root).unwrap_or(image);
        println!("  {:<32} {:>10}", shown.display(), terminal::bytes(size));
    }
    let count = format!("{} images in {}", images.len(), terminal::time(started.elapsed()));
    println!("{}", terminal::paint(Style::Dim, &count));
    Ok(ExitCode::SUCCESS)
}

/// Builds the images of a tree into `out` and returns their paths, by name.
///
/// # Errors
/// When a manifest is malformed or names a program that no guest has, or when a guest does not build.
pub(crate) fn build(workspace: &Workspace, out: &Path, only: Option<&str>) -> Result<Vec<PathBuf>> {
    packages::require(&[&packages::BINUTILS])?;
    let mut manifests = manifest::read_all(&workspace.root.join("images"))?;
    if let Some(only) = only {
        let names: Vec<String> = manifests.iter().map(|m| m.name.clone()).collect();
        manifests.retain(|m| m.name == only);
        if manifests.is_empty() {
            bail!("there is no image `{only}`; there are: {}", names.join(", "));
        }
    }
    for manifest in &manifests {
        if !workspace.root.join("guest").join(&manifest.program).join("Cargo.toml").is_file() {
            let (name, program) = (&manifest.name, &manifest.program);
            bail!(
                "images/{name}.toml names the program `{program}`, but there is no guest/{program}/Cargo.toml"
            );
        }
    }
    let binaries = build_guests(workspace, &manifests)?;
    let mut images = Vec::new();
    for manifest in &manifests {
        let image = out.join(&manifest.name);
        embed(&binaries.join(&manifest.program), manifest, &image)?;
        images.push(image);
    }
    Ok(images)
}

/// Builds all programs in one call, so that Cargo builds them side by side, and returns the folder they are in.
fn build_guests(workspace: &Workspace, manifests: &[Manifest]) -> Result<PathBuf> {
    let mut programs: Vec<&str> = manifests.iter().map(|m| m.program.as_str()).collect();
    programs.sort_unstable();
    programs.dedup();
    // A folder of their own: other flags than the rest of the workspace would build everything again each time.
    let target = workspace.generated("guest");
    let mut command = workspace.cargo(&["build", "--profile", "guest", "--target", TARGET, "--target-dir"]);
    command.arg(&target).env("CARGO_INCREMENTAL", "0").env("SOURCE_DATE_EPOCH", "0").env_remove("RUSTFLAGS");
    for program in &programs {
        command.arg("--package").arg(format!("guest-{program}")).arg("--bin").arg(program);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", workspace::encode_flags(&flags(workspace)?));
    process::run(&mut command).context("the guests do not build")?;
    Ok(target.join(TARGET).join("guest"))
}

/// Flags of a guest. They replace those of `.cargo/config.toml`, and repeat them.
fn flags(workspace: &Workspace) -> Result<Vec<String>> {
    let rustc = rustc_facts(workspace)?;
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo")
        }
    };
    let mut flags: Vec<String> = STATIC.iter().map(ToString::to_string).collect();
    flags.extend(["-C", "link-arg=-Wl,--build-id=none"].map(String::from));
    // The last prefix that matches is used, so the longer ones stand behind the shorter ones.
    let library = rustc.sysroot.join("lib/rustlib/src/rust");
    let mut prefixes = [
        (workspace.root.clone(), "/foraker".to_owned()),
        (cargo_home, "/cargo".to_owned()),
        (rustc.sysroot, "/rust".to_owned()),
        (library, format!("/rustc/{}", rustc.commit)),
    ];
    prefixes.sort_by_key(|(from, _)| from.as_os_str().len());
    for (from, to) in prefixes {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    Ok(flags)
}

struct RustcFacts {
    sysroot: PathBuf,
    /// Under which the precompiled standard library names its sources.
    commit: String,
}

fn rustc_facts(workspace: &Workspace) -> Result<RustcFacts> {
    let rustc = || {
        let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        command.current_dir(&workspace.root);
        command
    };
    let sysroot = process::quiet(rustc().args(["--print", "sysroot"]))?;
    let version = process::quiet(rustc().arg("-vV"))?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")).unwrap_or("unknown");
    Ok(RustcFacts { sysroot: PathBuf::from(sysroot.trim()), commit: commit.to_owned() })
}

/// Copies a program with the manifest as a section that is not loaded.
fn embed(program: &Path, manifest: &Manifest, image: &Path) -> Result<()> {
    let folder = image.parent().context("an image needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let temporary = folder.join(format!(".{}.{}", manifest.name, std::process::id()));
    let section = format!("{MANIFEST_SECTION}={}", manifest.path.display());
    let mut objcopy = Command::new("objcopy");
    objcopy.args(["--add-section", &section]);
    objcopy.args(["--set-section-flags", &format!("{MANIFEST_SECTION}=readonly")]);
    objcopy.arg(program).arg(&temporary);
    let result = process::quiet(&mut objcopy).and_then(|_| {
        fs::rename(&temporary, image).with_context(|| format!("cannot write {}", image.display()))
    });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_repeat_the_configuration_and_hide_every_path() {
        let workspace = Workspace::find().unwrap();
        let flags = flags(&workspace).unwrap();
        assert_eq!(flags[..4], STATIC);
        let root = format!("--remap-path-prefix={}=/foraker", workspace.root.display());
        assert!(flags.contains(&root), "{flags:?}");
        assert_eq!(flags.iter().filter(|f| f.starts_with("--remap-path-prefix=")).count(), 4);
    }

    #[test]
    fn the_section_is_the_one_of_the_architecture() {
        let workspace = Workspace::find().unwrap();
        let note = fs::read_to_string(workspace.root.join("abi/src/note.rs")).unwrap();
        assert!(note.contains(&format!("MANIFEST_SECTION: &str = \"{MANIFEST_SECTION}\"")));
    }
}
