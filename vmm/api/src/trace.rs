//! What happens to a guest, as it happens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TracedKind {
    /// The guest's core has left it: a hypercall, a doorbell, a fault, or somebody else's turn.
    Exit,
    /// Interrupts were raised for it.
    Interrupt,
    /// A frame went to it or came from it.
    Packet,
    /// Things happened that were not recorded: whoever reads is too slow.
    Dropped,
}

impl TracedKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TracedKind::Exit => "exit",
            TracedKind::Interrupt => "interrupt",
            TracedKind::Packet => "packet",
            TracedKind::Dropped => "dropped",
        }
    }
}

/// A line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traced {
    /// When, in the guest's time: nanoseconds since its launch.
    pub at_ns: u64,
    /// On which core; 0 for packets.
    pub core: u16,
    /// What kind of thing.
    pub kind: TracedKind,
    /// What, in words: `hypercall idle`, `interrupt net-rx`, `received 74 bytes`.
    pub what: String,
    /// Of a packet, its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u32>,
}
