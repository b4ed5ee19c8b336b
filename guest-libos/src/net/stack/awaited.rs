//! The acknowledgement for which the guest need not be woken.
//!
//! Often the last thing that a guest sends before it rests is a segment whose acknowledgement changes nothing for its
//! tasks. The VMM is told which, and lets the guest rest on when it comes.

use super::{Stack, nanos};
use crate::net::frame::Segment;
use smoltcp::socket::tcp;

/// How long a guest rests at most, nanoseconds, with the acknowledgement of a beginning or an end of a connection in its ring.
const SOON: u64 = 1_000_000_000;

/// An acknowledgement for which the guest need not be woken.
#[derive(Clone, Copy)]
pub(super) struct Awaited {
    /// The connection.
    id: usize,
    segment: Segment,
    state: tcp::State,
    /// When the connection wants to be looked at, though it has come.
    until: u64,
}

impl Stack {
    /// Says what to expect after a connection has sent this segment last, if its acknowledgement wakes nobody.
    pub(super) fn await_acknowledgement(&mut self, id: usize, segment: Segment) -> Option<Awaited> {
        let later = nanos(self.now) + SOON;
        let flow = &mut *self.flows[id];
        let socket = flow.socket();
        let (state, timeout) = (socket.state(), socket.timeout().is_some() || socket.keep_alive().is_some());
        let until = match state {
            // The other side has begun, and is heard when it goes on.
            tcp::State::SynReceived => {
                let listener = self.listeners.get(&flow.listener?)?;
                listener.client_speaks_first.then_some(later)?
            }
            tcp::State::Established if !timeout => u64::MAX,
            // All that is left to do is to forget it.
            tcp::State::LastAck => later,
            _ => return None,
        };
        Some(Awaited { id, segment, state, until })
    }

    /// The acknowledgement for which this guest need not be woken, and until when it may rest once that has come: as
    /// [`foraker_abi::control::CoreControl`] wants them.
    pub(crate) fn awaited(&mut self) -> Option<(u64, u64)> {
        let Awaited { id, segment, state, until } = self.awaited?;
        if !self.dirty.is_empty() || !self.udp_dirty.is_empty() {
            return None;
        }
        let flow = self.flows.get_mut(id).filter(|flow| {
            (flow.key.local_port, flow.key.remote_port) == (segment.local_port, segment.remote_port)
                && !flow.waits
        });
        let timer = flow.and_then(|flow| {
            let (timer, socket) = (flow.timer, flow.socket());
            // In the last state of a connection there is its end besides.
            let unacknowledged = state != tcp::State::Established || socket.send_queue() == segment.data;
            (socket.state() == state && unacknowledged).then_some(timer)
        });
        let Some(timer) = timer else {
            self.awaited = None;
            return None;
        };
        let until = self.timers.next_without(timer).unwrap_or(u64::MAX).min(until);
        Some((foraker_abi::control::awaited(segment.remote_port, segment.local_port, segment.end), until))
    }
}
