//! Policy as pure code: no I/O, no clock, no thread.

pub mod token_bucket;
pub mod ring_service;
