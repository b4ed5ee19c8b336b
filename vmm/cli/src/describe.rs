//! What describes the command line: completion scripts and manual pages, made from it.

use std::path::Path;

use anyhow::Context;
use clap::Command;

use crate::args::described;

/// Prints the completion script of a shell.
pub(crate) fn completion(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    clap_complete::generate(shell, &mut described(), "vmm", &mut std::io::stdout());
    Ok(0)
}

/// Writes a manual page for the command and each of its verbs.
pub(crate) fn manual(folder: &Path) -> anyhow::Result<u8> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut command = described();
    command.build();
    pages(&command, "vmm", folder)?;
    Ok(0)
}

fn pages(command: &Command, name: &str, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).render(&mut page)?;
    std::fs::write(&path, page).with_context(|| path.display().to_string())?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages(verb, &format!("{name}-{}", verb.get_name()), folder)?;
    }
    Ok(())
}
