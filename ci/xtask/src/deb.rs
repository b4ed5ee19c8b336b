//! `cargo xtask deb`: a Debian package of the command, its service, its manual and the images.
//!
//! The tree of files is put together here and packed by `dpkg-deb`, which every Debian has; what it needs besides is the Rust toolchain, binutils and gzip. The
//! same commit, built in the same folder by the same toolchain, gives the same bytes: times are the commit's (or `SOURCE_DATE_EPOCH`), owners root, modes set
//! here, and nothing depends on how many processors compress.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;

use crate::{
    images, packages, process,
    terminal::{self, Style},
    workspace::Workspace,
};

const NAME: &str = "foraker";
const PROGRAM: u32 = 0o755;
const DATA: u32 = 0o644;
/// Scripts of the package, beside the files of the same name in `ci/dist/debian`.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// Files that are taken as they are: from `ci/dist`, to where.
const FILES: [(&str, &str); 6] = [
    ("systemd/foraker.service", "lib/systemd/system/foraker.service"),
    ("systemd/foraker.socket", "lib/systemd/system/foraker.socket"),
    ("systemd/foraker.sysusers", "usr/lib/sysusers.d/foraker.conf"),
    ("systemd/60-foraker.rules", "lib/udev/rules.d/60-foraker.rules"),
    ("debian/foraker.default", "etc/default/foraker"),
    ("debian/lintian-overrides", "usr/share/lintian/overrides/foraker"),
];
/// Completion scripts: of which shell, to where.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/vmm"),
    ("zsh", "usr/share/zsh/vendor-completions/_vmm"),
    ("fish", "usr/share/fish/vendor_completions.d/vmm.fish"),
];

#[derive(Args)]
pub(crate) struct Options {}

pub(crate) fn run(workspace: &Workspace, _: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    let parts = Parts::build(workspace)?;
    let package = parts.pack(&workspace.generated("deb"), &workspace.generated(""))?;
    let shown = package.strip_prefix(&workspace.root).unwrap_or(&package);
    println!("  {:<32} {:>10}", shown.display(), terminal::bytes(fs::metadata(&package)?.len()));
    let text = format!("built in {}", terminal::time(started.elapsed()));
    println!("{}", terminal::paint(Style::Dim, &text));
    Ok(ExitCode::SUCCESS)
}

/// What a package is made of.
pub(crate) struct Parts {
    workspace: Workspace,
    vmm: PathBuf,
    images: Vec<PathBuf>,
    version: String,
    /// Seconds since 1970 that the files are from.
    epoch: String,
}

impl Parts {
    /// Builds the command and the images.
    pub(crate) fn build(workspace: &Workspace) -> Result<Parts> {
        packages::require(&[&packages::BINUTILS, &packages::DPKG])?;
        Ok(Parts {
            workspace: workspace.clone(),
            vmm: workspace.build_vmm()?,
            images: images::build(workspace, &workspace.generated("images"), None)?,
            version: version(workspace)?,
            epoch: epoch(workspace)?,
        })
    }

    /// Puts the tree together in `scratch`, which is emptied, and packs it into `out`.
    pub(crate) fn pack(&self, scratch: &Path, out: &Path) -> Result<PathBuf> {
        if scratch.exists() {
            fs::remove_dir_all(scratch).with_context(|| format!("cannot empty {}", scratch.display()))?;
        }
        let tree = Tree(scratch.to_path_buf());
        self.programs(&tree)?;
        for (from, to) in FILES {
            tree.write(to, &fs::read(self.source(from))?, DATA)?;
        }
        for (shell, to) in COMPLETIONS {
            let script = process::quiet(Command::new(&self.vmm).args(["completion", shell]))?;
            tree.write(to, script.as_bytes(), DATA)?;
        }
        self.manual(&tree)?;
        self.documents(&tree)?;
        self.control(&tree)?;
        let package = out.join(format!("{NAME}_{}_amd64.deb", self.version));
        let mut pack = Command::new("dpkg-deb");
        // One thread: several cut the archive into blocks.
        pack.args(["--root-owner-group", "--threads-max=1", "-Zxz", "--build"]).arg(scratch).arg(&package);
        process::quiet(pack.env("SOURCE_DATE_EPOCH", &self.epoch))?;
        Ok(package)
    }

    fn source(&self, name: &str) -> PathBuf {
        self.workspace.root.join("ci/dist").join(name)
    }

    fn programs(&self, tree: &Tree) -> Result<()> {
        let vmm = tree.place("usr/bin/vmm")?;
        let mut strip = Command::new("strip");
        strip.args(["--strip-unneeded", "--remove-section=.comment", "-o"]).arg(&vmm).arg(&self.vmm);
        process::quiet(&mut strip)?;
        fs::set_permissions(&vmm, fs::Permissions::from_mode(PROGRAM))?;
        for image in &self.images {
            let name = image.file_name().context("an image has a name")?.to_string_lossy();
            tree.write(&format!("usr/share/foraker/images/{name}"), &fs::read(image)?, DATA)?;
        }
        Ok(())
    }

    fn manual(&self, tree: &Tree) -> Result<()> {
        let folder = tree.place("usr/share/man/man1/vmm.1")?;
        let folder = folder.parent().context("a file has a folder")?;
        process::quiet(Command::new(&self.vmm).arg("man").arg(folder))?;
        for page in sorted(folder)? {
            compress(&page)?;
        }
        Ok(())
    }

