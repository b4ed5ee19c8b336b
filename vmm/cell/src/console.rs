//! Where guests' consoles go: one output for all guests of a cell, whole lines, bounded.
//!
//! A guest never waits for whoever reads: what the output does not take at once is kept up to a bound, and dropped and
//! counted beyond. With several guests each line carries its guest's name.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

/// Most bytes kept for an output that does not take them.
const BACKLOG: usize = 256 << 10;
/// Most bytes of a line that are held back until its end comes.
const LINE: usize = 1024;

/// The output.
#[derive(Debug)]
pub struct Console {
    fd: RawFd,
    backlog: Mutex<VecDeque<u8>>,
}

/// What one guest has written since its last line end, and how its lines are marked.
#[derive(Debug)]
pub struct LineBuffer {
    prefix: Option<String>,
    partial: Vec<u8>,
}

impl LineBuffer {
    /// Lines marked with `prefix`, or passed on as they are.
    #[must_use]
    pub fn new(prefix: Option<String>) -> LineBuffer {
        LineBuffer { prefix, partial: Vec::new() }
    }

    /// Writes bytes of the guest. Returns how many were dropped.
    pub fn write(&mut self, console: &Console, bytes: &[u8]) -> usize {
        let Some(prefix) = &self.prefix else { return console.put(bytes) };
        let mut dropped = 0;
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.ends_with(b"\n") || self.partial.len() >= LINE {
                let mut line = prefix.clone().into_bytes();
                line.append(&mut self.partial);
                if !line.ends_with(b"\n") {
                    line.push(b'\n');
                }
                dropped += console.put(&line);
            }
        }
        dropped
    }

    /// Writes out a last line without an end.
    pub fn finish(&mut self, console: &Console) {
        if !self.partial.is_empty() {
            self.write(console, b"\n");
        }
    }
}

impl Console {
    /// Output to a descriptor that stays open: standard output or standard error.
    #[must_use]
    pub fn new(fd: RawFd) -> Console {
        Console { fd, backlog: Mutex::default() }
    }

    /// Writes, or keeps what the output does not take. Returns how many bytes were dropped.
    pub(crate) fn put(&self, bytes: &[u8]) -> usize {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        drain(self.fd, &mut backlog);
        let written = if backlog.is_empty() { write_some(self.fd, bytes) } else { 0 };
        let rest = bytes.get(written..).unwrap_or_default();
        let room = BACKLOG.saturating_sub(backlog.len()).min(rest.len());
        backlog.extend(rest.iter().take(room));
        rest.len() - room
    }

    /// Writes what was kept, waiting up to `milliseconds` for the output to take it.
    pub fn flush(&self, milliseconds: i32) {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        while !backlog.is_empty() && writable(self.fd, milliseconds) {
            let before = backlog.len();
            drain(self.fd, &mut backlog);
            if backlog.len() == before {
                break;
            }
        }
    }
}

fn drain(fd: RawFd, backlog: &mut VecDeque<u8>) {
    while !backlog.is_empty() {
        let (first, _) = backlog.as_slices();
        let written = write_some(fd, first);
        if written == 0 {
            break;
        }
        backlog.drain(..written);
    }
}

fn writable(fd: RawFd, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid structure for the call.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

/// Writes at most what a pipe takes without blocking once it says that it is writable. Returns the bytes written.
fn write_some(fd: RawFd, bytes: &[u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() && writable(fd, 0) {
        let piece = &bytes[done..bytes.len().min(done + libc::PIPE_BUF)];
        // SAFETY: the slice is valid for the call.
        let n = unsafe { libc::write(fd, piece.as_ptr().cast(), piece.len()) };
        match usize::try_from(n) {
            Ok(n) if n > 0 => done += n,
            // Whoever read has gone: as far as the guest is concerned it was written.
            _ => return bytes.len(),
        }
    }
    done
}
