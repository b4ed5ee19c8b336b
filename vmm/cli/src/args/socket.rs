//! Where a supervisor listens, and where its clients look for one.

use std::path::{Path, PathBuf};

use clap::Args;
use foraker_api::{Endpoint, Remote};

/// Where a supervisor listens that serves the whole host: root's, or the packaged service's.
const SYSTEM: &str = "/run/foraker/vmm.sock";

/// Where a supervisor of this host listens.
#[derive(Debug, Args)]
pub(crate) struct Listening {
    /// Socket of the supervisor [default: vmm.sock in $XDG_RUNTIME_DIR, or /run/foraker/vmm.sock]
    #[arg(long = "socket", value_name = "PATH")]
    path: Option<PathBuf>,
}

impl Listening {
    /// Where to listen: the path asked for, or the usual one of this user.
    pub(crate) fn to_serve(&self) -> PathBuf {
        let usual = || own().unwrap_or_else(|| PathBuf::from(SYSTEM));
        self.path.clone().unwrap_or_else(usual)
    }

    /// Makes the folder of the socket, if nobody asked for another one: it is on a file system that is empty after a start of the host.
    pub(crate) fn make_folder(&self) -> std::io::Result<()> {
        match Path::new(SYSTEM).parent().filter(|_| self.to_serve() == Path::new(SYSTEM)) {
            Some(folder) => std::fs::create_dir_all(folder),
            None => Ok(()),
        }
    }

    /// Where to look for a supervisor: on the path asked for; else this user's own one goes before the host's.
    pub(crate) fn to_reach(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| chosen(own(), Path::new(SYSTEM)))
    }
}

/// Which supervisor to ask.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    #[command(flatten)]
    here: Listening,
    /// Ask a supervisor on another machine, which was started with --listen
    #[arg(long, value_name = "HOST:PORT", env = "FORAKER_HOST", requires = "tls", hide_short_help = true)]
    host: Option<String>,
    /// Folder of the own certificate cert.pem, its key key.pem and the supervisor's authority ca.pem
    #[arg(long, value_name = "FOLDER", env = "FORAKER_TLS", hide_short_help = true)]
    tls: Option<PathBuf>,
}

impl Socket {
    /// Options that mean the same wherever they are given.
    pub(crate) fn words(&self) -> std::io::Result<Vec<String>> {
        let absolute = |path: &Path| std::path::absolute(path).map(|path| path.display().to_string());
        Ok(match (&self.host, &self.tls) {
            (Some(host), Some(folder)) if self.here.path.is_none() => {
                vec!["--host".to_owned(), host.clone(), "--tls".to_owned(), absolute(folder)?]
            }
            _ => vec!["--socket".to_owned(), absolute(&self.here.to_reach())?],
        })
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> anyhow::Result<Endpoint> {
        match (&self.host, &self.tls) {
            // Asked for by name, it goes before what the environment says.
            (Some(host), Some(folder)) if self.here.path.is_none() => {
                Remote::new(host, folder).map(Endpoint::Remote).map_err(anyhow::Error::msg)
            }
            _ => Ok(Endpoint::Socket(self.here.to_reach())),
        }
    }
}

/// The usual path of a user who is not root, if it has a folder for such things.
fn own() -> Option<PathBuf> {
    // SAFETY: a system call without arguments that cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !root)?;
    Some(PathBuf::from(folder).join("vmm.sock"))
}

/// One's own if there is one, or if there is no other: then it is what a message names.
fn chosen(own: Option<PathBuf>, system: &Path) -> PathBuf {
    match own {
        Some(own) if own.exists() || !system.exists() => own,
        _ => system.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_supervisor_goes_before_the_hosts() {
        // Two files that are there, and one that is not.
        let (there, system) = (Path::new("/proc/self/status"), Path::new("/proc/self/stat"));
        let missing = Path::new("/proc/self/missing");
        let choose = |own: Option<&Path>, system| chosen(own.map(Path::to_path_buf), system);
        assert_eq!(choose(Some(there), system), there);
        assert_eq!(choose(Some(missing), system), system);
        assert_eq!(choose(Some(missing), missing), missing);
        assert_eq!(choose(None, system), system);
    }

    #[test]
    fn the_path_asked_for_is_taken_as_it_is() {
        let asked = Listening { path: Some(PathBuf::from("x/y")) };
        assert_eq!((asked.to_serve(), asked.to_reach()), ("x/y".into(), "x/y".into()));
        assert!(asked.make_folder().is_ok() && !Path::new("x").exists());
    }
}
