//! Tasks of the repository: `cargo xtask demo`, `test`, `images`, `reproducible`, `qemu`, `fuzz`, `deb`, `soak`,
//! `deps`, `doc-check`.
//!
//! Nothing but the stock Rust toolchain is taken for granted. Debian packages that a task needs are installed when
//! root runs it, and named exactly when not ([`packages`]).

mod deb;
mod demo;
mod deps;
mod doc_check;
mod fuzz;
mod http;
mod images;
mod interrupt;
#[cfg(test)]
mod layers;
mod packages;
mod process;
mod qemu;
mod reproducible;
mod soak;
mod sources;
mod terminal;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Tasks of the repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show it working: build, launch the web-server guest, fetch a page through a published port
    Demo(demo::Options),
    /// Run everything that CI runs
    Test(test::Options),
    /// Build the images of images/*.toml into target/images
    Images(images::Options),
    /// Build all images in two different folders and compare them byte by byte
    Reproducible(reproducible::Options),
    /// Build the Debian package target/foraker_VERSION_amd64.deb
    Deb(deb::Options),
    /// Run a command on a stock Debian kernel with kvm-amd, in QEMU's software emulation
    Qemu(qemu::Options),
    /// Run fuzz targets
    Fuzz(fuzz::Options),
    /// Have guests of all kinds come and go by chance, and see that nothing is lost, stuck or left behind
    Soak(soak::Options),
    /// Check licences, sources and banned versions of all dependencies against deny.toml
    Deps,
    /// Compare the generated reference chapter with the one in the book
    DocCheck(doc_check::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::find().and_then(|workspace| match arguments.task {
        Task::Demo(options) => demo::run(&workspace, &options),
        Task::Test(options) => test::run(&workspace, &options),
        Task::Images(options) => images::run(&workspace, &options),
        Task::Reproducible(options) => reproducible::run(&workspace, &options),
        Task::Deb(options) => deb::run(&workspace, &options),
        Task::Qemu(options) => qemu::run(&workspace, options),
        Task::Fuzz(options) => fuzz::run(&workspace, &options),
        Task::Soak(options) => soak::run(&workspace, &options),
        Task::Deps => deps::run(&workspace),
        Task::DocCheck(options) => doc_check::run(&workspace, &options),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            terminal::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
