//! What runs inside: busybox, the modules, the project's files, and an `/init` that runs one command.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use super::{cpio::Archive, kernel::Kernel};
use crate::packages;

/// Printed on a line of its own when the command starts.
pub(crate) const START: &str = "@@foraker-start";
/// Printed with the exit status when the command has ended.
pub(crate) const END: &str = "@@foraker-end";

/// A file for the inside.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Where it is here.
    pub(crate) from: PathBuf,
    /// Its absolute path inside.
    pub(crate) to: String,
}

/// Puts the archive together. `script` is run by busybox' shell.
pub(crate) fn build(
    kernel: &Kernel,
    files: &[File],
    environment: &[String],
    script: &str,
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp", "run", "root", "etc", "images", "mnt"] {
        archive.directory(folder);
    }
    // The kernel opens it before /init can mount anything.
    archive.character_device("dev/console", 5, 1);
    let busybox = packages::static_busybox().context("busybox-static is not installed")?;
    archive.file("bin/busybox", read(&busybox)?);
    for folder in ["sbin", "usr/bin", "usr/sbin"] {
        archive.symlink(folder, if folder.contains('/') { "../bin" } else { "bin" });
    }
    let mut modules = Vec::new();
    for module in &kernel.modules {
        let name = module.file_name().context("a module has a name")?.to_string_lossy().into_owned();
        archive.file(&format!("modules/{name}"), read(module)?);
        modules.push(name);
    }
    for file in files {
        archive.file(&file.to, read(&file.from)?);
    }
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n".to_vec());
    archive.file("etc/group", b"root:x:0:\n".to_vec());
    archive.file("etc/hosts", b"127.0.0.1 localhost\n".to_vec());
    archive.file("script", script.as_bytes().to_vec());
    archive.file("init", init(&modules, environment).into_bytes());
    Ok(archive.finish())
}

fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The first process. It never fails silently: what does not work is printed, and the command runs all the same.
fn init(modules: &[String], environment: &[String]) -> String {
    let exports: String = environment
        .iter()
        .map(|pair| format!("export {}\n", crate::process::quote(std::ffi::OsStr::new(pair))))
        .collect();
    let modules = modules.join(" ");
    format!(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=vt100 VMM=/bin/vmm IMAGES=/images
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
for module in {modules}; do insmod /modules/$module || echo "cannot load $module"; done
ip link set lo up
hostname stock-kvm
cd /root
{exports}echo {START}
sh /script
status=$?
echo
echo {END} $status
poweroff -f
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_loads_modules_runs_the_script_and_reports_its_status() {
        let text = init(&["kvm.ko".into(), "kvm_amd.ko".into()], &["A=b c".into()]);
        let order =
            ["kvm.ko kvm_amd.ko", "export 'A=b c'", START, "sh /script\nstatus=$?", "$status", "poweroff -f"];
        let mut at = 0;
        for part in order {
            at += text[at..].find(part).unwrap_or_else(|| panic!("{part} is missing or too early in {text}"));
        }
    }
}
