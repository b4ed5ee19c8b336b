//! Threads that give way to guests.

use foraker_confine::Kind;

/// A tenth of the weight of a thread that computes, and a hundredth of one that guests wait for.
const NICE: libc::c_int = 10;

/// The calling thread, and those that it starts, are of a kind that runs when no guest, and nothing that guests wait for, wants to.
///
/// What clients and the registry are told may take a moment longer; a guest's packet may not. A list of ten thousand guests takes tens of milliseconds of a
/// processor, which a thread of the same weight would be made to share.
pub fn enter(kind: Kind) {
    // SAFETY: a call with numbers; on Linux it is about the calling thread alone. Whoever asks for less is never refused.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    foraker_confine::enter(kind);
}
