//! A cell: the guests of one process, their workers and their uplink.
//!
//! ```text
//!   TAP -> uplink -> switch -> ring -> guest
//!                                        |  exits
//!   TAP <- uplink <- switch <- ring <----+--------> worker
//! ```
//!
//! - [`cell`]: the cell itself: starting and ending guests.
//! - [`guest`]: a guest and where its cores are. A core is owned by a run queue, by a worker or by its slot.
//! - `worker`: one thread for each processor, which runs cores of many guests. There is no thread per guest.
//!   `queue`: what others see of a worker: who waits for it, and until when.
//! - `machines`: the pool of machines that guests run on one after the other; `ahead`: those that have a new guest's memory already.
//! - [`image`]: images; `templates`: guests that others start from. [`spec`]: how cells and guests are set up.
//! - `hold`: guests that are kept off the processors for a while. [`inspect`]: looking into them meanwhile; [`debugger`]: stopping them where
//!   they are to stop.
//! - `hypercalls`: what a guest may ask for.
//! - `network`: who serves the rings: workers at exits, or the uplink's thread. `subnet`: its TAP device; `addresses`: who gets which; `throttled`: who is above a limit.
//! - [`clock`], [`console`], [`report`], [`trace`]: time, output, how a guest ended, and what it did.
//!
//! Lock order: a core's slot, then a run queue, then whatever is a leaf (console, end events).
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod addresses;
mod affinity;
mod ahead;
mod allocation;
pub mod cell;
pub mod clock;
pub mod console;
mod contention;
pub mod debugger;
mod errand;
pub mod guest;
mod hold;
mod hypercalls;
pub mod image;
pub mod inspect;
mod machines;
mod network;
mod queue;
pub mod report;
pub mod spec;
mod subnet;
mod templates;
mod throttled;
pub mod trace;
mod urgency;
mod vigil;
mod worker;

pub use cell::{Cell, CellError};
pub use debugger::{Debugger, Go, Stop, Why};
pub use foraker_image::{Rights, symbols};
pub use foraker_machine::Saved;
pub use foraker_memory::Pages;
pub use foraker_policy::cpu::Grain;
pub use guest::{Guest, ProcessorSpec};
pub use image::LoadedImage;
pub use inspect::{InspectError, Inspection};
pub use network::Service;
pub use report::{Cause, CounterValues, End, Fault};
pub use spec::{Config, GuestSpec, NetworkConfig, NetworkSpec};
pub use trace::Trace;
