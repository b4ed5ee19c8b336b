//! A connection, and its memory, which the next one takes over.

use crate::net::frame::{FlowKey, Mac};
use crate::task::timers::Key;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::task::Waker;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Duration;

/// How long an attempt to connect, in either direction, may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(15);
/// Connections that are gone whose memory is kept for others. The one that went last is the next one's, so that a quiet server touches the same few
/// pages for each.
const KEPT_FLOWS: usize = 16;
/// Largest buffers, bytes, that are kept in this way.
const KEPT_BUFFERS: usize = 64 << 10;

/// A connection.
pub(crate) struct Flow {
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) key: FlowKey,
    pub(super) mac: Mac,
    pub(super) timer: Key,
    /// In the list of those that may have something to send.
    pub(super) dirty: bool,
    /// In the index.
    pub(super) indexed: bool,
    /// The program dropped it; it goes when its protocol is done.
    pub(super) orphan: bool,
    /// The port of the listener that has not accepted it yet.
    pub(super) listener: Option<u16>,
    /// Established and in the listener's queue.
    pub(super) queued: bool,
    pub(super) time_wait: bool,
    /// A task waits for room, or for what it wrote to arrive.
    pub(super) waits: bool,
}

impl Flow {
    /// Nobody's connection so far.
    fn new(buffers: Buffers) -> Flow {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(new_socket(buffers));
        Flow {
            sockets,
            handle,
            key: FlowKey::default(),
            mac: Mac::default(),
            timer: Key::default(),
            dirty: false,
            indexed: false,
            orphan: false,
            listener: None,
            queued: false,
            time_wait: false,
            waits: false,
        }
    }

    /// Nobody's again: what else there is of its connection goes when the socket opens.
    fn clear(&mut self) {
        (self.dirty, self.orphan, self.queued, self.time_wait, self.waits) =
            (false, false, false, false, false);
        self.listener = None;
        let socket = self.socket();
        socket.abort();
        as_new(socket);
    }

    #[inline]
    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// A task waits until the other side has taken something: the acknowledgement wakes it.
    pub(crate) fn wait_for_acknowledgement(&mut self, waker: &Waker) {
        self.waits = true;
        self.socket().register_send_waker(waker);
    }
}

/// Sizes of a connection's buffers, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    pub(in crate::net) receive: usize,
    pub(in crate::net) send: usize,
}

/// Connections that are gone, for what comes next.
pub(super) struct Kept {
    #[expect(clippy::vec_box, reason = "they stay where they are when they go to the stack and back")]
    flows: Vec<Box<Flow>>,
}

impl Kept {
    pub(super) const fn new() -> Self {
        Kept { flows: Vec::new() }
    }

    /// A connection without a partner: one that is kept, or a new one.
    pub(super) fn take(&mut self, buffers: Buffers) -> Box<Flow> {
        let suits = |flow: &mut Box<Flow>| {
            let socket = flow.socket();
            socket.recv_capacity() == buffers.receive && socket.send_capacity() == buffers.send
        };
        let kept = self.flows.iter_mut().rposition(suits).map(|at| self.flows.remove(at));
        kept.unwrap_or_else(|| Box::new(Flow::new(buffers)))
    }

    /// Keeps the memory of a connection that is gone, instead of one that went long ago.
    pub(super) fn keep(&mut self, mut flow: Box<Flow>) {
        let socket = flow.socket();
        if socket.recv_capacity() + socket.send_capacity() > KEPT_BUFFERS {
            return;
        }
        if self.flows.len() >= KEPT_FLOWS {
            self.flows.remove(0);
        }
        flow.clear();
        self.flows.push(flow);
    }
}

fn new_socket(buffers: Buffers) -> tcp::Socket<'static> {
    let receive = tcp::SocketBuffer::new(crate::heap::buffer(buffers.receive));
    let send = tcp::SocketBuffer::new(crate::heap::buffer(buffers.send));
    let mut socket = tcp::Socket::new(receive, send);
    as_new(&mut socket);
    socket
}

/// Sets all that a program may have set otherwise.
fn as_new(socket: &mut tcp::Socket<'static>) {
    // What tasks write in one round leaves together anyway.
    socket.set_nagle_enabled(false);
    // Likewise acknowledgements: they wait for the end of the round, and ride on what the task answered. A timer on top
    // would hold up a sender whose window is small still.
    socket.set_ack_delay(None);
    socket.set_keep_alive(None);
    socket.set_timeout(None);
    socket.set_congestion_control(tcp::CongestionControl::None);
}
