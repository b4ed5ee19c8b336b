//! `cargo xtask deps`: the policy of `deny.toml` for all dependencies, without the network.
//!
//! `cargo deny` checks more (it reads licence texts, and fetches the RustSec database) and is run as well where it is
//! installed. Here the licences that crates declare, their sources and the list of banned versions are held against the same file.

mod licence;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use semver::{Version, VersionReq};
use serde::Deserialize;

use crate::{
    process, terminal,
    workspace::{TARGET, TREES, Workspace},
};

/// The part of `deny.toml` that is checked here.
#[derive(Deserialize)]
struct Policy {
    licenses: Licences,
    sources: Sources,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licences {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    spec: String,
    reason: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Clone, Deserialize)]
struct Package {
    name: String,
    version: Version,
    /// `None` for crates of this tree.
    source: Option<String>,
    license: Option<String>,
}

pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    Ok(if check(workspace)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks all trees of dependencies, prints what is wrong; false when something is.
pub(crate) fn check(workspace: &Workspace) -> Result<bool> {
    let text = fs::read_to_string(workspace.root.join("deny.toml")).context("cannot read deny.toml")?;
    let policy: Policy = toml::from_str(&text).context("deny.toml is malformed")?;
    let packages = packages(workspace)?;
    for (name, versions) in duplicates(&packages) {
        terminal::note(&format!("{name} is there in several versions: {}", versions.join(", ")));
    }
    let complaints = policy.complaints(&packages)?;
    for complaint in &complaints {
        terminal::error(complaint);
    }
    let foreign = packages.iter().filter(|p| p.source.is_some()).count();
    println!("{foreign} dependencies, {} complaints", complaints.len());
    let mut good = complaints.is_empty();
    if process::find("cargo-deny").is_some() {
        good &= process::run(&mut workspace.cargo(&["deny", "check", "licenses", "bans", "sources"])).is_ok();
        if process::run(&mut workspace.cargo(&["deny", "check", "advisories"])).is_err() {
            terminal::note(
                "cargo deny check advisories did not pass: see above whether it is more than the network",
            );
        }
    }
    Ok(good)
}

/// Packages of the workspace and of the trees beside it, each version once.
fn packages(workspace: &Workspace) -> Result<Vec<Package>> {
    let mut all = BTreeMap::new();
    for manifest in TREES {
        let path: PathBuf = workspace.root.join(manifest);
        if !path.is_file() {
            continue;
        }
        let mut command =
            workspace.cargo(&["metadata", "--format-version", "1", "--filter-platform", TARGET]);
        command.arg("--manifest-path").arg(&path);
        let metadata: Metadata = serde_json::from_str(&process::output(&mut command)?)?;
        for package in metadata.packages {
            all.insert((package.name.clone(), package.version.clone()), package);
        }
    }
    Ok(all.into_values().collect())
}

/// Crates that are there in several versions that are not compatible.
fn duplicates(packages: &[Package]) -> BTreeMap<&str, Vec<String>> {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().push(package.version.to_string());
    }
    versions.retain(|_, versions| versions.len() > 1);
    versions
}

impl Policy {
    /// What is wrong with these packages.
    ///
    /// # Errors
    /// When `deny.toml` names a crate in a way that is not understood.
    fn complaints(&self, packages: &[Package]) -> Result<Vec<String>> {
        let bans: Vec<(&str, VersionReq, &str)> = self
            .bans
            .deny
            .iter()
            .map(|ban| ban.parse().with_context(|| format!("deny.toml: `{}` names no crate", ban.spec)))
            .collect::<Result<_>>()?;
        let mut complaints = Vec::new();
        for package in packages {
            let Package { name, version, .. } = package;
            let Some(source) = &package.source else { continue };
            if !self.source_allowed(source) {
                complaints.push(format!("{name} {version} comes from {source}, which is not allowed"));
            }
            match &package.license {
                None => complaints.push(format!("{name} {version} declares no licence")),
                Some(expression) => {
                    match licence::allowed(expression, &self.licenses.allow) {
                        Some(true) => {}
                        Some(false) => complaints
                            .push(format!("{name} {version}: licence `{expression}` is not allowed")),
                        None => complaints
                            .push(format!("{name} {version}: licence `{expression}` is not understood")),
                    }
                }
            }
            for (banned, versions, reason) in &bans {
                if banned == name && versions.matches(version) {
                    complaints.push(format!("{name} {version} is banned: {reason}"));
                }
            }
        }
        Ok(complaints)
    }

