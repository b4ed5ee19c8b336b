//! The stock Debian kernel: the package that `linux-image-amd64` depends on, unpacked but never installed, and kept in
//! `target/qemu/kernel`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{process, terminal, workspace::Workspace};

/// What is loaded, besides what these depend on: KVM, TAP devices, and the card of [`super::Forward`].
const MODULES: [&str; 3] = ["kvm-amd", "tun", "e1000"];
/// Written last: a folder without it is not complete.
const COMPLETE: &str = "PACKAGE";

/// A kernel and its modules.
pub(crate) struct Kernel {
    /// Name of the Debian package.
    pub(crate) package: String,
    /// The kernel's file.
    pub(crate) image: PathBuf,
    /// Modules in the order in which they must be loaded.
    pub(crate) modules: Vec<PathBuf>,
}

/// The kernel, downloaded if it is not there yet.
///
/// # Errors
/// When this is no Debian system, or its package lists or the network are missing; the text says what to do.
pub(crate) fn get(workspace: &Workspace) -> Result<Kernel> {
    let folder = workspace.generated("qemu").join("kernel");
    if !is_complete(&folder) {
        download(&folder).context("there is no stock kernel to boot in QEMU")?;
    }
    let text = fs::read_to_string(folder.join(COMPLETE))?;
    let mut lines = text.lines();
    let package = lines.next().unwrap_or_default().to_owned();
    let modules = lines.map(|name| folder.join(name)).collect();
    Ok(Kernel { package, image: folder.join("vmlinuz"), modules })
}

/// Whether a folder holds all that is needed today.
fn is_complete(folder: &Path) -> bool {
    let Ok(text) = fs::read_to_string(folder.join(COMPLETE)) else { return false };
    let has = |module: &str| text.lines().any(|line| line == format!("{}.ko", module.replace('-', "_")));
    MODULES.iter().all(|module| has(module))
}

fn download(folder: &Path) -> Result<()> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        if process::find(tool).is_none() {
            bail!("it comes from Debian's archive, and this system has no `{tool}`: run this on Debian");
        }
    }
    let work = folder.with_extension(format!("{}", std::process::id()));
    let result = fetch(&work).and_then(|package| unpack(&work, &package));
    let result = result.and_then(|()| {
        let _ = fs::remove_dir_all(folder);
        fs::rename(work.join("kernel"), folder).with_context(|| format!("cannot write {}", folder.display()))
    });
    let _ = fs::remove_dir_all(&work);
    result
}

/// Downloads the package into `work` and returns its name.
fn fetch(work: &Path) -> Result<String> {
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let root = rustix::process::geteuid().is_root();
    let attempt = || -> Result<String> {
        let depends = process::quiet(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: ").filter(|p| p.starts_with("linux-image-")))
            .context("apt-cache does not know linux-image-amd64")?
            .to_owned();
        terminal::note(&format!("downloading {package} (about 70 MB, once)"));
        let mut download = Command::new("apt-get");
        if root {
            // The download's own user may not write to this folder.
            download.args(["-o", "APT::Sandbox::User=root"]);
        }
        process::quiet(download.args(["--quiet=2", "download", &package]).current_dir(work))?;
        Ok(package)
    };
    match attempt() {
        Ok(package) => Ok(package),
        Err(first) if root => {
            process::quiet(Command::new("apt-get").args(["--quiet=2", "update"]))?;
            attempt().with_context(|| format!("first attempt: {first:#}"))
        }
        Err(error) => Err(error.context("run `sudo apt-get update` and try again")),
    }
}

/// Unpacks what is needed of the package into `work/kernel`.
fn unpack(work: &Path, package: &str) -> Result<()> {
    let archive = files(work)?.into_iter().find(|f| f.extension().is_some_and(|e| e == "deb"));
    let archive = archive.context("apt-get download left no package")?;
    let tree = work.join("tree");
    process::quiet(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;

    let kernel = work.join("kernel");
    fs::create_dir_all(&kernel)?;
    let boot = files(&tree.join("boot"))?;
    let image =
        boot.iter().find(|f| f.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-")));
    fs::copy(image.context("the package holds no boot/vmlinuz-*")?, kernel.join("vmlinuz"))?;

    let mut available = BTreeMap::new();
    index(&tree.join("lib/modules"), &mut available)?;
    let mut text = format!("{package}\n");
    for name in load_order(&available)? {
        let file = format!("{name}.ko");
        fs::copy(&available[&name], kernel.join(&file))?;
        text.push_str(&file);
        text.push('\n');
    }
    fs::write(kernel.join(COMPLETE), text)?;
    Ok(())
}

/// [`MODULES`] and what they depend on, each behind what it depends on.
fn load_order(available: &BTreeMap<String, PathBuf>) -> Result<Vec<String>> {
    fn visit(name: &str, available: &BTreeMap<String, PathBuf>, order: &mut Vec<String>) -> Result<()> {
        let name = name.replace('-', "_");
        if order.contains(&name) {
            return Ok(());
        }
        let path = available.get(&name).with_context(|| format!("the kernel has no module {name}"))?;
        let module = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        for dependency in depends(&module) {
            visit(&dependency, available, order)?;
        }
        order.push(name);
        Ok(())
    }
    let mut order = Vec::new();
    for name in MODULES {
        visit(name, available, &mut order)?;
    }
    Ok(order)
}

/// What a module's `.modinfo` says it depends on.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&b| b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Finds modules below a folder, by name with `_` for `-`.
fn index(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for path in files(folder)? {
        if path.is_dir() {
            index(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "ko")
            && let Some(stem) = path.file_stem()
        {
            found.insert(stem.to_string_lossy().replace('-', "_"), path);
        }
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(depends(b"x\0license=GPL\0depends=kvm,ccp\0retpoline=Y\0"), ["kvm", "ccp"]);
        assert!(depends(b"x\0depends=\0y").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn modules_are_loaded_after_what_they_depend_on() {
        let folder = std::env::temp_dir().join(format!("foraker-modules-{}", std::process::id()));
        fs::create_dir_all(folder.join("a")).unwrap();
        for (name, depends) in [
            ("kvm-amd", "kvm,ccp"),
            ("kvm", "irqbypass"),
            ("ccp", ""),
            ("irqbypass", ""),
            ("tun", ""),
            ("e1000", ""),
        ] {
            fs::write(folder.join(format!("a/{name}.ko")), format!("\0depends={depends}\0")).unwrap();
        }
        let mut available = BTreeMap::new();
        index(&folder, &mut available).unwrap();
        let order = load_order(&available).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(order, ["irqbypass", "kvm", "ccp", "kvm_amd", "tun", "e1000"]);
    }
}
