//! What is sent to a cell: at once by whoever says it, if it is short and the stream takes it, and otherwise by a thread that waits for the stream.
//!
//! A start or an answer that is waited for is not put off until another thread wakes up, and nobody who holds a lock waits for a cell.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use foraker_confine::Kind;

use crate::channel::{ToCell, encode};
use crate::handover;

/// Most guests of a message that is written at once: more take their time.
const SHORT: usize = 4;

/// The way to a cell.
pub(crate) trait Tell: std::fmt::Debug + Send {
    /// Has a message sent, without waiting for the cell.
    fn tell(&self, message: ToCell);
}

/// The stream to a cell's process. Dropped, what was said is sent and the stream is closed for writing.
#[derive(Debug)]
pub(crate) struct Outbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<ToCell>,
    /// The rest of one of which a part was sent.
    rest: Vec<u8>,
    /// The thread sends.
    busy: bool,
    closed: bool,
}

impl Outbox {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host has no thread to give.
    pub(crate) fn new(stream: UnixStream, name: String) -> io::Result<Outbox> {
        let shared = Arc::new(Shared { stream, queue: Mutex::default(), changed: Condvar::new() });
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name(name).spawn(move || {
            foraker_confine::enter(Kind::Sender);
            own.serve();
        })?;
        Ok(Outbox(shared))
    }
}

impl Tell for Outbox {
    fn tell(&self, message: ToCell) {
        let mut queue = self.0.lock();
        let idle = !queue.busy && queue.messages.is_empty() && queue.rest.is_empty();
        // A stream goes beside the first byte: whoever sends that may have to wait.
        let alone = !matches!(message, ToCell::Look { .. });
        if idle && alone && message.guests() <= SHORT {
            match encode(&message) {
                Ok(bytes) => queue.rest = self.0.send_some(bytes),
                Err(e) => return log::error!("a message to a cell cannot be written: {e}"),
            }
            if queue.rest.is_empty() {
                return;
            }
        } else {
            queue.messages.push_back(message);
        }
        drop(queue);
        self.0.changed.notify_one();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the stream takes without waiting. Returns the rest.
    fn send_some(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the buffer is valid for the call.
        let sent = unsafe { libc::send(self.stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        // What fails for another reason than a full stream fails again in the thread, which says so.
        bytes.drain(..usize::try_from(sent).unwrap_or(0).min(bytes.len()));
        bytes
    }

    /// Sends what was left for later, until nobody will say anything any more.
    fn serve(&self) {
        let mut queue = self.lock();
        loop {
            let rest = std::mem::take(&mut queue.rest);
            let message = if rest.is_empty() { queue.messages.pop_front() } else { None };
            if rest.is_empty() && message.is_none() {
                if queue.closed {
                    break;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.busy = true;
            drop(queue);
            let bytes = message.as_ref().map_or(Ok(rest), encode);
            let beside = match &message {
                Some(ToCell::Look { stream, .. }) => stream.as_ref(),
                _ => None,
            };
            let sent = bytes.and_then(|bytes| match beside {
                Some(beside) => handover::send(&self.stream, &bytes, beside),
                None => (&self.stream).write_all(&bytes),
            });
            queue = self.lock();
            queue.busy = false;
            if let Err(e) = sent {
                // Its reader sees the same, and acts.
                log::debug!("cannot write to a cell: {e}");
                break;
            }
        }
        // Nobody will write any more: the cell is to end.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::receive;

    #[test]
    fn everything_arrives_in_order_whoever_sends_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let outbox = Outbox::new(ours, "test".to_owned()).unwrap();
        // Far more than the stream takes, long and short ones mixed.
        let many = |n: u64| if n.is_multiple_of(3) { 5000 } else { 1 };
        for n in 0..300 {
            outbox.tell(ToCell::Stop { ids: vec![n; many(n)], kill: n % 2 == 0 });
        }
        drop(outbox);
        for n in 0..300 {
            let Ok(Some(ToCell::Stop { ids, kill })) = receive(&mut theirs) else { panic!("message {n}") };
            assert!(ids.len() == many(n) && ids[0] == n && kill == (n % 2 == 0), "message {n}");
        }
        assert!(receive::<ToCell>(&mut theirs).unwrap().is_none(), "closed");
    }

    #[test]
    fn a_stream_arrives_with_its_message_and_no_other() {
        use std::io::Read;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let outbox = Outbox::new(ours, "test".to_owned()).unwrap();
        let mut ends = Vec::new();
        for id in 0..20 {
            let (near, far) = UnixStream::pair().unwrap();
            outbox.tell(ToCell::Stop { ids: vec![id], kill: false });
            outbox.tell(ToCell::Look { id, how: crate::channel::Look::Debug, stream: Some(far) });
            ends.push(near);
        }
        drop(outbox);
        let mut channel = handover::Receiver::new(theirs);
        for (id, mut near) in (0..).zip(ends) {
            assert!(matches!(channel.receive(), Ok(Some(ToCell::Stop { ids, .. })) if ids == [id]));
            let Ok(Some(ToCell::Look { id: there, stream: Some(mut far), .. })) = channel.receive() else {
                panic!("message {id}")
            };
            assert_eq!(there, id);
            far.write_all(&[7]).unwrap();
            drop(far);
            let mut read = Vec::new();
            near.read_to_end(&mut read).unwrap();
            // Nobody else has kept the far end open.
            assert_eq!(read, [7]);
        }
        assert!(channel.receive().unwrap().is_none(), "closed");
    }

    #[test]
    fn a_short_message_is_there_when_it_was_said() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let outbox = Outbox::new(ours, "test".to_owned()).unwrap();
        theirs.set_nonblocking(true).unwrap();
        for id in 0..100 {
            outbox.tell(ToCell::Memory { id, bytes: 1, granted: true });
            assert!(
                matches!(receive(&mut theirs), Ok(Some(ToCell::Memory { id: there, .. })) if there == id)
            );
        }
        // A cell that has gone is nobody's trouble here.
        drop(theirs);
        outbox.tell(ToCell::Memory { id: 1, bytes: 1, granted: true });
        outbox.tell(ToCell::Memory { id: 1, bytes: 1, granted: true });
    }
}
