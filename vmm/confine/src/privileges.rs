//! Capabilities, and what cannot be got back.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// What the uplink's thread asks for when others wait for it (a nice value of -10), as the limit counts. It gives it back when it computes, and takes it again.
/// The limit is a right that is bounded; the capability, which is kept where the limit cannot be raised, is not.
const NICE: libc::rlim_t = 20 + 10;

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers.
    if unsafe { libc::prctl(option, value, none, none, none) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives up, for this thread and all that it starts, what set-up does not need either: to gain rights by running a program, to be looked into by other
/// processes of the same user, memory that can be written and executed, capabilities that would come back.
pub(crate) fn give_up() -> io::Result<()> {
    give_up_gains()?;
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    bound(&CapsHashSet::new())
}

/// The same, for who runs programs: these capabilities come back to them, if they are there, and no others.
pub(crate) fn give_up_but(kept: &[Capability]) -> io::Result<()> {
    give_up_gains()?;
    let own: CapsHashSet = kept.iter().copied().collect();
    bound(&own)?;
    let inheritable = caps::read(None, CapSet::Inheritable).map_err(io::Error::other)?;
    let inheritable = inheritable.intersection(&own).copied().collect();
    caps::set(None, CapSet::Inheritable, &inheritable).map_err(io::Error::other)?;
    // Ambient ones go with those that they must be among.
    keep(kept.iter())
}

fn give_up_gains() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    /// `linux/prctl.h`, from Linux 6.3 on.
    const PR_SET_MDWE: libc::c_int = 65;
    const PR_MDWE_REFUSE_EXEC_GAIN: libc::c_ulong = 1;
    if let Err(e) = prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN) {
        log::info!("memory is kept from becoming executable by filters alone: {e}");
    }
    Ok(())
}

/// Empties the bounding set but for these, if this process may.
fn bound(kept: &CapsHashSet) -> io::Result<()> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(io::Error::other)? {
        for capability in caps::all().difference(kept) {
            let dropped = caps::drop(None, CapSet::Bounding, *capability);
            // One that this kernel does not know cannot be had either.
            if dropped.is_err() && caps::has_cap(None, CapSet::Bounding, *capability).unwrap_or(false) {
                return dropped.map_err(io::Error::other);
            }
        }
    }
    Ok(())
}

/// Lets threads of this process have the weight that the uplink's asks for, if that can be had. Returns whether they may go before others without a capability
/// for it.
pub(crate) fn allow_precedence() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NICE, &raw mut limit) } != 0 {
        return false;
    }
    let wanted = libc::rlimit { rlim_cur: limit.rlim_cur.max(NICE), rlim_max: limit.rlim_max.max(NICE) };
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NICE, &raw const wanted) == 0 }
}

/// Keeps of the calling thread's capabilities none but these.
pub(crate) fn keep<'a>(kept: impl Iterator<Item = &'a Capability>) -> io::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = kept.copied().filter(|c| permitted.contains(c)).collect();
    // Effective ones first: they must be permitted.
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)
}
