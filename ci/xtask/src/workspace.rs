//! Where things are, and how Cargo is called.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process;

/// The only target: of the VMM, of the tests and of the guests. It comes with the stock toolchain.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What `.cargo/config.toml` asks for. `RUSTFLAGS` replaces those flags instead of adding to them, so whoever sets
/// it repeats these.
pub(crate) const STATIC: [&str; 4] = ["-C", "target-feature=+crt-static", "-C", "relocation-model=static"];

/// The manifests of all workspaces of the tree.
pub(crate) const TREES: [&str; 4] =
    ["Cargo.toml", "tests/fuzz/Cargo.toml", "guest/httpd-picoserve/Cargo.toml", "guest/template/Cargo.toml"];

/// The source tree.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// Its folder.
    pub(crate) root: PathBuf,
}

impl Workspace {
    /// The tree that this program was built from.
    pub(crate) fn find() -> Result<Self> {
        let here = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root =
            here.ancestors().nth(2).context("ci/xtask is not two folders below the workspace's root")?;
        if !root.join("images").is_dir() {
            bail!("{} is not the workspace's root: it has no folder `images`", root.display());
        }
        Ok(Workspace { root: root.to_path_buf() })
    }

    /// A folder of generated files, which Cargo's own settings do not move.
    pub(crate) fn generated(&self, name: &str) -> PathBuf {
        self.root.join("target").join(name)
    }

    /// `cargo ...` in the tree, with the toolchain that runs this program.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(&self.root);
        // Cargo sets these for the package it runs; they would leak into build scripts of what is built below.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Builds binaries or tests, and returns the paths of the executables in Cargo's order.
    ///
    /// # Errors
    /// When Cargo fails; the compiler's messages have gone to standard error.
    pub(crate) fn build(&self, mut command: Command) -> Result<Vec<Executable>> {
        command.arg("--message-format=json-render-diagnostics");
        let output = process::output(&mut command)?;
        let mut found = Vec::new();
        for line in output.lines() {
            let Ok(message) = serde_json::from_str::<Message>(line) else { continue };
            if let (Some(target), Some(path)) = (message.target, message.executable) {
                found.push(Executable { name: target.name, kind: target.kind, path });
            }
        }
        Ok(found)
    }

    /// Builds `vmm` (release) and returns its path.
    pub(crate) fn build_vmm(&self) -> Result<PathBuf> {
        let built =
            self.build(self.cargo(&["build", "--release", "--package", "foraker-vmm", "--bin", "vmm"]))?;
        let vmm = built.into_iter().find(|e| e.name == "vmm");
        Ok(vmm.context("cargo built no executable named `vmm`")?.path)
    }
}

/// An executable that Cargo has built.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    /// Name of the target.
    pub(crate) name: String,
    /// `bin`, `test`, ...
    pub(crate) kind: Vec<String>,
    /// Where it is.
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Flags for `CARGO_ENCODED_RUSTFLAGS`, whose separator allows spaces in paths.
pub(crate) fn encode_flags<S: AsRef<str>>(flags: &[S]) -> String {
    flags.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\u{1f}")
}

/// Writes a file so that nobody ever sees half of it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = path.file_name().context("a file needs a name")?.to_string_lossy().into_owned();
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_own_tree() {
        let workspace = Workspace::find().unwrap();
        assert!(workspace.root.join("ci/xtask/src/workspace.rs").is_file());
    }

    #[test]
    fn static_flags_are_those_of_the_configuration() {
        let workspace = Workspace::find().unwrap();
        let text = fs::read_to_string(workspace.root.join(".cargo/config.toml")).unwrap();
        let config: toml::Table = text.parse().unwrap();
        let flags: Vec<&str> = config["target"][TARGET]["rustflags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f.as_str().unwrap())
            .collect();
        assert_eq!(flags, STATIC);
        assert_eq!(config["build"]["target"].as_str(), Some(TARGET));
    }
}
