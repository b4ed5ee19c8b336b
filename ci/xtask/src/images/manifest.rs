//! Manifests of images: `images/NAME.toml`.
//!
//! They are checked here, when an image is built, so that a mistake is not found when it is launched. The VMM reads
//! them from the image with rules of its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A manifest that was found to be well formed.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// Name of the image: that of the file without `.toml`.
    pub(crate) name: String,
    /// Name of the guest's binary; its package is `guest-<program>`.
    pub(crate) program: String,
    /// The file.
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    program: String,
    memory: Option<String>,
    #[serde(rename = "large_pages")]
    _large_pages: Option<bool>,
    cores: Option<u32>,
    #[serde(rename = "network")]
    _network: Option<bool>,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    rx_bandwidth: Option<Amount>,
    tx_bandwidth: Option<Amount>,
    tx_packets: Option<Amount>,
    console: Option<Amount>,
}

/// A number, or a text such as `"100M"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

/// Reads all manifests of a folder, by name.
pub(crate) fn read_all(folder: &Path) -> Result<Vec<Manifest>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut manifests = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            manifests.push(read(&path)?);
        }
    }
    if manifests.is_empty() {
        bail!("{} holds no manifest (NAME.toml)", folder.display());
    }
    manifests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(manifests)
}

fn read(path: &Path) -> Result<Manifest> {
    let name = path.file_stem().context("a manifest needs a name")?.to_string_lossy().into_owned();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let program = check(&text).with_context(|| format!("{} is no manifest", path.display()))?;
    Ok(Manifest { name, program, path: path.to_path_buf() })
}

/// Checks a manifest's text and returns its program.
fn check(text: &str) -> Result<String> {
    let file: File = toml::from_str(text)?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if file.program.is_empty() || !file.program.chars().all(plain) {
        bail!("`program` must be the name of a guest's binary, not `{}`", file.program);
    }
    if let Some(memory) = &file.memory {
        amount(memory).with_context(|| format!("`memory = \"{memory}\"`"))?;
    }
    if file.cores.is_some_and(|cores| !(1..=64).contains(&cores)) {
        bail!("`cores` must be 1 to 64");
    }
    let Limits { rx_bandwidth, tx_bandwidth, tx_packets, console } = &file.limits;
    for limit in [rx_bandwidth, tx_bandwidth, tx_packets, console].into_iter().flatten() {
        match limit {
            Amount::Number(0) => bail!("a limit must not be 0"),
            Amount::Number(_) => {}
            Amount::Text(text) => drop(amount(text).with_context(|| format!("limit \"{text}\""))?),
        }
    }
    if file.environment.keys().any(|k| k.is_empty() || k.contains('=')) {
        bail!("names in `environment` must not be empty or contain `=`");
    }
    if file.arguments.iter().chain(file.environment.values()).any(|text| text.contains('\0')) {
        bail!("`arguments` and `environment` must not contain NUL");
    }
    Ok(file.program)
}

/// A number with `K`, `M`, `G` (binary) or nothing behind it, above 0.
fn amount(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().context("expected a number, and K, M or G behind it if you like")?;
    match number.checked_mul(1 << shift) {
        None | Some(0) => bail!("out of range"),
        Some(value) => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_form_is_accepted() {
        let text = r#"
            program = "httpd"
            memory = "16M"
            cores = 2
            network = true
            arguments = ["--greeting", "hello"]
            [environment]
            LOG = "info"
            [limits]
            rx_bandwidth = "100M"
            tx_bandwidth = 1000000
            tx_packets = "50K"
            console = "64K"
        "#;
        assert_eq!(check(text).unwrap(), "httpd");
        assert_eq!(check("program = \"hello\"").unwrap(), "hello");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "missing field `program`"),
            ("program = \"a/b\"", "a/b"),
            ("program = \"a\"\nmemroy = \"1M\"", "memroy"),
            ("program = \"a\"\nmemory = \"16 apples\"", "16 apples"),
            ("program = \"a\"\nmemory = \"99999999999G\"", "out of range"),
            ("program = \"a\"\ncores = 65", "1 to 64"),
            ("program = \"a\"\n[limits]\nconsole = 0", "must not be 0"),
            ("program = \"a\"\n[environment]\n\"A=B\" = \"c\"", "environment"),
        ] {
            let error = format!("{:#}", check(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_manifests_of_this_tree_are_well_formed() {
        let root = crate::workspace::Workspace::find().unwrap().root;
        let manifests = read_all(&root.join("images")).unwrap();
        let names: Vec<_> = manifests.iter().map(|m| m.name.as_str()).collect();
        for name in ["conformance", "echo", "hello", "hostile", "httpd"] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
    }
}
