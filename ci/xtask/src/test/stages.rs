//! The stages, in the order in which they run: what fails soonest comes first.

use std::time::Duration;

use anyhow::Result;

use super::{Context, Stage, package, schema, suites, template, totals::Totals};
use crate::{
    deps, doc_check, fuzz, images, packages, process, reproducible, terminal,
    workspace::{self, STATIC, TARGET, TREES},
};

/// The stage that all others need.
pub(super) const PACKAGES: &str = "packages";

pub(super) const ALL: [Stage; 18] = [
    Stage { name: PACKAGES, what: "Debian packages that the stages need", quick: true, run: install },
    Stage { name: "fmt", what: "formatting", quick: true, run: fmt },
    Stage {
        name: "deps",
        what: "licences, sources and banned versions of dependencies",
        quick: true,
        run: dependencies,
    },
    Stage { name: "clippy", what: "lints, warnings denied", quick: true, run: clippy },
    Stage { name: "doc", what: "documentation of the crates, warnings denied", quick: false, run: doc },
    Stage {
        name: "reference",
        what: "the book's reference against the contract",
        quick: true,
        run: reference,
    },
    Stage { name: "unit", what: "unit and property tests", quick: true, run: unit },
    Stage { name: "doctest", what: "examples in documentation", quick: false, run: doctest },
    Stage { name: "loom", what: "shared rings under every interleaving", quick: false, run: loom },
    Stage { name: "images", what: "images of all guests", quick: true, run: build_images },
    Stage {
        name: "reproducible",
        what: "images built in two folders are the same",
        quick: false,
        run: reproduce,
    },
    Stage {
        name: "template",
        what: "the template of a guest, in a folder of its own",
        quick: false,
        run: template::run,
    },
    Stage { name: "host", what: "suites on this machine's /dev/kvm", quick: true, run: suites::host },
    Stage {
        name: "stock",
        what: "suites on a stock kernel with kvm-amd, in QEMU",
        quick: false,
        run: suites::stock,
    },
    Stage {
        name: "schema",
        what: "the API against its description, asked by schemathesis",
        quick: false,
        run: schema::run,
    },
    Stage {
        name: "package",
        what: "the Debian package, installed and used under systemd",
        quick: false,
        run: package::run,
    },
    Stage { name: "fuzz", what: "a short run of each fuzz target", quick: false, run: fuzz_each },
    Stage { name: "bench", what: "benchmarks build and list what there is", quick: false, run: bench },
];

/// How long a build may take on a slow machine.
pub(crate) const BUILD: Duration = Duration::from_secs(15 * 60);

fn install(_: &Context) -> Result<Totals> {
    use packages::{BINUTILS, BUSYBOX, CHROMIUM, CURL, CXX, GDB, IPROUTE, PROMETHEUS, QEMU, WRK};
    let needed = [&BINUTILS, &BUSYBOX, &CHROMIUM, &CURL, &CXX, &GDB, &IPROUTE, &PROMETHEUS, &QEMU, &WRK];
    packages::require(&needed)?;
    Ok(Totals::one(true))
}

fn fmt(context: &Context) -> Result<Totals> {
    let mut totals = Totals::default();
    for tree in TREES {
        let color = terminal::color_choice();
        let arguments = ["fmt", "--all", "--manifest-path", tree, "--check", "--", "--color", color];
        totals += context.check(&mut context.workspace.cargo(&arguments), BUILD)?;
    }
    Ok(totals)
}

fn dependencies(context: &Context) -> Result<Totals> {
    Ok(Totals::one(deps::check(&context.workspace)?))
}

fn clippy(context: &Context) -> Result<Totals> {
    let mut totals = Totals::default();
    for side in SIDES {
        let arguments = [&["clippy"], side, &["--all-targets", "--", "-D", "warnings"]].concat();
        totals += context.check(&mut context.workspace.cargo(&arguments), BUILD)?;
    }
    Ok(totals)
}

fn doc(context: &Context) -> Result<Totals> {
    let mut totals = Totals::default();
    for side in SIDES {
        let mut command = context.workspace.cargo(&[&["doc", "--no-deps"], side].concat());
        totals += context.check(command.env("RUSTDOCFLAGS", "-D warnings"), BUILD)?;
    }
    Ok(totals)
}

fn reference(context: &Context) -> Result<Totals> {
    Ok(Totals::one(doc_check::check(&context.workspace, false)?))
}

/// What runs on the host, and guests with their library OS. Never in one build: there a crate that both use has the features of both, and guests
/// would get a standard library.
const SIDES: [&[&str]; 2] = [&["--workspace", "--exclude", "guest-*"], &["--package", "guest-*"]];
/// The suites of the whole are not among the tests of the crates.
const NOT_SUITES: [&str; 2] = ["--exclude", suites::PACKAGE];

fn unit(context: &Context) -> Result<Totals> {
    let mut totals = Totals::default();
    for (side, rest) in SIDES.into_iter().zip([&NOT_SUITES[..], &[]]) {
        // Documentation's examples have a stage of their own.
        let nextest = ["nextest", "run", "--no-fail-fast", "--no-tests", "fail"];
        let plain = ["test", "--no-fail-fast", "--tests"];
        let verb = if process::find("cargo-nextest").is_some() { &nextest[..] } else { &plain };
        totals += context.tests(&mut context.workspace.cargo(&[verb, side, rest].concat()), BUILD)?;
    }
    Ok(totals)
}

fn doctest(context: &Context) -> Result<Totals> {
    let mut totals = Totals::default();
    for (side, rest) in SIDES.into_iter().zip([&NOT_SUITES[..], &[]]) {
        let arguments = [&["test", "--doc", "--no-fail-fast"], side, rest].concat();
        totals += context.tests(&mut context.workspace.cargo(&arguments), BUILD)?;
    }
    Ok(totals)
}

fn loom(context: &Context) -> Result<Totals> {
    let workspace = &context.workspace;
    let mut command =
        workspace.cargo(&["test", "--release", "--package", "foraker-net", "--test", "loom_ring"]);
    // A folder of its own: the flag would build the rest of the workspace anew each time.
    command.args(["--target", TARGET, "--target-dir"]).arg(workspace.generated("loom"));
    let flags = workspace::encode_flags(&[&STATIC[..], &["--cfg", "loom"]].concat());
    context.tests(command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags), BUILD)
}

fn build_images(context: &Context) -> Result<Totals> {
    let built = images::build(&context.workspace, &context.workspace.generated("images"), None)?;
    process::print_line(&format!("{} images", built.len()));
    Ok(Totals::one(true))
}

fn reproduce(context: &Context) -> Result<Totals> {
    Ok(Totals::one(reproducible::check(&context.workspace)?))
}

/// Seconds of each fuzz target.
const FUZZ_SECONDS: u64 = 8;

fn fuzz_each(context: &Context) -> Result<Totals> {
    fuzz::all(context, None, FUZZ_SECONDS)
}

fn bench(context: &Context) -> Result<Totals> {
    let arguments = ["run", "--release", "--package", "bench", "--", "--list"];
    let mut lines = 0;
    context.stream(&mut context.workspace.cargo(&arguments), BUILD, &mut |_| lines += 1)?;
    Ok(Totals::one(lines > 0))
}
