//! Which files a process may open (Landlock, `man 7 landlock`). For a process that runs guests, two layers: what set-up needs, for all threads; and, for the main
//! thread when set-up is over, what guests' starts need. Other threads open nothing by then: their filters have no call for it. The supervisor has one layer, its
//! state directory. The launcher's is above those of the cells that it starts.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

/// Newest rights that are named here; older kernels know fewer.
const NEWEST: ABI = ABI::V6;

/// The program of this process, which is the one that the launcher runs.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Where whoever may open it has page faults told to it.
pub(crate) const USERFAULTFD: &str = "/dev/userfaultfd";
/// Devices that set-up opens.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", USERFAULTFD];
/// What the kernel and the host say of themselves: its version, a thread's delays, limits of the processors.
const READ_IN_SET_UP: [&str; 2] = ["/proc", "/sys/fs/cgroup"];
/// Where the groups of cells are made.
const GROUPS: &str = "/sys/fs/cgroup";
/// Where the supervisor's database gets its first random number from.
const RANDOM: &str = "/dev/urandom";
/// The host's name servers.
const READ_ALWAYS: [&str; 1] = ["/etc/resolv.conf"];

/// Files of a process.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Images, or folders of them, which are read.
    pub images: Vec<PathBuf>,
    /// Files that are written in set-up: traces, captures. Where one is not there yet, set-up may make files in its folder.
    pub written: Vec<PathBuf>,
}

/// Files of the process that starts cells.
#[derive(Clone, Debug, Default)]
pub struct LauncherFiles {
    /// Where images are, which cells read.
    pub state: PathBuf,
    /// The folder of the socket that it removes at the end.
    pub socket_folder: Option<PathBuf>,
}

/// What the kernel does about the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// Everything that was asked.
    Fully,
    /// What it knows.
    Partly,
    /// Nothing: it has no Landlock.
    Not,
}

fn rights(device: bool) -> BitFlags<AccessFs> {
    if device {
        make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev})
    } else {
        AccessFs::ReadFile.into()
    }
}

fn ruleset(scopes: bool) -> Result<RulesetCreated, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?;
    // Not for the second layer: threads with the first alone would be strangers to the main thread then, which calls them.
    let ruleset = if scopes { ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal)? } else { ruleset };
    ruleset.create()
}

/// Allows something of a file, or of all beneath a folder. What is not there needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd.as_fd(), rights)),
        Err(e) => {
            log::debug!("no rule for {}: {e}", path.display());
            Ok(rules)
        }
    }
}

/// Enforces the rules, and says so where the kernel cannot, or not all of them.
fn enforce(rules: RulesetCreated) -> Result<Enforced, RulesetError> {
    let status = rules.restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => {
            log::info!("this kernel's Landlock knows a part of what is asked of it: {:?}", status.landlock);
            Enforced::Partly
        }
        RulesetStatus::NotEnforced => {
            log::warn!(
                "this kernel has no Landlock: files are kept from the VMM by their permissions and its filters alone"
            );
            Enforced::Not
        }
    })
}

/// What the set-up of every process that runs guests needs.
fn set_up() -> Result<RulesetCreated, RulesetError> {
    let mut rules = ruleset(true)?;
    for device in DEVICES {
        rules = allow(rules, Path::new(device), rights(true))?;
    }
    for path in READ_IN_SET_UP.iter().chain(&READ_ALWAYS) {
        rules = allow(rules, Path::new(path), rights(false))?;
    }
    Ok(rules)
}

/// Restricts the calling thread, and those that it starts, to what set-up needs.
pub(crate) fn restrict_to_set_up(files: &Files) -> Result<Enforced, RulesetError> {
    let mut rules = set_up()?;
    for image in &files.images {
        rules = allow(rules, image, rights(false))?;
    }
    for written in &files.written {
        if written.exists() {
            rules = allow(rules, written, make_bitflags!(AccessFs::{WriteFile | Truncate}))?;
        } else {
            let folder = written.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
            rules = allow(rules, folder, make_bitflags!(AccessFs::{MakeReg | WriteFile | Truncate}))?;
        }
    }
    enforce(rules)
}

/// Restricts the calling thread, and those that it starts, to what guests' starts need.
pub(crate) fn restrict_to_images(files: &Files) -> Result<(), RulesetError> {
    let mut rules = ruleset(false)?;
    for path in READ_ALWAYS.iter().map(Path::new).chain(files.images.iter().map(PathBuf::as_path)) {
        rules = allow(rules, path, rights(false))?;
    }
    // What the kernel lacks was said when set-up began.
    rules.restrict_self().map(drop)
}

/// Restricts the supervisor to its state directory.
pub(crate) fn restrict_to_state(state: &Path) -> Result<Enforced, RulesetError> {
    let own = make_bitflags!(AccessFs::{
        ReadFile | WriteFile | Truncate | ReadDir | MakeReg | MakeDir | RemoveFile
    });
    let rules = allow(ruleset(true)?, state, own)?;
    enforce(allow(rules, Path::new(RANDOM), rights(false))?)
}

/// Restricts the launcher, and cells with it, to what cells need, and to the one program that it runs.
pub(crate) fn restrict_to_launching(files: &LauncherFiles) -> Result<Enforced, RulesetError> {
    let mut rules = allow(set_up()?, Path::new(OWN_PROGRAM), make_bitflags!(AccessFs::{Execute | ReadFile}))?;
    rules = allow(rules, &files.state, rights(false))?;
    let groups = make_bitflags!(AccessFs::{
        ReadFile | WriteFile | Truncate | ReadDir | MakeDir | RemoveDir
    });
    rules = allow(rules, Path::new(GROUPS), groups)?;
    if let Some(folder) = &files.socket_folder {
        rules = allow(rules, folder, AccessFs::RemoveFile.into())?;
    }
    enforce(rules)
}
