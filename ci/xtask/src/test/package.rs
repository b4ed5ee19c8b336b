//! The Debian package: built twice to the same bytes, found good by lintian, installed under a systemd, used, and removed (`tests/package`).

use std::{env, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{Context, totals::Totals, usable_kvm};
use crate::{deb, packages, process, terminal};

/// How long lintian, and the use of the package, may take.
const LIMIT: Duration = Duration::from_secs(4 * 60);

pub(super) fn run(context: &Context) -> Result<Totals> {
    use packages::{CURL, IPROUTE, LINTIAN, SYSTEMD};
    packages::require(&[&CURL, &IPROUTE, &LINTIAN, &SYSTEMD])?;
    let workspace = &context.workspace;
    let parts = deb::Parts::build(workspace)?;
    let package = parts.pack(&workspace.generated("deb"), &workspace.generated(""))?;
    let mut totals = Totals::one(same_again(&parts, &package)?);
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]).arg(&package);
    totals += context.check(&mut lintian, LIMIT)?;
    if let Err(reason) = can_install() {
        terminal::note(&format!("{reason}: the package was built and looked at, not installed"));
        totals += Totals::skipped();
        return Ok(totals);
    }
    let mut enter = Command::new("sh");
    enter.arg(workspace.root.join("tests/package/enter.sh")).arg(&package);
    let mut used = Totals::default();
    context.stream(&mut enter, LIMIT, &mut |line| used.take(line))?;
    if used.is_empty() {
        bail!(
            "the checks inside did not come to their end: the kernel may lack name spaces, or systemd did not start"
        );
    }
    totals += used;
    Ok(totals)
}

/// Packs once more, elsewhere, and compares.
fn same_again(parts: &deb::Parts, package: &Path) -> Result<bool> {
    let folder = env::temp_dir().join(format!("foraker-package-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let again = parts.pack(&folder.join("tree"), &folder).and_then(|second| Ok(fs::read(second)?));
    let _ = fs::remove_dir_all(&folder);
    let same = again? == fs::read(package)?;
    if same {
        process::print_line("packed twice to the same bytes");
    } else {
        terminal::error("the same parts gave two packages that differ");
    }
    Ok(same)
}

/// Whether it can be installed where it leaves nothing behind, and guests can run there.
fn can_install() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root has name spaces and file systems of its own".to_owned());
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "true"]);
    process::quiet(&mut unshare).map_err(|e| format!("name spaces cannot be made ({e:#})"))?;
    usable_kvm()
}
