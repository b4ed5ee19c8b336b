//! The supervisor: a process that runs no guest, and the cells that it starts.
//!
//! ```text
//!   client --control socket--> supervisor --channel--> cell (a process): guests
//!                                   \------channel--> cell ...
//! ```
//!
//! - [`channel`]: messages over a stream, and what they say.
//! - [`cell`]: the cell's side: carries out what the supervisor asks, and says how guests end.
//! - [`supervisor`]: keeps the list of guests, places them on cells, restarts cells that die and, as their policy says, their guests.
//! - [`admission`]: who may have how much, and who waits.
//! - `weights`: what cells weigh beside each other on the host's processors.
//! - [`control`]: the socket on which clients ask, and their side of it.
//!
//! A cell that dies takes only its own guests with it. Whether a guest is admitted, which cell it is on, and whether it comes back, is decided by pure code in
//! `foraker-policy`.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod admission;
pub mod cell;
pub mod channel;
pub mod control;
mod outbox;
pub mod supervisor;
mod weights;

pub use admission::{Amounts, Host, ListedOwner, OwnerSettings};
pub use channel::{DEFAULT_OWNER, DEFAULT_PRIORITY, Ended, Order};
pub use control::{Listed, Reply, Request};
pub use foraker_policy::placement::MOST_GUESTS;
pub use supervisor::{Config, Supervisor};
