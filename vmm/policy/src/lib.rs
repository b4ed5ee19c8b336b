//! Policy as pure code: no I/O, no clock, no thread.

pub mod cpu;
pub mod demand;
pub mod gatekeeper;
pub mod holders;
pub mod placement;
pub mod precedence;
pub mod rate;
pub mod restart;
pub mod ring_service;
pub mod token_bucket;
pub mod wheel;
