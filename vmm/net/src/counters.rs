//! What is counted: frames, bytes, and every drop by its reason.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a frame went nowhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// Every reason.
            pub const ALL: [DropReason; [$($text),*].len()] = [$(DropReason::$name),*];

            /// The reason's name in reports and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(DropReason::$name => $text,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// A source address (ethernet, IP, ARP, neighbour discovery) that is not the sender's, or a router's message.
    ForgedSource = "forged_source",
    /// Not a well-formed frame.
    Malformed = "malformed",
    /// An offload header that does not match the packet behind it.
    BadOffload = "bad_offload",
    /// Neither ARP nor IP.
    UnsupportedProtocol = "unsupported_protocol",
    /// Longer than the MTU allows, or than the receiver's whole ring.
    TooLarge = "too_large",
    /// Nobody has the destination address.
    UnknownDestination = "unknown_destination",
    /// The destination belongs to another network.
    Isolated = "isolated",
    /// Broadcast or multicast, or an announcement, that nobody needs: the switch knows every address.
    NotForwarded = "not_forwarded",
    /// The receiver gave no buffers for it.
    RingFull = "ring_full",
    /// Above the guest's limit.
    RateLimited = "rate_limited",
    /// The receiver has ended.
    Closed = "closed",
    /// The host's network refused it.
    Uplink = "uplink",
}

/// A counter for each [`DropReason`].
#[derive(Debug, Default)]
pub struct Drops {
    counts: [AtomicU64; DropReason::ALL.len()],
}

impl Drops {
    #[inline]
    pub(crate) fn count(&self, reason: DropReason) {
        if let Some(counter) = self.counts.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Frames dropped for this reason.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.counts.get(reason as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Frames dropped.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    /// The reasons for which frames were dropped, and how many.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().map(|reason| (reason, self.get(reason))).filter(|&(_, count)| count > 0)
    }
}

/// Frames and bytes (of frames, without offload headers) of one direction, and what was dropped.
#[derive(Debug, Default)]
pub struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    /// What was dropped.
    pub drops: Drops,
}

impl Direction {
    /// Frames.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Bytes of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Adds a batch. Only one thread at a time, under the lock of the ring concerned.
    #[inline]
    pub(crate) fn add(&self, frames: u64, bytes: u64) {
        self.frames.store(self.frames().wrapping_add(frames), Ordering::Relaxed);
        self.bytes.store(self.bytes().wrapping_add(bytes), Ordering::Relaxed);
    }

    /// Adds a batch; any thread.
    #[inline]
    pub(crate) fn add_shared(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Counters of one port, or of the uplink. For a port, `rx` is towards the guest; for the uplink, from the host.
#[derive(Debug, Default)]
pub struct Counters {
    /// Received.
    pub rx: Direction,
    /// Sent.
    pub tx: Direction,
}
