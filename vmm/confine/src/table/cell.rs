//! The threads of a cell.

use super::group::*;
use crate::call::{Condition, Group, Rule, call, rule};

/// Runs guests, and serves their rings.
pub(crate) const WORKER: &[Group] = &[
    ENTER_GUEST,
    MACHINES,
    FILL_MEMORY,
    VIGIL,
    FRAMES,
    CALL_WORKERS,
    CONSOLES,
    CONTENTION,
    LOOK,
    YIELD,
    EVERY,
];

/// Serves the rings while guests compute. A guest that it finds at fault it ends, and gives its machine away.
pub(crate) const UPLINK: &[Group] =
    &[FRAMES, POLL, CALL_WORKERS, CONSOLES, CONTENTION, LOOK, YIELD, SCHEDULING, EVERY];

/// Makes machines ahead of need, and starts of guests: it enters machines that no guest has.
pub(crate) const MACHINE_MAKER: &[Group] = &[MACHINES, ENTER_GUEST, FILL_MEMORY, LOOK, EVERY];

/// Fills pages that somebody waits for.
pub(crate) const PAGER: &[Group] = &[FILL_MEMORY, CONSOLES, READ, EVERY];

/// Tells the supervisor how guests end, and gives back what they had.
pub(crate) const ENDS: &[Group] = &[CONSOLES, CHANNEL, EVERY];

/// Tells the supervisor what guests ask for.
pub(crate) const DEMAND: &[Group] = &[SLEEP, CHANNEL, EVERY];

/// Tells the host who its neighbours are.
pub(crate) const NEIGHBOURS: &[Group] = &[super::group::NEIGHBOURS, INTERFACE, EVERY];

/// Passes connections of published ports on to guests.
pub(crate) const PUBLISHED: &[Group] = &[RELAY, EVERY];

/// Has somebody look into a guest: reads and writes the state of its cores, gives it a copy of what it shares, and talks on a stream
/// that was handed over. Lets guests go on, and tells the end of those whose core was taken.
pub(crate) const DEBUG: &[Group] =
    &[CORES, ENTER_GUEST, CHANNEL, LOOK_ON, CALL_WORKERS, CONSOLES, LOOK, SLEEP, EVERY];

/// The main thread of a cell: does what the supervisor says. Of what [`Kind::Published`](crate::Kind::Published) and [`Kind::Debug`](crate::Kind::Debug) do
/// nothing is left out, as those threads are started by this one, and inherit its filter.
pub(crate) const CHANNEL_READER: &[Group] = &[
    MACHINES,
    ENTER_GUEST,
    FILL_MEMORY,
    CHANNEL,
    HANDED_OVER,
    LOOK_ON,
    CALL_WORKERS,
    CONSOLES,
    READ_FILES,
    TEMPLATES,
    LISTEN,
    RELAY,
    LOOK,
    SLEEP,
    START_THREADS,
    RESTRICT_THREADS,
    END_CELL,
    EVERY,
];

/// The main thread of `vmm launch`: starts guests, waits for their ends, and reports. Its threads are all there by then: machines are not kept, so that no
/// helpers give them back.
pub(crate) const LAUNCH: &[Group] = &[
    MACHINES,
    ENTER_GUEST,
    FILL_MEMORY,
    POLL,
    CALL_WORKERS,
    CONSOLES,
    READ_FILES,
    TEMPLATES,
    LOOK,
    END_CELL,
    WRITE_REPORT,
    EVERY,
];

/// Waiting for several descriptors, or a signal.
const POLL: Group = &[call!(SYS_ppoll), call!(SYS_read)];

/// Reading what wakes a thread.
const READ: Group = &[call!(SYS_read)];

/// Writing a report or a trace to descriptors that are open. What a socket or a terminal is asked before, none of which changes anything.
const WRITE_REPORT: Group = &[call!(SYS_writev), call!(SYS_ioctl, TERMINAL)];

const TERMINAL: &[Rule] = &[rule!("TCGETS", Condition::is(1, 0x5401))];
