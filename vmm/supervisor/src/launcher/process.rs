//! The launcher's own side.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Answer, Cells, Request, receive, send, wait_for, watch};
use crate::weights::Weights;

/// This process' own program, which stays the same when the file of that name is replaced: both ends of a channel are of the same version.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// How long cells whose supervisor has gone may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(5);

/// The launcher.
#[derive(Debug)]
pub(super) struct Process {
    cells: Cells,
    /// What cells see as their program's name.
    name: OsString,
    /// By their numbers.
    running: BTreeMap<usize, Running>,
    /// Made with the first cell: the supervisor has its state directory by then, and cells of an earlier one are gone.
    weights: Option<Option<Weights>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    ending: OwnedFd,
}

/// Starts cells as the supervisor asks, until it has gone. Returns when no cell is left.
///
/// # Errors
/// What the supervisor says cannot be understood, or the host refuses to wait.
pub fn run(supervisor: UnixStream, cells: Cells) -> io::Result<()> {
    Process::new(cells).run(supervisor)
}

/// Cells' groups; none, with a word about it, where the host does not allow it.
fn weights() -> Option<Weights> {
    let weights = Weights::of_processes(&[parent_id(), std::process::id()]);
    if let Err(e) = &weights {
        log::info!("shares hold within each cell, and cells share the processors alike: {e}");
    }
    weights.ok()
}

impl Process {
    fn new(cells: Cells) -> Process {
        let name = std::env::args_os().next().unwrap_or_else(|| "vmm".into());
        Process { cells, name, running: BTreeMap::new(), weights: None }
    }

    #[cfg(test)]
    pub(super) fn without_weights(cells: Cells) -> Process {
        Process { weights: Some(None), ..Process::new(cells) }
    }

    pub(super) fn run(mut self, supervisor: UnixStream) -> io::Result<()> {
        let parent = parent_id();
        let end = self.serve(&supervisor);
        drop(supervisor);
        self.end_cells();
        if let Some(Some(weights)) = &self.weights {
            // The number of one that has gone may be another's.
            let there = [parent, std::process::id()].into_iter().skip(usize::from(parent_id() != parent));
            weights.remove(there);
        }
        end
    }

    fn serve(&mut self, supervisor: &UnixStream) -> io::Result<()> {
        loop {
            if !self.wait(Some(supervisor.as_raw_fd()), None)? {
                continue;
            }
            let Some((request, _)) = receive(supervisor)? else { return Ok(()) };
            match request {
                Request::Start(number) => match self.start(number) {
                    Ok((process, ends)) => {
                        let descriptors = ends.each_ref().map(AsRawFd::as_raw_fd);
                        // It may have gone meanwhile, as the next packet says.
                        let _ = send(supervisor, &Answer::Ok(process), &descriptors);
                    }
                    Err(e) => {
                        let answer = Answer::Err(e.raw_os_error().unwrap_or(libc::EIO));
                        let _ = send(supervisor, &answer, &[]);
                    }
                },
                Request::Kill(number) => {
                    if let Some(running) = self.running.get_mut(&number) {
                        // One that has ended meanwhile needs none.
                        let _ = running.child.kill();
                    }
                }
                Request::Weigh(number, asked) => {
                    if let Some(Some(weights)) = &self.weights
                        && self.running.contains_key(&number)
                    {
                        weights.set(number, asked);
                    }
                }
                Request::End => {
                    if let Some(socket) = &self.cells.socket
                        && let Err(e) = std::fs::remove_file(socket)
                    {
                        log::warn!("the socket {} stays: {e}", socket.display());
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Waits for the supervisor or the end of a cell, at most so long. Returns whether the supervisor has something to say, or has gone.
    fn wait(&mut self, supervisor: Option<RawFd>, time: Option<Duration>) -> io::Result<bool> {
        let mut all = vec![supervisor.unwrap_or(-1)];
        let (numbers, endings): (Vec<_>, Vec<_>) =
            self.running.iter().map(|(number, running)| (*number, running.ending.as_raw_fd())).unzip();
        all.extend(endings);
        let ready = wait_for(&all, time)?;
        for (number, _) in numbers.into_iter().zip(ready.iter().skip(1)).filter(|(_, ended)| **ended) {
            if let Some(mut running) = self.running.remove(&number) {
                match running.child.wait() {
                    Ok(status) if status.success() => {}
                    Ok(status) => log::warn!("cell {number}, process {}: {status}", running.child.id()),
                    Err(e) => log::warn!("cell {number}, process {}: {e}", running.child.id()),
                }
            }
        }
        Ok(ready.first().is_some_and(|said| *said))
    }

    /// Starts a cell. Returns its process, and the supervisor's ends: its channel, its console, its process.
    fn start(&mut self, number: usize) -> io::Result<(u32, [OwnedFd; 3])> {
        if number >= self.cells.count {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if self.running.contains_key(&number) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let weights = self.weights.get_or_insert_with(weights);
        let (ours, theirs) = UnixStream::pair()?;
        let (console, writer) = io::pipe()?;
        let mut child = Command::new(OWN_PROGRAM)
            .arg0(&self.name)
            .args(self.cells.command_line(number))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(writer))
            .spawn()?;
        let watched = watch(child.id()).and_then(|ending| Ok((ending.try_clone()?, ending)));
        let (copy, ending) = match watched {
            Ok(both) => both,
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
        };
        if let Some(weights) = weights {
            weights.admit(number, child.id());
        }
        let process = child.id();
        self.running.insert(number, Running { child, ending });
        Ok((process, [OwnedFd::from(ours), OwnedFd::from(console), copy]))
    }

    /// Waits for cells that have lost their supervisor, and ends those that do not end by themselves.
    fn end_cells(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.running.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait(None, Some(left)).is_err() {
                break;
            }
        }
        for (number, running) in &mut self.running {
            log::warn!("cell {number}, process {}, does not end, and is killed", running.child.id());
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}
