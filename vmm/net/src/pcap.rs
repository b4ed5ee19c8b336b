//! Packet capture: frames of both directions, as libpcap stores them, with nanoseconds.
//!
//! Large frames that offload left whole are stored whole, up to the snap length.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use foraker_abi::net::MAX_FRAME;

/// Magic number of captures with nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
/// Link type: ethernet.
const LINKTYPE_ETHERNET: u32 = 1;
/// Bytes that are gathered before they are written.
const BUFFER: usize = 256 << 10;

/// A capture file.
#[derive(Debug)]
pub struct Pcap {
    snap_length: usize,
    failed: AtomicBool,
    file: Mutex<BufWriter<File>>,
}

impl Pcap {
    /// Creates the file, or empties it. Of each frame at most `snap_length` bytes are stored.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path, snap_length: usize) -> io::Result<Self> {
        let snap_length = snap_length.clamp(64, MAX_FRAME);
        let mut file = BufWriter::with_capacity(BUFFER, File::create(path)?);
        file.write_all(&MAGIC.to_le_bytes())?;
        // Version 2.4, two unused words.
        file.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        file.write_all(&u32::try_from(snap_length).unwrap_or(u32::MAX).to_le_bytes())?;
        file.write_all(&LINKTYPE_ETHERNET.to_le_bytes())?;
        file.flush()?;
        Ok(Pcap { snap_length, failed: AtomicBool::new(false), file: Mutex::new(file) })
    }

    /// Whether a write failed (the disk is full, say). Nothing is stored from then on.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Writes what was gathered to the file.
    pub fn flush(&self) {
        if !self.failed() {
            let result = self.file.lock().unwrap_or_else(PoisonError::into_inner).flush();
            self.failed.fetch_or(result.is_err(), Ordering::Relaxed);
        }
    }

    /// Stores a frame of `length` bytes. `copy` writes `n` bytes of it, given a buffer of that size.
    pub(crate) fn record(&self, length: usize, copy: impl FnOnce(&mut [u8])) {
        if self.failed() {
            return;
        }
        let stored = length.min(self.snap_length);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let mut record = Vec::with_capacity(16 + stored);
        record.extend(seconds.to_le_bytes());
        record.extend(now.subsec_nanos().to_le_bytes());
        record.extend(word(stored));
        record.extend(word(length));
        record.resize(16 + stored, 0);
        copy(record.get_mut(16..).unwrap_or_default());
        let result = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&record);
        self.failed.fetch_or(result.is_err(), Ordering::Relaxed);
    }
}

impl Drop for Pcap {
    fn drop(&mut self) {
        self.flush();
    }
}
