//! The live page of the daemon: what ten thousand guests do at this moment, in a browser.
//!
//! ```text
//!   Source --ten times a second, while somebody looks--> table --differences, encoded once--> every browser
//!          --when one guest is looked at---------------> its facts and its console
//! ```
//!
//! - `source`: what is shown, as plain types and the trait [`Source`]. This crate knows no supervisor.
//! - `table`: who is in which square of the page, and what has changed there since the last look.
//! - `message`: what browsers are sent: all there is, then differences.
//! - `hub`: one task that looks, and the browsers that hear from it.
//! - `guard`: whose requests are answered.
//! - `inert`: text from guests that can do nothing where it is shown.
//! - `http`, `serve`: the pages, and the thread that serves them.
//!
//! **Transport: server-sent events.** Everything but an action goes one way. An event stream is an ordinary request of HTTP, so that the same
//! checks of `Host` and `Origin` cover it; a WebSocket is outside the browser's same-origin policy, and costs a handshake and masking for a
//! direction that nobody uses. A browser connects again by itself. That events are text is no loss: a change is a number of six digits.
//!
//! **Bounds.** A browser that cannot follow is sent everything anew instead of what it missed: what waits for it is `hub::BACKLOG` messages
//! at most. There are [`MOST_WATCHERS`] streams at most, [`MOST_SHOWN`] guests on the grid, and every text that a guest
//! can influence is cut.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod guard;
mod http;
mod hub;
mod inert;
mod message;
mod rates;
mod serve;
mod source;
mod table;

pub use guard::{Key, Options};
pub use http::router;
pub use hub::MOST_WATCHERS;
pub use inert::is_invisible;
pub use serve::serve;
pub use source::{
    Action, Console, Detail, Edge, Fact, Figures, Graph, Load, Place, Refusal, Seen, Source, Stage, State,
    Value,
};
pub use table::{MOST_SHOWN, Roll};
