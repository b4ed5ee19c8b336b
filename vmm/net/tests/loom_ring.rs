//! The protocol of a ring under every interleaving and every reordering that its memory orderings allow.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p foraker-net --test loom_ring`. The device's side is the code that runs over
//! guests' memory; the driver's side is written here from the standard.
#![cfg(loom)]

use std::collections::VecDeque;

use foraker_abi::ring::{Descriptor, NO_INTERRUPT, NO_NOTIFY};
use foraker_net::ring::{RingMemory, SplitQueue};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};
use loom::thread;

/// Slots that the model uses; loom's time grows with each.
const SLOTS: usize = 2;

/// A ring of two slots. A "buffer" is one word, so that the model checks that its content is seen, too.
#[derive(Default)]
struct Ring {
    avail_flags: AtomicU16,
    avail_index: AtomicU16,
    avail: [AtomicU16; SLOTS],
    used_flags: AtomicU16,
    used_index: AtomicU16,
    used: [AtomicU32; SLOTS],
    buffers: [AtomicU32; SLOTS],
    doorbell: AtomicU16,
    interrupt: AtomicU16,
}

fn slot(index: u16) -> usize {
    usize::from(index) % SLOTS
}

struct Shared(Arc<Ring>);

impl RingMemory for Shared {
    fn avail_index(&self) -> u16 {
        self.0.avail_index.load(Ordering::Acquire)
    }
    fn avail_flags(&self) -> u16 {
        self.0.avail_flags.load(Ordering::Relaxed)
    }
    fn avail_entry(&self, index: u16) -> u16 {
        self.0.avail[slot(index)].load(Ordering::Relaxed)
    }
    fn descriptor(&self, index: u16) -> Descriptor {
        Descriptor { address: 0, length: 1 + u32::from(index), flags: 0, next: 0 }
    }
    fn set_used_element(&self, index: u16, id: u32, _length: u32) {
        self.0.used[slot(index)].store(id, Ordering::Relaxed);
    }
    fn set_used_index(&self, index: u16) {
        self.0.used_index.store(index, Ordering::Release);
    }
    fn set_used_flags(&self, flags: u16) {
        self.0.used_flags.store(flags, Ordering::Relaxed);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The driver's side.
struct Driver {
    ring: Arc<Ring>,
    available: u16,
    used: u16,
}

impl Driver {
    /// Makes a buffer available and rings the doorbell if nobody looks.
    fn send(&mut self, value: u32) {
        let at = slot(self.available);
        self.ring.buffers[at].store(value, Ordering::Relaxed);
        self.ring.avail[at].store(u16::try_from(at).unwrap(), Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        self.ring.avail_index.store(self.available, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.ring.used_flags.load(Ordering::Relaxed) & NO_NOTIFY == 0 {
            self.ring.doorbell.store(1, Ordering::Release);
        }
    }

    fn completed(&mut self) -> Option<(u32, u32)> {
        if self.ring.used_index.load(Ordering::Acquire) == self.used {
            return None;
        }
        let at = slot(self.used);
        self.used = self.used.wrapping_add(1);
        let id = self.ring.used[at].load(Ordering::Relaxed);
        Some((id, self.ring.buffers[at].load(Ordering::Relaxed)))
    }
}

/// Takes everything that waits; what was in the buffers.
fn drain(queue: &mut SplitQueue<Shared>) -> Vec<u32> {
    let mut seen = Vec::new();
    while queue.waiting() > 0 || queue.refresh().unwrap() > 0 {
        let (head, descriptor) = queue.peek(0).unwrap();
        assert_eq!(descriptor.length, 1 + u32::from(head));
        seen.push(queue.memory().0.buffers[slot(head)].load(Ordering::Relaxed));
        queue.set_used(0, head, 0);
        queue.complete(1);
    }
    queue.publish();
    seen
}

/// A buffer that is seen to be available is seen with its content, and in order.
#[test]
fn what_is_available_is_complete() {
    loom::model(|| {
        let ring = Arc::new(Ring::default());
        let mut driver = Driver { ring: ring.clone(), available: 0, used: 0 };
        let guest = thread::spawn(move || {
            driver.send(11);
            driver.send(22);
        });
        let mut queue = SplitQueue::new(Shared(ring), 0);
        let mut seen = drain(&mut queue);
        assert!([11, 22].starts_with(&seen));
        guest.join().unwrap();
        seen.extend(drain(&mut queue));
        assert_eq!(seen, [11, 22]);
    });
}

/// A device that stops looking either finds the buffer at its last look, or the driver rings the doorbell.
#[test]
fn no_doorbell_is_lost() {
    loom::model(|| {
        let ring = Arc::new(Ring::default());
        let mut queue = SplitQueue::new(Shared(ring.clone()), 0);
        queue.set_looking(true);
        let mut driver = Driver { ring: ring.clone(), available: 0, used: 0 };
        let guest = thread::spawn(move || driver.send(33));
        let mut seen = drain(&mut queue);
        if queue.set_looking(false) {
            seen.extend(drain(&mut queue));
        }
        guest.join().unwrap();
        // Asleep until the doorbell rings.
        if seen.is_empty() {
            assert_eq!(ring.doorbell.load(Ordering::Acquire), 1, "asleep, with a buffer waiting");
            seen.extend(drain(&mut queue));
        }
        assert_eq!(seen, [33]);
    });
}

/// A driver that asks for interrupts again either finds the used buffer at its last look, or is interrupted.
#[test]
fn no_interrupt_is_lost() {
    loom::model(|| {
        let ring = Arc::new(Ring::default());
        let mut driver = Driver { ring: ring.clone(), available: 0, used: 0 };
        driver.ring.avail_flags.store(NO_INTERRUPT, Ordering::Relaxed);
        driver.send(44);
        let device_ring = ring.clone();
        let device = thread::spawn(move || {
            let mut queue = SplitQueue::new(Shared(device_ring.clone()), 0);
            queue.refresh().unwrap();
            let (head, _) = queue.peek(0).unwrap();
            device_ring.buffers[slot(head)].store(55, Ordering::Relaxed);
            queue.set_used(0, head, 0);
            queue.complete(1);
            if queue.publish() && queue.interrupt_wanted() {
                device_ring.interrupt.store(1, Ordering::Release);
            }
        });
        let mut got: VecDeque<_> = driver.completed().into_iter().collect();
        ring.avail_flags.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        got.extend(driver.completed());
        device.join().unwrap();
        if got.is_empty() {
            assert_eq!(ring.interrupt.load(Ordering::Acquire), 1, "asleep, with a frame received");
            got.extend(driver.completed());
        }
        assert_eq!(got, [(0, 55)]);
    });
}
