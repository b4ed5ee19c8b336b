//! The supervisor: a process that runs no guest, and the cells that it starts.
//!
//! ```text
//!   client --REST--> supervisor --channel--> cell (a process): guests
//!                     |  |  \------channel--> cell ...
//!       registry, logs   launcher (a process): starts them
//! ```
//!
//! - [`channel`]: messages over a stream, and what they say; `handover`: streams that go beside them.
//! - [`cell`]: the cell's side: carries out what the supervisor asks, and says how guests end.
//! - [`supervisor`]: keeps the list of guests, places them on cells, restarts cells that die and, as their policy says, their guests.
//! - [`launcher`]: the process that starts cells, so that the supervisor need not be able to.
//! - [`admission`]: who may have how much, and who waits.
//! - [`resolve`]: what a guest gets of which little is said.
//! - `store`: the registry, which outlives the process; `images`, `networks`, `logs`, `cores`, `events`: what else it keeps.
//! - `weights`: what cells weigh beside each other on the host's processors.
//! - [`rest`]: the API that clients ask through.
//!
//! A cell that dies takes only its own guests with it. Whether a guest is admitted, which cell it is on, and whether it comes back, is decided by pure code in
//! `foraker-policy`.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod admission;
pub mod background;
pub mod cell;
pub mod channel;
mod cores;
mod directory;
mod events;
pub mod fault;
mod handover;
mod images;
pub mod launcher;
mod logs;
mod manifest;
mod networks;
mod outbox;
mod refused;
pub mod resolve;
pub mod rest;
mod store;
pub mod supervisor;
mod weights;

pub use channel::{Ended, Order};
pub use directory::Directory;
pub use foraker_policy::placement::MOST_GUESTS;
pub use images::FOLDER as IMAGES;
pub use launcher::Launcher;
pub use logs::LogSizes;
pub use refused::Refused;
pub use store::StoreError;
pub use supervisor::{Config, Found, StartError, Supervisor};
