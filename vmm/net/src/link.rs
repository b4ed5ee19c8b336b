//! What is at the other end of the uplink: the TAP device, or a test.

use std::io;

use crate::parts::{Parts, Places};

/// Sends and receives frames behind offload headers.
pub trait Link {
    /// Reads the next frame behind its offload header into `buffer`. None if there is none now.
    ///
    /// # Errors
    /// The link is down.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// The same into several places, one behind the other.
    ///
    /// # Errors
    /// The link is down.
    fn receive_scattered(&self, places: Places<'_>) -> io::Result<Option<usize>>;

    /// Sends an offload header and a frame.
    ///
    /// # Errors
    /// The frame was refused, or the link is down.
    fn send(&self, frame: Parts<'_>) -> io::Result<()>;
}
