//! The processes that `vmm serve` has beside itself: the launcher, and the cells that it starts.

use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context;
use foraker_confine::LauncherFiles;
use foraker_supervisor::{cell, launcher};

use crate::args::{CellProcess, LauncherProcess};
use crate::logger;
use crate::signals::Signals;

/// Address space for the guests of a cell: sparse, so that it costs nothing until it is used.
const ARENA: u64 = 256 << 30;

/// Starts cells as the supervisor asks on the standard input.
pub(crate) fn run_launcher(process: LauncherProcess) -> anyhow::Result<u8> {
    logger::start(process.log_level.filter());
    // Ctrl-C in a terminal reaches every process: what ends this one is the supervisor's end.
    let _signals = Signals::take().context("cannot take over signals")?;
    // SAFETY: the standard input is this process' own, and nobody else here uses it.
    let supervisor = unsafe { UnixStream::from_raw_fd(libc::STDIN_FILENO) };
    let LauncherProcess { cells, first_subnet, state, socket, arguments, .. } = process;
    let socket_folder = socket.as_deref().and_then(Path::parent).map(PathBuf::from);
    foraker_confine::confine_launcher(&LauncherFiles { state, socket_folder })?;
    launcher::run(supervisor, launcher::Cells { count: cells.into(), first_subnet, arguments, socket })
        .context("the launcher")?;
    Ok(0)
}

/// Runs a cell on the channel that is its standard input.
pub(crate) fn run_cell(process: &CellProcess) -> anyhow::Result<u8> {
    logger::start(process.log_level.filter());
    // It was started by a name that says nothing.
    // SAFETY: a string that is valid for the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"vmm".as_ptr()) };
    // Ctrl-C in a terminal reaches every process: what ends a cell is the supervisor.
    let _signals = Signals::take().context("cannot take over signals")?;
    raise_descriptor_limit();
    // SAFETY: the standard input is this process' own, and nobody else here uses it.
    let channel = unsafe { UnixStream::from_raw_fd(libc::STDIN_FILENO) };
    // From here on the process opens what a cell needs, and of other files images only.
    foraker_confine::begin(foraker_confine::Files {
        images: vec![process.images.clone()],
        written: Vec::new(),
    })?;
    let (subnet, others) = (process.subnet, process.subnets);
    let options =
        cell::Options { workers: process.workers, subnet, others, arena: ARENA, machines: process.machines };
    cell::run(channel, &options).with_context(|| format!("cell {}", process.number))?;
    Ok(0)
}

/// A machine needs two descriptors: all that the host allows.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above. If it is refused, the cell holds fewer guests, and says so when they are too many.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
