//! `cargo xtask soak`: guests of all kinds come and go by chance, for as long as one likes (`tests/tests/soak`).

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    images,
    test::{Context, usable_kvm},
    workspace::Workspace,
};

/// What warming up and winding down may take on top.
const BESIDES: Duration = Duration::from_secs(5 * 60);

#[derive(Args)]
pub(crate) struct Options {
    /// How long guests come and go
    #[arg(long, value_name = "N", default_value_t = 30)]
    minutes: u64,
    /// Most guests at a time
    #[arg(long, value_name = "N", default_value_t = 2000)]
    guests: usize,
    /// What chance begins with: that of an earlier run makes the same choices, as far as they do not depend on time [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if let Err(reason) = usable_kvm() {
        bail!("{reason}");
    }
    let vmm = workspace.build_vmm()?;
    let folder = workspace.generated("images");
    images::build(workspace, &folder, None)?;
    let build = workspace.cargo(&["test", "--no-run", "--package", "foraker-tests", "--test", "soak"]);
    let program = workspace.build(build)?.pop().context("cargo built no test program named `soak`")?;
    let mut command = Command::new(&program.path);
    command.arg("--nocapture").current_dir(workspace.root.join("tests"));
    command.env("VMM", &vmm).env("IMAGES", &folder).env("BACK_END", "host");
    command.env("SOAK_MINUTES", options.minutes.to_string()).env("SOAK_GUESTS", options.guests.to_string());
    if let Some(seed) = options.seed {
        command.env("SOAK_SEED", seed.to_string());
    }
    let limit = Duration::from_secs(options.minutes * 60) + BESIDES;
    let context = Context { workspace: workspace.clone() };
    context.stream(&mut command, limit, &mut |_| {})?;
    Ok(ExitCode::SUCCESS)
}
