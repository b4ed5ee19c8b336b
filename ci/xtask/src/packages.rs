//! Debian packages that a task needs: installed when root asks for it, named exactly when not.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{process, terminal};

/// A package, and how one sees that what it brings is there (from whatever source).
pub(crate) struct Package {
    name: &'static str,
    present: fn() -> bool,
}

macro_rules! packages {
    ($($(#[$doc:meta])* $constant:ident: $name:literal, $present:expr;)*) => {
        $($(#[$doc])* pub(crate) const $constant: Package = Package { name: $name, present: $present };)*
    };
}

packages! {
    /// `objcopy`, which puts the manifest into an image.
    BINUTILS: "binutils", || process::find("objcopy").is_some();
    /// An HTTP client.
    CURL: "curl", || process::find("curl").is_some();
    /// An HTTP load generator.
    WRK: "wrk", || process::find("wrk").is_some();
    /// `ip`, for network namespaces in tests.
    IPROUTE: "iproute2", || process::find("ip").is_some();
    /// The emulator in which stock KVM runs.
    QEMU: "qemu-system-x86", || process::find("qemu-system-x86_64").is_some();
    /// The shell inside of it.
    BUSYBOX: "busybox-static", || static_busybox().is_some();
    /// `promtool`, which reads metrics as Prometheus does.
    PROMETHEUS: "prometheus", || process::find("promtool").is_some();
    /// The browser that the page is tested in.
    CHROMIUM: "chromium", || process::find("chromium").is_some();
    /// The debugger that guests are looked into with.
    GDB: "gdb", || process::find("gdb").is_some();
    /// `dpkg-deb`, which packs packages.
    DPKG: "dpkg", || process::find("dpkg-deb").is_some();
    /// The checker of packages.
    LINTIAN: "lintian", || process::find("lintian").is_some();
    /// `systemd-analyze` and `systemd-socket-activate`.
    SYSTEMD: "systemd", || process::find("systemd-socket-activate").is_some();
    /// Python with `venv`, for tools that are written in it.
    PYTHON: "python3-venv", || process::quiet(std::process::Command::new("python3").args(["-c", "import ensurepip, venv"])).is_ok();
    /// A bridge between sockets.
    SOCAT: "socat", || process::find("socat").is_some();
    /// The C++ compiler that builds libFuzzer.
    CXX: "g++", || process::find("c++").is_some();
}

/// Makes sure that packages are there.
///
/// # Errors
/// When one is missing and cannot be installed; the text is what to type.
pub(crate) fn require(packages: &[&Package]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|p| !(p.present)()).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if process::find("apt-get").is_none() {
        bail!(
            "this task needs what Debian calls `{names}`: install them with your system's tools and run it again"
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "packages are missing: run `sudo apt-get install --no-install-recommends {names}` and try again"
        );
    }
    terminal::note(&format!("installing Debian packages: {names}"));
    let install = format!("apt-get install --no-install-recommends {names}");
    apt(&["update"])
        .and_then(|()| {
            let fixed = ["install", "--yes", "--no-install-recommends"];
            apt(&[&fixed[..], &missing].concat())
        })
        .with_context(|| {
            format!("packages are missing and could not be installed: run `{install}` to see why")
        })?;
    match packages.iter().find(|p| !(p.present)()) {
        None => Ok(()),
        Some(package) => bail!("package {} was installed, but what it brings is not in PATH", package.name),
    }
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("--quiet=2").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdout(Stdio::null());
    process::run(&mut command)
}

/// A busybox that needs no shared library.
pub(crate) fn static_busybox() -> Option<std::path::PathBuf> {
    let candidates = ["/bin/busybox", "/usr/bin/busybox"];
    candidates.iter().map(Path::new).find(|p| is_static(p)).map(Path::to_path_buf)
}

/// Whether a file is an ELF executable without an interpreter.
fn is_static(path: &Path) -> bool {
    const INTERPRETER: u32 = 3;
    const HEADER: usize = 56;
    let Ok(file) = fs::read(path) else { return false };
    let word = |at: usize, size: usize| {
        file.get(at..at + size).map(|b| b.iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(table), Some(count)) = (word(32, 8), word(56, 2)) else { return false };
    let Ok(table) = usize::try_from(table) else { return false };
    (0..usize::try_from(count).unwrap_or(0))
        .all(|i| word(table.saturating_add(i * HEADER), 4).is_some_and(|t| t != u64::from(INTERPRETER)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_static_from_dynamic() {
        assert!(is_static(&std::env::current_exe().unwrap()), "tests are linked statically");
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(!is_static(Path::new("/etc/passwd")));
        assert!(!is_static(Path::new("/nonexistent")));
    }

    #[test]
    fn nothing_is_done_when_nothing_is_missing() {
        require(&[&Package { name: "never-asked-for", present: || true }]).unwrap();
    }
}
