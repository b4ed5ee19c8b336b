//! The table of connections: how one is found by its 4-tuple, and how it comes and goes.
//!
//! A connection stays until both sides are done with it: its protocol, and the program. In the index it stands only as
//! long as its 4-tuple is taken.

use super::flow::Flow;
use super::{Stack, unmapped};
use crate::net::frame::{FlowKey, Mac};
use crate::net::neighbors::Folding;
use alloc::boxed::Box;
use core::hash::Hasher;
use smoltcp::socket::tcp;

/// Most connections kept in TIME-WAIT. The oldest go first: what comes late for them is answered by a reset. None is kept whose other side is on
/// the link, which is the host or a neighbour: nothing comes late from there.
const TIME_WAIT: usize = 512;

impl Stack {
    #[inline]
    pub(super) fn find(&self, key: &FlowKey) -> Option<usize> {
        let flows = &self.flows;
        self.index.find(hash(self.seed, key), |&id| flows[id as usize].key == *key).map(|&id| id as usize)
    }

    /// Puts a connection into the tables.
    pub(super) fn insert(&mut self, mut flow: Box<Flow>, key: FlowKey, mac: Mac) -> usize {
        if !self.is_on_link(&key) {
            // Beyond the link there are others who want their share. On it, the switch loses nothing.
            flow.socket().set_congestion_control(tcp::CongestionControl::Reno);
        }
        let timer = self.timers.insert(0);
        (flow.key, flow.mac, flow.timer, flow.indexed) = (key, mac, timer, true);
        let id = self.flows.insert(flow);
        *self.timers.value_mut(timer) = id as u32;
        self.enter(id);
        self.device.counters.connections_total += 1;
        id
    }

    /// Puts a connection into the index.
    pub(super) fn enter(&mut self, id: usize) {
        let (flows, seed) = (&self.flows, self.seed);
        let hash_of = |id: usize| hash(seed, &flows[id].key);
        self.index.insert_unique(hash_of(id), id as u32, |&id| hash_of(id as usize));
    }

    /// Takes a connection out of the index: what comes for its addresses is for a new one.
    pub(super) fn unindex(&mut self, id: usize) {
        let flow = &mut *self.flows[id];
        if core::mem::replace(&mut flow.indexed, false) {
            let hash = hash(self.seed, &flow.key);
            if let Ok(entry) = self.index.find_entry(hash, |&other| other as usize == id) {
                entry.remove();
            }
        }
    }

    /// After a change: hands an established connection to its listener, and lets one go that nobody needs.
    pub(super) fn settle(&mut self, id: usize) {
        let flow = &mut *self.flows[id];
        let state = flow.socket().state();
        if let Some(port) = flow.listener {
            match state {
                tcp::State::Established | tcp::State::CloseWait if !flow.queued => {
                    flow.queued = true;
                    flow.socket().set_timeout(None);
                    if let Some(listener) = self.listeners.get_mut(&port) {
                        listener.ready.push_back(id);
                        if let Some(waker) = listener.waker.take() {
                            waker.wake();
                        }
                    }
                }
                // Reset, or given up, before it was established: a socket that listens would go on to do so.
                tcp::State::Listen | tcp::State::Closed if !flow.queued => self.remove(id),
                _ => {}
            }
            return;
        }
        if flow.orphan {
            let socket = flow.socket();
            // Nobody reads what still comes.
            while matches!(socket.recv(|bytes| (bytes.len(), bytes.len())), Ok(1..)) {}
            match state {
                tcp::State::Closed if socket.remote_endpoint().is_none() => self.remove(id),
                tcp::State::TimeWait if !flow.time_wait => {
                    flow.time_wait = true;
                    // The protocol's own timer ends it.
                    flow.socket().set_timeout(None);
                    self.time_wait.push_back(id as u32);
                    if self.time_wait.len() > TIME_WAIT
                        && let Some(oldest) = self.time_wait.pop_front()
                        && let Some(flow) = self.flows.get_mut(oldest as usize)
                        && core::mem::replace(&mut flow.time_wait, false)
                    {
                        self.remove(oldest as usize);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether the other side is on the link.
    pub(super) fn is_on_link(&self, key: &FlowKey) -> bool {
        self.device.neighbors.addresses().is_on_link(unmapped(key.remote))
    }

    /// Forgets a connection.
    pub(super) fn remove(&mut self, id: usize) {
        self.unindex(id);
        let flow = self.flows.remove(id);
        self.timers.remove(flow.timer);
        if let Some(listener) = flow.listener.and_then(|port| self.listeners.get_mut(&port)) {
            listener.pending -= 1;
            listener.ready.retain(|&ready| ready != id);
        }
        if flow.time_wait {
            self.time_wait.retain(|&waiting| waiting as usize != id);
        }
        self.kept.keep(flow);
    }
}

#[inline]
fn hash(seed: u64, key: &FlowKey) -> u64 {
    let mut hasher = Folding::new(seed);
    let remote = u128::from_ne_bytes(key.remote);
    hasher.fold(remote as u64 ^ u64::from(key.local[15]).rotate_left(20));
    hasher.fold((remote >> 64) as u64 ^ u64::from(key.remote_port) ^ u64::from(key.local_port) << 16);
    hasher.finish()
}
