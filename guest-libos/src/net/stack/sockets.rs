//! What sockets ask of the stack: to listen, to connect, and to be done with a connection.

use super::flow::{Buffers, Flow, HANDSHAKE};
use super::{Stack, mapped};
use crate::net::error::Error;
use crate::net::frame::{FlowKey, Mac};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::task::Waker;
use smoltcp::time::Duration;
use smoltcp::wire::IpAddress;

/// How long a connection that the program gave up may wait for the other side.
const LINGER: Duration = Duration::from_secs(30);

/// Who takes connections at a port.
pub(super) struct Listener {
    pub(super) buffers: Buffers,
    pub(super) backlog: usize,
    pub(super) client_speaks_first: bool,
    /// Connections that are not accepted yet, established or not.
    pub(super) pending: usize,
    pub(super) ready: VecDeque<usize>,
    pub(super) waker: Option<Waker>,
}

impl Stack {
    pub(crate) fn listen(
        &mut self,
        port: u16,
        backlog: usize,
        client_speaks_first: bool,
        buffers: Buffers,
    ) -> Result<(), Error> {
        if port == 0 || backlog == 0 || buffers.receive == 0 || buffers.send == 0 || buffers.receive > 1 << 30
        {
            return Err(Error::Invalid);
        }
        if self.listeners.contains_key(&port) {
            return Err(Error::InUse);
        }
        let listener = Listener {
            buffers,
            backlog,
            client_speaks_first,
            pending: 0,
            ready: VecDeque::new(),
            waker: None,
        };
        self.listeners.insert(port, listener);
        Ok(())
    }

    /// The next connection at `port`; if there is none, `waker` is woken when there is.
    pub(crate) fn accept(&mut self, port: u16, waker: &Waker) -> Option<usize> {
        let listener = self.listeners.get_mut(&port)?;
        let Some(id) = listener.ready.pop_front() else {
            if !listener.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                listener.waker = Some(waker.clone());
            }
            return None;
        };
        listener.pending -= 1;
        self.flows[id].listener = None;
        Some(id)
    }

    /// Closes a listener; connections that it has not accepted are reset.
    pub(crate) fn unlisten(&mut self, port: u16) {
        let Some(mut listener) = self.listeners.remove(&port) else { return };
        if listener.pending == 0 {
            return;
        }
        listener.ready.clear();
        let pending: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| flow.listener == Some(port)).map(|(id, _)| id).collect();
        for id in pending {
            let flow = &mut *self.flows[id];
            flow.listener = None;
            flow.orphan = true;
            flow.socket().abort();
            self.mark(id);
        }
    }

    /// Starts a connection to `remote`, whose next hop is at `mac`.
    pub(crate) fn connect(
        &mut self,
        remote: IpAddr,
        port: u16,
        mac: Mac,
        buffers: Buffers,
    ) -> Result<usize, Error> {
        if port == 0 {
            return Err(Error::Invalid);
        }
        let own = self.device.neighbors.addresses();
        let local = match remote {
            IpAddr::V4(_) => IpAddr::V4(own.v4),
            IpAddr::V6(_) => IpAddr::V6(own.v6),
        };
        let mut key =
            FlowKey { remote: mapped(remote), local: mapped(local), remote_port: port, local_port: 0 };
        key.local_port = self.free_port(|stack, port| {
            let key = FlowKey { local_port: port, ..key };
            stack.find(&key).is_none() && !stack.listeners.contains_key(&port)
        })?;
        let mut flow = self.kept.take(buffers);
        let socket = flow.socket();
        socket.set_timeout(Some(HANDSHAKE));
        let endpoint = (IpAddress::from(remote), port);
        let local_endpoint = (IpAddress::from(local), key.local_port);
        socket.connect(self.interface.context(), endpoint, local_endpoint).map_err(|_| Error::Unreachable)?;
        let id = self.insert(flow, key, mac);
        self.mark(id);
        Ok(id)
    }

    /// A port of the dynamic range that `is_free`.
    pub(crate) fn free_port(&mut self, is_free: impl Fn(&Stack, u16) -> bool) -> Result<u16, Error> {
        for _ in 0..16384 {
            self.next_port = if self.next_port == u16::MAX { 49152 } else { self.next_port + 1 };
            if is_free(self, self.next_port) {
                return Ok(self.next_port);
            }
        }
        Err(Error::Exhausted)
    }

    #[inline]
    pub(crate) fn flow(&mut self, id: usize) -> &mut Flow {
        &mut self.flows[id]
    }

    /// The program no longer uses the connection: it is closed in order, or reset if `abort`.
    pub(crate) fn release(&mut self, id: usize, abort: bool) {
        let flow = &mut *self.flows[id];
        flow.orphan = true;
        let socket = flow.socket();
        if abort {
            socket.abort();
        } else {
            socket.close();
            socket.set_timeout(Some(LINGER));
        }
        self.settle(id);
        self.mark(id);
    }

    /// Asks who has the next hop to `address`.
    pub(crate) fn ask(&mut self, hop: IpAddr) {
        let question = self.device.neighbors.question(hop);
        self.device.send_frame(&question);
        self.device.transmitter.publish();
    }
}
