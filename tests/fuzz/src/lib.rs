//! Fuzz targets for everything that a guest or an image controls. `cargo xtask fuzz` builds and runs them.
//!
//! Each target is a function of bytes that asserts what the code promises, so that a run finds wrong answers and not
//! only crashes; the programs in `targets` hand libFuzzer's bytes to it. `cargo test` here runs every seed in
//! `corpus` through its target without libFuzzer, and `cargo run --example seeds` writes the seeds anew.
//!
//! | target | what is hostile | what is promised |
//! |---|---|---|
//! | [`image`] | an ELF file | segments within the layout; pages mapped exactly as the layout says, none writable and executable |
//! | [`frame`] | a frame and its offload header | no forged source, no stranger's network is reached; answers are well-formed and true |
//! | [`rings`] | a driver, over real memory, that also writes while the VMM reads | writes only to the guest's own windows; a neighbour is served; bounded work |
//! | [`guest_memory`] | addresses and lengths of hypercalls | exactly what the layout allows; nothing else changes |
//! | [`http`] | a request | one reading of it, however it is cut into pieces |

pub mod frame;
pub mod guest_memory;
pub mod http;
pub mod image;
pub mod program;
pub mod rings;
