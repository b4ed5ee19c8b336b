//! The files that make up the tree: what Git tracks, and what it would track.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{process, workspace::Workspace};

/// Paths relative to the root, sorted.
///
/// # Errors
/// When the tree is no Git repository, or Git is missing.
pub(crate) fn list(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    // The tree may belong to another user than the one who builds, as in containers; it is only read.
    git.arg("-c").arg(format!("safe.directory={}", workspace.root.display()));
    git.arg("-C").arg(&workspace.root).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let listed = process::quiet(&mut git).context("the list of source files comes from Git")?;
    let mut files: Vec<PathBuf> = listed
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        // A tracked file may have been deleted and not yet committed.
        .filter(|path| workspace.root.join(path).is_file())
        .collect();
    files.sort();
    files.dedup();
    if files.is_empty() {
        bail!("Git knows no file in {}", workspace.root.display());
    }
    Ok(files)
}

/// Copies the tree to a folder that does not exist yet, and returns it as a workspace.
pub(crate) fn copy(workspace: &Workspace, to: &Path) -> Result<Workspace> {
    for file in list(workspace)? {
        let target = to.join(&file);
        let folder = target.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::copy(workspace.root.join(&file), &target)
            .with_context(|| format!("cannot copy {} to {}", file.display(), to.display()))?;
    }
    Ok(Workspace { root: to.to_path_buf() })
}
