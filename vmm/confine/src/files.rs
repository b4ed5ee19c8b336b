//! Which files a process may open (Landlock, `man 7 landlock`). Two layers: what set-up needs, for all threads; and, for the main thread when set-up is over,
//! what guests' starts need. Other threads open nothing by then: their filters have no call for it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

/// Newest rights that are named here; older kernels know fewer.
const NEWEST: ABI = ABI::V6;

/// Devices that set-up opens.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", "/dev/userfaultfd"];
/// What the kernel and the host say of themselves: its version, a thread's delays, limits of the processors.
const READ_IN_SET_UP: [&str; 2] = ["/proc", "/sys/fs/cgroup"];
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

/// Restricts the calling thread, and those that it starts, to what set-up needs.
pub(crate) fn restrict_to_set_up(files: &Files) -> Result<Enforced, RulesetError> {
    let mut rules = ruleset(true)?;
    for device in DEVICES {
        rules = allow(rules, Path::new(device), rights(true))?;
    }
    for path in READ_IN_SET_UP.iter().chain(&READ_ALWAYS) {
        rules = allow(rules, Path::new(path), rights(false))?;
    }
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
