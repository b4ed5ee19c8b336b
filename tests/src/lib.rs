//! What the tests of the whole share: launching the real command, looking at what it leaves behind, an HTTP client,
//! a name server, and the table of misbehaving guests.
//!
//! Environment: `VMM` names the binary, `IMAGES` the folder of images; without them the usual places of a build are
//! taken. `BACK_END=stock` or `FORAKER_SLOW=1` stretches the limits of time, for machines that are emulated.
//! Nothing here needs another program. Tests that do (`curl`, `wrk`) are in `tests/clients.rs`.

pub mod api;
pub mod bounds;
pub mod crowd;
pub mod dns;
pub mod hostile;
pub mod http;
pub mod launch;
pub mod leftover;
pub mod machine;
pub mod prober;
pub mod report;
pub mod supervisor;
pub mod usage;
