//! Images: ELF files of guests, checked and laid out.
//!
//! An image is an ordinary static ELF file with the note of [`foraker_abi::note`]. [`Image::parse`] takes nothing on
//! trust: whatever the bytes are, the result is an error or an image whose segments lie where the layout allows them, do
//! not overlap and are never both writable and executable. Only what a guest needs at its start is read; symbols are looked up
//! in the file when a fault is to be reported ([`symbols`]).
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod elf;
pub mod symbols;

pub use elf::{Image, ImageError, Rights, Segment};
