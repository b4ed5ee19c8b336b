//! Hands the linker's arguments to the build scripts of guests, as a response file.
//!
//! A guest's build script passes them on with one line:
//! `println!("cargo::rustc-link-arg-bins=@{}", std::env::var("DEP_FORAKER_GUEST_LINK").unwrap());`

use std::{env, fs, path::PathBuf};

/// No start files, no C library, nothing dynamic, nothing executable but text; layout by `guest.ld`.
const ARGUMENTS: [&str; 11] = [
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
    "-Wl,--no-eh-frame-hdr",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
    "-Wl,-z,norelro",
    "-Wl,-z,noseparate-code",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=guest.ld");
    let script = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("guest.ld");
    let response = PathBuf::from(env::var("OUT_DIR")?).join("link-arguments");
    fs::write(&response, format!("{}\n\"-Wl,-T,{}\"\n", ARGUMENTS.join("\n"), script.display()))?;
    println!("cargo::metadata=link={}", response.display());
    Ok(())
}
