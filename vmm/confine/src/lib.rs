//! Confinement: what threads of the VMM may ask of the kernel, and what they cannot get back.
//!
//! A guest that breaks out of its machine finds itself in a thread that can do what that thread is for, and next to nothing else. Each *kind* of thread
//! ([`Kind`]) has a table of system calls with the arguments that matter; whatever is not in it ends the process (`SECCOMP_RET_KILL_PROCESS`), visibly. A thread
//! keeps those capabilities alone that its kind needs, most kinds none. Files are kept from the process by Landlock.
//!
//! ```text
//! begin(files)             the main thread, before it starts others: no new privileges, files of set-up only
//!   enter(kind)            each thread, first thing: its capabilities, its filter
//! finish(kind)             the main thread, when set-up is over: images only, its capabilities, its filter
//! ```
//!
//! The supervisor begins with [`begin_supervisor`]. The process that starts cells has no filter, as they would inherit it: [`confine_launcher`].
//!
//! - [`call`]: the words of a table; `table`: the tables, made of groups; `request`: numbers of `ioctl`.
//! - `program`: tables as programs for the kernel; `filter`: those of each kind. [`files`]: Landlock. `privileges`: capabilities and the like.
//! - [`book`]: the tables as the book prints them.
//!
//! In a process that has not begun, [`enter`] does nothing: tests and measurements use the crates of the VMM without confinement. In one that has, a thread that
//! cannot be confined ends the process.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

pub mod book;
pub mod call;
pub mod files;
mod filter;
mod kind;
mod privileges;
mod program;
mod request;
mod table;

use std::path::Path;
use std::sync::OnceLock;

use caps::Capability;

pub use files::{Enforced, Files, LauncherFiles};
use filter::Filter;
pub use kind::Kind;

/// Confinement is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Privileges.
    #[error("cannot give up privileges: {0}")]
    Privileges(std::io::Error),
    /// Files.
    #[error("cannot restrict which files are opened: {0}")]
    Files(#[from] landlock::RulesetError),
    /// The kernel.
    #[error("this kernel takes no filter of system calls (CONFIG_SECCOMP_FILTER): {0}")]
    Install(#[from] seccompiler::Error),
    /// [`begin`] was called before.
    #[error("confinement has begun already")]
    Twice,
}

/// What a process that is confined knows.
#[derive(Debug)]
struct Confinement {
    /// Filters of the kinds of threads that it has, made when the first one of each is confined.
    filters: [OnceLock<Filter>; Kind::ALL.len()],
    /// What the main thread may open when set-up is over; none if that changes nothing.
    files: Option<Files>,
    /// Whether threads may go before others without a capability for it.
    precedence: bool,
}

static CONFINEMENT: OnceLock<Confinement> = OnceLock::new();

/// Begins to confine the calling thread and all that it starts from now on. Call it before threads are started, and before anything untrusted is read; afterwards
/// each thread calls [`enter`], and the calling one [`finish`].
///
/// # Errors
/// The kernel refuses. A kernel without Landlock is no error: it is logged.
pub fn begin(files: Files) -> Result<Enforced, Error> {
    let precedence = privileges::allow_precedence();
    privileges::give_up().map_err(Error::Privileges)?;
    let enforced = files::restrict_to_set_up(&files)?;
    remember(Some(files), precedence)?;
    Ok(enforced)
}

/// The same for the supervisor: from now on it opens nothing but what is in its state directory, which is there already, and has no capability.
///
/// # Errors
/// The kernel refuses. A kernel without Landlock is no error: it is logged.
pub fn begin_supervisor(state: &Path) -> Result<Enforced, Error> {
    privileges::give_up().map_err(Error::Privileges)?;
    privileges::keep(std::iter::empty()).map_err(Error::Privileges)?;
    let enforced = files::restrict_to_state(state)?;
    remember(None, false)?;
    Ok(enforced)
}

/// What cells need in their set-up: a TAP device, ports below 1024, precedence for a thread, limits, and to give the rest up. And what the launcher needs to make
/// their control groups: the root of those is a folder that nobody may write to.
const LAUNCHERS: [Capability; 6] = [
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_NICE,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_SETPCAP,
];

/// Confines the process that starts cells, and the cells with it, to what cells need before they confine themselves further: capabilities, files, and one program.
/// It has no filter, which cells would inherit.
///
/// # Errors
/// The kernel refuses. A kernel without Landlock is no error: it is logged.
pub fn confine_launcher(files: &LauncherFiles) -> Result<Enforced, Error> {
    let mut kept = LAUNCHERS.to_vec();
    if !Path::new(files::USERFAULTFD).exists() {
        // Kernels before 6.1 ask for it instead.
        kept.push(Capability::CAP_SYS_PTRACE);
    }
    privileges::give_up_but(&kept).map_err(Error::Privileges)?;
    Ok(files::restrict_to_launching(files)?)
}

fn remember(files: Option<Files>, precedence: bool) -> Result<(), Error> {
    let filters = [const { OnceLock::new() }; Kind::ALL.len()];
    CONFINEMENT.set(Confinement { filters, files, precedence }).map_err(|_| Error::Twice)
}

/// Set-up is over: confines the main thread as well. Threads that it starts from now on inherit what it may do, and restrict it further by [`enter`]. Does
/// nothing in a process that is not confined.
///
/// # Errors
/// The kernel refuses.
pub fn finish(kind: Kind) -> Result<(), Error> {
    match CONFINEMENT.get() {
        Some(confinement) => {
            if let Some(files) = &confinement.files {
                files::restrict_to_images(files)?;
            }
            confinement.confine(kind)
        }
        None => Ok(()),
    }
}

/// Confines the calling thread to what its kind may do: call it first, or right after what only a thread's start needs. Does nothing in a process that is not
/// confined. Where the kernel refuses, the process ends.
pub fn enter(kind: Kind) {
    if let Some(confinement) = CONFINEMENT.get()
        && let Err(e) = confinement.confine(kind)
    {
        log::error!("a thread cannot be confined ({}): {e}", kind.name());
        std::process::abort();
    }
}

impl Confinement {
    fn confine(&self, kind: Kind) -> Result<(), Error> {
        let needed = |c: &&Capability| !self.precedence || **c != Capability::CAP_SYS_NICE;
        privileges::keep(kind.capabilities().iter().filter(needed)).map_err(Error::Privileges)?;
        let filter = self.filters.get(kind.index()).map(|place| place.get_or_init(|| Filter::new(kind)));
        Ok(filter.map_or_else(|| Filter::new(kind).install(), Filter::install)?)
    }
}
