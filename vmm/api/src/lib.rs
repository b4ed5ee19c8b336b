//! The API of the daemon: the types that go over it, and a client.
//!
//! The server's description of itself (OpenAPI) is generated from these types, the command line prints them, and what is stored is written
//! with them: whatever is said of a guest is said in one way.
//!
//! - [`guest`]: what a guest is to be, and what it is.
//! - [`image`], [`owner`], [`network`], [`system`], [`event`]: the other collections.
//! - [`trace`]: what happens to a guest.
//! - [`config`]: everything that is settled, to be read back and applied again.
//! - [`problem`]: what an error says (RFC 9457).
//! - [`units`]: amounts as people write them.
//! - [`client`]: asks a daemon; [`endpoint`]: where that is; [`tls`]: how it is known from afar.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod client;
pub mod config;
pub mod endpoint;
pub mod event;
pub mod guest;
pub mod image;
pub mod network;
pub mod owner;
pub mod page;
pub mod problem;
pub mod system;
pub mod tls;
pub mod trace;
pub mod units;

pub use client::{Client, ClientError};
pub use config::Configuration;
pub use endpoint::{Endpoint, Remote};
pub use event::Event;
pub use guest::{
    Action, Counters, Create, Created, Filter, Grain, Guest, GuestDetail, GuestSpec, NetworkOptions, Port,
    ProcessorOptions, Restart, State,
};
pub use image::Image;
pub use network::Network;
pub use owner::{Amounts, Owner, OwnerSettings};
pub use page::Page;
pub use problem::Problem;
pub use system::{Cell, Gatekeeper, GatekeeperSettings, Health, Version};
pub use trace::Traced;