    fn source_allowed(&self, source: &str) -> bool {
        let Some(index) = source.strip_prefix("registry+").or_else(|| source.strip_prefix("sparse+")) else {
            return false;
        };
        // The sparse index of crates.io is the same registry.
        let index = if index == "https://index.crates.io/" {
            "https://github.com/rust-lang/crates.io-index"
        } else {
            index
        };
        self.sources.allow_registry.iter().any(|allowed| allowed == index)
    }
}

impl Ban {
    /// `name`, `name@exact-version` or `name:requirement`.
    fn parse(&self) -> Result<(&str, VersionReq, &str)> {
        let (name, versions) = if let Some((name, version)) = self.spec.split_once('@') {
            (name, VersionReq::parse(&format!("={version}"))?)
        } else if let Some((name, requirement)) = self.spec.split_once(':') {
            (name, VersionReq::parse(requirement)?)
        } else {
            (self.spec.as_str(), VersionReq::STAR)
        };
        Ok((name, versions, &self.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

    fn package(name: &str, version: &str, source: Option<&str>, license: Option<&str>) -> Package {
        let version = Version::parse(version).unwrap();
        Package {
            name: name.into(),
            version,
            source: source.map(Into::into),
            license: license.map(Into::into),
        }
    }

    fn policy() -> Policy {
        let root = Workspace::find().unwrap().root;
        toml::from_str(&fs::read_to_string(root.join("deny.toml")).unwrap()).unwrap()
    }

    #[test]
    fn what_the_policy_allows_passes() {
        let packages = [
            package("foraker-abi", "0.1.0", None, Some("Apache-2.0 OR MIT")),
            package("libc", "0.2.170", Some(CRATES_IO), Some("MIT OR Apache-2.0")),
            package("crossbeam-channel", "0.5.15", Some(CRATES_IO), Some("MIT")),
            package("hashbrown", "0.15.1", Some(CRATES_IO), Some("MIT")),
        ];
        assert_eq!(policy().complaints(&packages).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_it_forbids_is_named() {
        for (package, part) in [
            (package("openssl", "0.10.1", Some(CRATES_IO), Some("MIT")), "banned"),
            (package("crossbeam-channel", "0.5.12", Some(CRATES_IO), Some("MIT")), "RUSTSEC-2025-0024"),
            (package("hashbrown", "0.15.0", Some(CRATES_IO), Some("MIT")), "RUSTSEC-2024-0402"),
            (package("x", "1.0.0", Some(CRATES_IO), Some("GPL-3.0-only")), "GPL-3.0-only"),
            (package("x", "1.0.0", Some(CRATES_IO), Some("MIT AND")), "not understood"),
            (package("x", "1.0.0", Some(CRATES_IO), None), "no licence"),
            (package("x", "1.0.0", Some("git+https://example.org/x"), Some("MIT")), "example.org"),
            (package("x", "1.0.0", Some("registry+https://example.org/index"), Some("MIT")), "example.org"),
        ] {
            let complaints = policy().complaints(&[package]).unwrap();
            assert!(complaints.len() == 1 && complaints[0].contains(part), "{complaints:?}");
        }
    }

    #[test]
    fn several_versions_of_a_crate_are_noticed() {
        let packages = [
            package("a", "1.0.0", Some(CRATES_IO), None),
            package("a", "2.0.0", Some(CRATES_IO), None),
            package("b", "1.0.0", Some(CRATES_IO), None),
        ];
        let found = duplicates(&packages);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("a", vec!["1.0.0".to_owned(), "2.0.0".to_owned()])]
        );
    }
}
