//! A guest's memory: the arena it comes from, the page tables, and access that is checked.
//!
//! - [`arena`]: one sparse mapping for all guests of a process; a guest is a range of it. Its `pager` fills what is missing.
//! - [`template`]: what a guest's memory holds when it starts.
//! - [`plan`]: where everything lies in one guest's address space.
//! - [`shared`]: the read-only part that all guests of an image share: supervisor pages, text, read-only data.
//! - [`tables`]: page tables, built once before the guest runs and out of its reach.
//! - [`guest`]: one guest's memory, and the only way to its bytes. `look`: the way of dumps and debuggers.
//!
//! No Rust reference to bytes that a guest can write ever exists, except to atomics: everything goes through `vm-memory`'s
//! volatile access or through raw pointers.
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod arena;
pub mod guest;
mod look;
mod pager;
pub mod plan;
pub mod shared;
pub mod tables;
pub mod template;
mod uffd;

pub use arena::Arena;
pub use guest::{GuestMemory, Pages, Slot};
pub use plan::Plan;
pub use shared::Shared;
pub use template::Template;

/// Why a guest's memory cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused a mapping.
    #[error("cannot map memory: {0}: give the guests less memory, or run fewer of them")]
    Map(std::io::Error),
    /// The arena is used up.
    #[error("no room for {0} bytes in this process' arena: end a guest, or give this one less memory")]
    ArenaFull(u64),
    /// The image does not fit.
    #[error(
        "{given} bytes of memory are too little: this image needs at least {needed} (try --memory {needed})"
    )]
    TooLittle {
        /// What was given.
        given: u64,
        /// What would do, bytes.
        needed: u64,
    },
    /// More than the architecture allows.
    #[error("{0} bytes of memory are too much: the most is {max}", max = foraker_abi::layout::MAX_MEMORY)]
    TooMuch(u64),
    /// The image's note asks for a larger stack than the architecture allows.
    #[error("the image asks for a stack of {0} bytes: the most is {max}", max = foraker_abi::layout::MAX_STACK)]
    Stack(u64),
    /// Arguments and environment do not fit.
    #[error("arguments and environment fill {0} bytes: the most is {max}", max = foraker_abi::layout::BOOT_SIZE)]
    Boot(usize),
}
