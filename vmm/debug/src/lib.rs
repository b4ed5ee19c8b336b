//! Debugging guests.
//!
//! - [`mod@dump`]: a guest's memory and registers in a file that `gdb IMAGE FILE` opens.
//! - [`gdb`]: gdb's remote protocol, for a guest that runs.
//! - `signal`: what a debugger calls a fault.
//!
//! What is read of a guest was the guest's to choose, and is passed on as it is: a debugger has to cope with it. No guest decides how much of this
//! process it takes: everything is done in pieces of a fixed size.
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod dump;
pub mod gdb;
mod signal;

pub use dump::{DumpError, Dumped, Prepared, dump, prepare};
pub use gdb::{Attached, DebugError, Session, attach, serve};