    fn documents(&self, tree: &Tree) -> Result<()> {
        const FOLDER: &str = "usr/share/doc/foraker";
        let licence = fs::read_to_string(self.workspace.root.join("LICENSE-MIT"))?;
        let indented = |line: &str| match line {
            "" => " .\n".to_owned(),
            line => format!(" {line}\n"),
        };
        let licence: String = licence.lines().map(indented).collect();
        let copyright = self.template("copyright", &[("@MIT@", licence.trim_end())])?;
        tree.write(&format!("{FOLDER}/copyright"), copyright.as_bytes(), DATA)?;
        let date = process::quiet(
            Command::new("date").args(["--utc", "--rfc-email", "--date"]).arg(format!("@{}", self.epoch)),
        )?;
        let changes = [("@VERSION@", self.version.as_str()), ("@DATE@", date.trim())];
        let news = fs::read(self.workspace.root.join("CHANGELOG.md"))?;
        for (name, text) in [
            ("changelog", self.template("changelog", &changes)?.into_bytes()),
            ("CHANGELOG.md", news),
            ("crates", self.crates()?.into_bytes()),
        ] {
            let name = format!("{FOLDER}/{name}");
            tree.write(&name, &text, DATA)?;
            compress(&tree.0.join(name))?;
        }
        Ok(())
    }

    /// The crates that are in the command, each with its licence.
    fn crates(&self) -> Result<String> {
        let arguments = ["tree", "--package", "foraker-vmm", "--edges", "normal,no-proc-macro"];
        let mut tree = self.workspace.cargo(&arguments);
        let listed = process::quiet(tree.args(["--prefix", "none", "--no-dedupe", "--format", "{p}: {l}"]))?;
        // Those of this tree have a path.
        let mut lines: Vec<_> = listed.lines().filter(|line| !line.contains(" (/")).collect();
        lines.sort_unstable();
        lines.dedup();
        Ok(lines.join("\n") + "\n")
    }

    fn control(&self, tree: &Tree) -> Result<()> {
        let files = tree.files()?;
        let bytes: u64 = files.iter().map(|f| fs::metadata(tree.0.join(f)).map_or(0, |m| m.len())).sum();
        let size = bytes.div_ceil(1024).to_string();
        let control = self.template("control", &[("@VERSION@", &self.version), ("@SIZE@", &size)])?;
        let sums = process::quiet(Command::new("md5sum").args(&files).current_dir(&tree.0))?;
        let conffiles: String =
            files.iter().filter(|f| f.starts_with("etc")).map(|f| format!("/{}\n", f.display())).collect();
        for (name, text) in [("control", control), ("md5sums", sums), ("conffiles", conffiles)] {
            tree.write(&format!("DEBIAN/{name}"), text.as_bytes(), DATA)?;
        }
        for name in SCRIPTS {
            let script = fs::read(self.source("debian").join(name))?;
            tree.write(&format!("DEBIAN/{name}"), &script, PROGRAM)?;
        }
        Ok(())
    }

    /// A file of `ci/dist/debian` with what stands for something replaced.
    fn template(&self, name: &str, parts: &[(&str, &str)]) -> Result<String> {
        let path = self.source("debian").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(parts.iter().fold(text, |text, (from, to)| text.replace(from, to)))
    }
}

/// A tree of files with modes that do not depend on who makes it.
struct Tree(PathBuf);

impl Tree {
    /// Makes the folders of a file.
    fn place(&self, name: &str) -> Result<PathBuf> {
        let mut folder = self.0.clone();
        let parent = Path::new(name).parent().unwrap_or(Path::new(""));
        for part in std::iter::once(Path::new("")).chain(parent.iter().map(Path::new)) {
            folder.push(part);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(PROGRAM))?;
        }
        Ok(self.0.join(name))
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.place(name)?;
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Paths of the files in it, sorted.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let (mut files, mut folders) = (Vec::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            for path in sorted(&folder)? {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(&self.0)?.to_path_buf());
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Replaces a file by a compressed one that says neither when nor what of it was made.
fn compress(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(DATA))?;
    process::quiet(Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(path)).map(drop)
}

/// The version of the workspace.
fn version(workspace: &Workspace) -> Result<String> {
    #[derive(Deserialize)]
    struct Manifest {
        workspace: Section,
    }
    #[derive(Deserialize)]
    struct Section {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        version: String,
    }
    let manifest: Manifest = toml::from_str(&fs::read_to_string(workspace.root.join("Cargo.toml"))?)?;
    Ok(manifest.workspace.package.version)
}

/// When the sources are from.
fn epoch(workspace: &Workspace) -> Result<String> {
    if let Ok(epoch) = env::var("SOURCE_DATE_EPOCH") {
        epoch.parse::<u64>().context("SOURCE_DATE_EPOCH is no number of seconds")?;
        return Ok(epoch);
    }
    let mut git = Command::new("git");
    git.arg("-c").arg(format!("safe.directory={}", workspace.root.display()));
    git.arg("-C").arg(&workspace.root).args(["log", "-1", "--format=%ct"]);
    let time = process::quiet(&mut git)
        .context("the time of the sources comes from Git: or set SOURCE_DATE_EPOCH")?;
    Ok(time.trim().to_owned())
}
