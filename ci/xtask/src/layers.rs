//! Layers are crates, and arrows run one way: a test holds what crates depend on against the table of the design.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{process, workspace::Workspace};

/// What each crate of the workspace may use of it, from the bottom to the top. A crate's tests may use whatever
/// stands above its own line.
const LAYERS: [(&str, &[&str]); 19] = [
    // The contract, and decisions that need neither a clock nor input and output.
    ("foraker-abi", &[]),
    ("foraker-policy", &["foraker-abi"]),
    // Mechanism.
    ("foraker-confine", &[]),
    ("foraker-publish", &["foraker-confine"]),
    ("foraker-image", &["foraker-abi"]),
    ("foraker-memory", &["foraker-abi", "foraker-confine", "foraker-image"]),
    ("foraker-machine", &["foraker-abi", "foraker-memory"]),
    ("foraker-net", &["foraker-abi", "foraker-policy"]),
    (
        "foraker-cell",
        &[
            "foraker-abi",
            "foraker-policy",
            "foraker-confine",
            "foraker-image",
            "foraker-memory",
            "foraker-machine",
            "foraker-net",
        ],
    ),
    // What goes over the control API.
    ("foraker-api", &[]),
    ("foraker-debug", &["foraker-cell"]),
    (
        "foraker-supervisor",
        &[
            "foraker-abi",
            "foraker-api",
            "foraker-policy",
            "foraker-confine",
            "foraker-publish",
            "foraker-cell",
            "foraker-debug",
        ],
    ),
    // A browser to look at the page with: for tests and benchmarks.
    ("foraker-browser", &[]),
    // What a browser shows of it: it knows nobody, and is told through a trait.
    ("foraker-ui", &[]),
    // The command.
    (
        "foraker-vmm",
        &[
            "foraker-abi",
            "foraker-api",
            "foraker-confine",
            "foraker-cell",
            "foraker-debug",
            "foraker-publish",
            "foraker-supervisor",
            "foraker-ui",
        ],
    ),
    // The other side of the contract: guests share nothing else with the VMM.
    ("guest-libos", &["foraker-abi"]),
    // Tests of the whole see what a user sees.
    ("foraker-tests", &["foraker-abi"]),
    (
        "bench",
        &[
            "foraker-abi",
            "foraker-policy",
            "foraker-image",
            "foraker-memory",
            "foraker-machine",
            "foraker-net",
            "foraker-cell",
            "foraker-api",
            "foraker-browser",
        ],
    ),
    ("xtask", &[]),
];

/// What a guest may use.
const GUEST: &[&str] = &["foraker-abi", "guest-libos"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing for an ordinary one.
    kind: Option<String>,
    /// Present for crates of this tree.
    path: Option<String>,
}

/// What is wrong with an arrow between two crates, if anything.
fn complaint(from: &str, to: &str, kind: Option<&str>) -> Option<String> {
    let allowed = if from.starts_with("guest-") && from != "guest-libos" {
        GUEST
    } else {
        match LAYERS.iter().find(|(name, _)| *name == from) {
            Some((_, allowed)) => allowed,
            None => return Some(format!("{from} stands in no layer: give it one")),
        }
    };
    let rank = |name: &str| LAYERS.iter().position(|(n, _)| *n == name);
    let tests_only = kind == Some("dev") && matches!((rank(to), rank(from)), (Some(t), Some(f)) if t < f);
    let good = allowed.contains(&to) || tests_only;
    (!good).then(|| format!("{from} must not depend on {to}"))
}

#[test]
fn arrows_run_one_way() {
    let workspace = Workspace::find().unwrap();
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let metadata = process::quiet(&mut workspace.cargo(&arguments)).unwrap();
    let metadata: Metadata = serde_json::from_str(&metadata).unwrap();
    let mut complaints = Vec::new();
    for package in &metadata.packages {
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()) {
            complaints.extend(complaint(&package.name, &dependency.name, dependency.kind.as_deref()));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let known: BTreeMap<_, _> = metadata.packages.iter().map(|p| (p.name.as_str(), ())).collect();
    for (name, _) in LAYERS {
        assert!(known.contains_key(name), "{name} has a layer, but there is no such crate");
    }
}

#[test]
fn the_table_itself_has_no_arrow_upwards() {
    for (at, (name, allowed)) in LAYERS.iter().enumerate() {
        for to in *allowed {
            let target = LAYERS.iter().position(|(n, _)| n == to);
            assert!(target.is_some_and(|t| t < at), "{name} -> {to}");
        }
    }
}

#[test]
fn wrong_arrows_are_found() {
    assert_eq!(complaint("foraker-cell", "foraker-net", None), None);
    assert_eq!(complaint("guest-httpd", "guest-libos", None), None);
    assert_eq!(complaint("foraker-net", "foraker-memory", Some("dev")), None);
    for (from, to, kind) in [
        ("foraker-policy", "foraker-net", None),
        ("foraker-machine", "foraker-net", None),
        ("foraker-net", "foraker-cell", Some("dev")),
        ("foraker-abi", "foraker-policy", Some("build")),
        ("guest-httpd", "foraker-cell", None),
        ("guest-libos", "foraker-net", None),
        ("foraker-vmm", "foraker-machine", None),
        ("something-new", "foraker-abi", None),
    ] {
        assert!(complaint(from, to, kind).is_some(), "{from} -> {to}");
    }
}
