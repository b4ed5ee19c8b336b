//! Frames out: what connections and other sockets have to send, and what is due.
//!
//! Nothing is sent for which the ring has no room; it stays in its socket, and comes first in the next round.

use super::{OTHERS, Stack, instant, nanos};
use smoltcp::iface::PollResult;
use smoltcp::socket::tcp;

/// Segments that one connection sends before others have their turn.
const BURST: usize = 32;

impl Stack {
    /// Notes that a connection may have something to send, or another deadline.
    #[inline]
    pub(crate) fn mark(&mut self, id: usize) {
        if let Some(flow) = self.flows.get_mut(id)
            && !core::mem::replace(&mut flow.dirty, true)
        {
            self.dirty.push(id as u32);
        }
    }

    /// Sends what connections have to send, and what is due.
    pub(crate) fn transmit(&mut self, now: u64) {
        self.now = instant(now);
        while let Some(key) = self.timers.pop(now) {
            match *self.timers.value_mut(key) {
                OTHERS => self.others_dirty = true,
                id => self.mark(id as usize),
            }
        }
        if self.others_dirty || !self.udp_dirty.is_empty() {
            self.transmit_others();
        }
        let mut list = core::mem::replace(&mut self.dirty, core::mem::take(&mut self.spare));
        let mut at = 0;
        while let Some(&id) = list.get(at) {
            if self.device.exhausted && !self.make_room() {
                break;
            }
            at += 1;
            self.transmit_flow(id as usize);
        }
        // What found no room comes again first.
        for &id in &list[at..] {
            self.dirty.push(id);
        }
        list.clear();
        self.spare = list;
        self.device.transmitter.publish();
    }

    #[inline]
    fn transmit_flow(&mut self, id: usize) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let flow = &mut **flow;
        if !core::mem::replace(&mut flow.dirty, false) {
            return;
        }
        self.device.destination = Some(flow.mac);
        self.device.last = None;
        let mut idle_polls = 0;
        for _ in 0..BURST {
            match self.interface.poll_at(self.now, &flow.sockets) {
                Some(at) if at <= self.now => {
                    if self.interface.poll_egress(self.now, &mut self.device, &mut flow.sockets)
                        == PollResult::None
                    {
                        idle_polls += 1;
                        if self.device.exhausted || idle_polls == 3 {
                            break;
                        }
                    }
                }
                Some(at) => {
                    self.timers.set(flow.timer, nanos(at));
                    self.finish_flow(id);
                    // Its last acknowledgement is sent.
                    if let Some(flow) = self.flows.get(id)
                        && flow.time_wait
                        && self.is_on_link(&flow.key)
                    {
                        self.remove(id);
                    }
                    return;
                }
                None => {
                    self.timers.set(flow.timer, u64::MAX);
                    self.finish_flow(id);
                    return;
                }
            }
        }
        // It has more to send, another time.
        self.mark(id);
        self.finish_flow(id);
    }

    #[inline]
    fn finish_flow(&mut self, id: usize) {
        if let Some(segment) = self.device.last.take() {
            self.awaited = self.await_acknowledgement(id, segment);
        }
        let flow = &mut *self.flows[id];
        let closed = flow.socket().state() == tcp::State::Closed && flow.socket().remote_endpoint().is_none();
        if closed {
            self.unindex(id);
        }
        let flow = &*self.flows[id];
        if flow.orphan || (flow.listener.is_some() && !flow.queued) {
            self.settle(id);
        }
    }

    fn transmit_others(&mut self) {
        self.device.destination = None;
        if core::mem::take(&mut self.others_dirty) {
            loop {
                let result = self.interface.poll_egress(self.now, &mut self.device, &mut self.others);
                if result == PollResult::None || self.device.exhausted {
                    break;
                }
            }
            match self.interface.poll_at(self.now, &self.others) {
                Some(at) => self.timers.set(self.others_timer, nanos(at).max(nanos(self.now) + 1_000_000)),
                None => self.timers.set(self.others_timer, u64::MAX),
            }
        }
        for port in core::mem::take(&mut self.udp_dirty) {
            let Some(sockets) = self.udp.get_mut(&port) else { continue };
            while self.interface.poll_egress(self.now, &mut self.device, sockets) != PollResult::None {}
            if self.device.exhausted {
                self.udp_dirty.push(port);
            }
        }
    }

    /// Gets room in the transmit ring: takes back what was sent, or has the ring served. False if it stays full: then
    /// an interrupt says when it is worth another try.
    #[cold]
    pub(super) fn make_room(&mut self) -> bool {
        let device = &mut self.device;
        device.transmitter.reclaim();
        if !device.transmitter.has_room(device.with_large) {
            device.transmitter.publish();
            crate::hypercall::doorbell(foraker_abi::hypercall::DEVICE_NET);
            device.transmitter.reclaim();
        }
        let room = device.transmitter.has_room(device.with_large);
        device.exhausted = !room;
        if self.want_tx_interrupt == room {
            self.want_tx_interrupt = !room;
            device.transmitter.want_interrupts(!room);
            // What came back before the VMM could see the wish brings no interrupt.
            device.transmitter.reclaim();
            return device.transmitter.has_room(device.with_large);
        }
        room
    }

    /// Rings the doorbell if something was sent and the VMM asks for it.
    #[inline]
    pub(crate) fn kick(&mut self) {
        if self.device.transmitter.wants_doorbell() {
            crate::hypercall::doorbell_async();
        }
    }

    /// Whether the VMM has taken everything that was sent, and nothing waits.
    pub(crate) fn is_flushed(&self) -> bool {
        self.device.transmitter.is_empty() && self.dirty.is_empty()
    }
}
