//! The library OS of guests.
//!
//! A guest is an ordinary static program at CPL 3 in a virtual machine of its own. This crate gives it what an
//! operating system would: a start and an end, a console, time, randomness, memory, tasks and a network, in one
//! address space and without a single privileged instruction. What is not used costs nothing: each part sets
//! itself up at its first use.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! guest_libos::entry!(main);
//!
//! fn main() -> i32 {
//!     guest_libos::println!("hello");
//!     0
//! }
//! ```
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod boot;
pub mod console;
mod core_local;
pub mod cores;
pub mod heap;
pub mod http;
pub mod hypercall;
pub mod interrupt;
pub mod logger;
pub mod memory;
mod memory_functions;
pub mod net;
#[cfg(not(test))]
mod panic;
pub mod random;
pub mod registers;
pub mod start;
pub mod sync;
pub mod task;
#[cfg(test)]
mod testing;
pub mod time;
pub mod upcall;

pub use boot::{args, env};
pub use foraker_abi as abi;
pub use hypercall::terminate;
pub use log;
pub use registers::registers;
pub use task::spawn;
pub use time::now;
