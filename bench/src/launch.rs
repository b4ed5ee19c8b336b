//! Guests launched inside this process, in a cell, as `vmm launch` and every later front end do it: what the raw
//! floor's launch is compared with.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use foraker_cell::{Config, Guest, GuestSpec, LoadedImage};

/// Bytes of memory of a guest here: the least that its images run with.
const MEMORY: u64 = 256 << 10;
/// Address space for the guests of one cell.
const ARENA: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(5);

/// A cell with one worker and one image, whose console this process reads.
#[derive(Debug)]
pub struct Cell {
    cell: foraker_cell::Cell,
    image: Arc<LoadedImage>,
    console: PipeReader,
    // The cell writes to it as long as it lives.
    _console_end: PipeWriter,
}

impl Cell {
    /// Makes a cell for guests of this image.
    ///
    /// # Errors
    /// When the cell or the image cannot be had.
    pub fn open(image: &Path) -> Result<Cell> {
        let (console, end) = io::pipe().context("cannot make a pipe")?;
        set_nonblocking(&console)?;
        let config = Config::new(1, ARENA, end.as_raw_fd());
        let cell = foraker_cell::Cell::new(&config)?;
        Ok(Cell { cell, image: LoadedImage::open(image)?, console, _console_end: end })
    }

    /// Starts a guest and waits for the first byte of its console. Returns it and the time that took.
    ///
    /// # Errors
    /// When it cannot be started or writes nothing.
    pub fn launch(&mut self, arguments: &[&str]) -> Result<(Arc<Guest>, Duration)> {
        let spec = GuestSpec {
            memory: MEMORY,
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            ..GuestSpec::new(Arc::clone(&self.image), "bench")
        };
        let start = Instant::now();
        let guest = self.cell.start(&spec)?;
        self.first_byte(start)?;
        let elapsed = start.elapsed();
        self.drain()?;
        Ok((guest, elapsed))
    }

    /// Looks for console output without sleeping, so that waking up this thread is not part of the figure.
    fn first_byte(&mut self, start: Instant) -> Result<()> {
        let mut byte = [0];
        while start.elapsed() < PATIENCE {
            match self.console.read(&mut byte) {
                Ok(0) => bail!("the console is closed"),
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(e) => return Err(e).context("cannot read the console"),
            }
        }
        bail!("the guest wrote nothing for {PATIENCE:?}")
    }

    fn drain(&mut self) -> Result<()> {
        let mut rest = [0; 4096];
        loop {
            match self.console.read(&mut rest) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e).context("cannot read the console"),
            }
        }
    }

    /// Waits for the end of a guest that ends by itself, and frees what it held.
    ///
    /// # Errors
    /// When it does not end.
    pub fn finish(&mut self, guest: Arc<Guest>) -> Result<()> {
        let start = Instant::now();
        while !guest.has_ended() {
            ensure!(start.elapsed() < PATIENCE, "the guest does not end");
            std::thread::sleep(Duration::from_micros(50));
        }
        self.cell.forget(&guest);
        drop(guest);
        self.drain()
    }
}

fn set_nonblocking(pipe: &PipeReader) -> Result<()> {
    // SAFETY: a live descriptor; the call changes its flags only.
    let result = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    ensure!(result == 0, "cannot change the pipe: {}", io::Error::last_os_error());
    Ok(())
}
