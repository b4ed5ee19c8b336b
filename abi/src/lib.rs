//! The virtual architecture: everything that the VMM and a guest must agree on, and nothing else.
//!
//! A guest never sees a PC. It runs at CPL 3 only, in one flat address space (virtual = guest-physical), with all
//! devices initialised before its first instruction. It talks to the VMM through one instruction
//! ([`hypercall`]), reads what the VMM knows in a page that it cannot write ([`registers`]), shares a page of state
//! with it for each core ([`control`]), and moves frames through rings at fixed addresses ([`ring`]).
//!
//! Only fixed-width integers stand in shared memory; reserved fields have names; every size, offset and number is
//! pinned by a constant assertion. A change of any of them raises [`VERSION`], which travels in each image's ELF
//! note ([`note`]) and is refused on mismatch.
//!
//! The idea of changing the architecture instead of virtualizing a PC is Denali's (Whitaker, Shaw, Gribble: "Scale
//! and performance in the Denali isolation kernel", OSDI '02).
#![no_std]

pub mod control;
pub mod fault;
pub mod hypercall;
pub mod interrupt;
pub mod layout;
pub mod net;
pub mod note;
pub mod registers;
pub mod ring;

/// Version of the architecture. An image is run only by a VMM of the same version.
pub const VERSION: u32 = 1;
