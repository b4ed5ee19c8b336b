//! The rings against a second implementation of the same standard, rust-vmm's `virtio-queue`: on every well-formed
//! ring both find the same chains and write the same used ring.

use foraker_abi::layout::{NET_RX, NET_TX};
use foraker_abi::ring::{AVAIL_OFFSET, DESC_NEXT, DESC_WRITE, Descriptor, QUEUE_SIZE, USED_OFFSET};
use foraker_net::ring::SplitQueue;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};

mod driver;
use driver::Guest;

/// One step of a driver and a device.
#[derive(Clone, Debug)]
enum Step {
    /// Makes a chain available: `(offset, length, writable)` of each descriptor.
    Available(Vec<(u16, u16, bool)>),
    /// The device takes this many, and reports these lengths.
    Take(Vec<u32>),
    /// The driver asks not to be interrupted, or to be.
    Interrupts(bool),
    /// The device looks, or not.
    Looking(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let chain = proptest::collection::vec((any::<u16>(), 1..=u16::MAX, any::<bool>()), 1..6);
    let step = prop_oneof![
        4 => chain.prop_map(Step::Available),
        4 => proptest::collection::vec(any::<u32>(), 0..8).prop_map(Step::Take),
        1 => any::<bool>().prop_map(Step::Interrupts),
        1 => any::<bool>().prop_map(Step::Looking),
    ];
    proptest::collection::vec(step, 1..300)
}

/// The same driver's actions on both memories.
struct Pair {
    guests: [Guest; 2],
    ring: u64,
    available: u16,
    next_descriptor: u16,
}

impl Pair {
    fn make_available(&mut self, chain: &[(u16, u16, bool)]) -> Vec<Descriptor> {
        let head = self.next_descriptor;
        let mut wanted = Vec::new();
        for (i, &(offset, length, writable)) in chain.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % QUEUE_SIZE;
            let flags =
                if i + 1 < chain.len() { DESC_NEXT } else { 0 } | if writable { DESC_WRITE } else { 0 };
            let descriptor = Descriptor {
                address: driver::TX_BUFFERS + u64::from(offset),
                length: length.into(),
                flags,
                next: self.next_descriptor,
            };
            let Descriptor { address, length, flags, next } = descriptor;
            for guest in &self.guests {
                guest.set_descriptor(self.ring, index, address, length, flags, next);
            }
            wanted.push(descriptor);
        }
        for guest in &self.guests {
            guest.set_available(self.ring, self.available, head);
            guest.set_available_index(self.ring, self.available.wrapping_add(1));
        }
        self.available = self.available.wrapping_add(1);
        wanted
    }

    fn used_ring(&self, guest: usize) -> Vec<u8> {
        let mut bytes = vec![0; 4 + 8 * usize::from(QUEUE_SIZE)];
        self.guests[guest].read(self.ring + USED_OFFSET, &mut bytes);
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_agree(steps in steps(), receive in any::<bool>(), start in prop::sample::select(vec![0_u16, 0xff80])) {
        let ring = if receive { NET_RX } else { NET_TX };
        let mut pair = Pair { guests: [Guest::new(2), Guest::new(3)], ring, available: start, next_descriptor: 0 };
        let theirs_memory = pair.guests[1].guest_memory();
        let mut ours = SplitQueue::new(pair.guests[0].memory().ring(ring).expect("a ring"), start);
        let mut theirs: Queue = Queue::new(QUEUE_SIZE).expect("a size");
        let (low, high) = (|a: u64| u32::try_from(a & 0xffff_ffff).ok(), |a: u64| u32::try_from(a >> 32).ok());
        theirs.set_desc_table_address(low(ring), high(ring));
        theirs.set_avail_ring_address(low(ring + AVAIL_OFFSET), high(ring + AVAIL_OFFSET));
        theirs.set_used_ring_address(low(ring + USED_OFFSET), high(ring + USED_OFFSET));
        theirs.set_next_avail(start);
        theirs.set_next_used(start);
        theirs.set_ready(true);
        for guest in &pair.guests {
            guest.set_available_index(ring, start);
            guest.word(ring + USED_OFFSET + 2).store(start, std::sync::atomic::Ordering::Relaxed);
        }
        // Descriptors of chains not yet taken.
        let (mut outstanding, mut interrupts) = (0, true);
        let mut chains = std::collections::VecDeque::new();

        for step in steps {
            match step {
                Step::Available(chain) => {
                    if outstanding + chain.len() <= usize::from(QUEUE_SIZE) {
                        outstanding += chain.len();
                        chains.push_back(pair.make_available(&chain));
                    }
                }
                Step::Take(lengths) => {
                    let mut published = false;
                    for length in lengths {
                        let theirs_next = theirs.pop_descriptor_chain(&theirs_memory);
                        let waits = ours.waiting() > 0 || ours.refresh().expect("well formed") > 0;
                        prop_assert_eq!(waits, theirs_next.is_some());
                        let Some(theirs_chain) = theirs_next else { break };
                        let wanted = chains.pop_front().expect("made available");
                        outstanding -= wanted.len();
                        // Ours.
                        let (head, mut descriptor) = ours.peek(0).expect("well formed");
                        let mut found = vec![descriptor];
                        while descriptor.flags & DESC_NEXT != 0 {
                            descriptor = ours.descriptor(descriptor.next).expect("well formed");
                            found.push(descriptor);
                        }
                        let parts = |d: &Descriptor| (d.address, d.length, d.flags);
                        let found: Vec<_> = found.iter().map(parts).collect();
                        prop_assert_eq!(&found, &wanted.iter().map(parts).collect::<Vec<_>>());
                        // Theirs.
                        prop_assert_eq!(theirs_chain.head_index(), head);
                        let theirs_found: Vec<_> =
                            theirs_chain.map(|d| (d.addr().0, d.len(), d.flags())).collect();
                        prop_assert_eq!(&found, &theirs_found);
                        ours.set_used(0, head, length);
                        ours.complete(1);
                        published = true;
                        theirs.add_used(&theirs_memory, head, length).expect("in memory");
                    }
                    prop_assert_eq!(ours.publish(), published);
                    // `virtio-queue` leaves the flag that asks for silence to its user.
                    prop_assert_eq!(ours.interrupt_wanted(), interrupts);
                    prop_assert_eq!(ours.completed(), theirs.next_used());
                }
                Step::Interrupts(wanted) => {
                    interrupts = wanted;
                    for guest in &pair.guests {
                        guest.want_interrupt(ring, wanted);
                    }
                }
                Step::Looking(true) => {
                    ours.set_looking(true);
                    theirs.disable_notification(&theirs_memory).expect("in memory");
                }
                Step::Looking(false) => {
                    let pending = theirs.enable_notification(&theirs_memory).expect("in memory");
                    prop_assert_eq!(ours.set_looking(false), pending);
                }
            }
            prop_assert_eq!(pair.used_ring(0), pair.used_ring(1));
        }
    }
}
