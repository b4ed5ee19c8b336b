//! Interrupts: a bit means "one or more of these happened in the past".
//!
//! The VMM sets bits in [`crate::control::CoreControl::pending`] of core 0 (or of the core concerned) in memory, and
//! the guest takes them by exchanging the word with 0. A running guest sees them at its next look, without an exit;
//! one that is not running sees them all when it next runs. Batched and asynchronous as in Denali.

/// A deadline given to `idle` has come.
pub const TIMER: u64 = 1 << 0;
/// Frames were put into the receive ring; or one needs more buffers than there are, and `NO_NOTIFY` is clear in that ring.
pub const NET_RX: u64 = 1 << 1;
/// Transmit buffers came back, and the guest had asked to be told.
pub const NET_TX: u64 = 1 << 2;
/// Block requests were finished (reserved).
pub const BLOCK: u64 = 1 << 3;
/// The guest is asked to end itself soon.
pub const STOP: u64 = 1 << 4;
/// The core will be taken away at `quantum_end`. Raised only for a core whose `upcall_mask` has it.
pub const PREEMPT: u64 = 1 << 5;
/// Another core called `resources(CORE_WAKE)`.
pub const WAKE: u64 = 1 << 6;
/// What the guest asked for with `resources(MEMORY)` is granted, and in `memory_allocated`; or refused, and that has not changed.
pub const RESOURCES: u64 = 1 << 7;
/// Every bit in use.
pub const ALL: u64 = 0xff;
