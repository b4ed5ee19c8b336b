//! The receive ring: frames for a guest, in mergeable buffers.

use std::ptr::NonNull;

use foraker_abi::net::{HEADER_SIZE, MAX_FRAME, MIN_RX_BUFFER};
use foraker_abi::ring::{DESC_NEXT, DESC_WRITE, Descriptor, QUEUE_SIZE};

use crate::memory::{Buffers, MappedRing};
use crate::parts::{Part, Parts};
use crate::ring::{FaultKind, Queue, RingFault, SplitQueue};

/// Offset of `num_buffers` in a header.
const NUM_BUFFERS: usize = HEADER_SIZE - 2;

/// Bytes of a scattered frame that the VMM keeps for itself to decide upon, header included.
pub(crate) const FRONT: usize = 140;
const _: () = assert!(FRONT < MIN_RX_BUFFER as usize);

/// Fewer buffers than this are few: what the largest frame fills where they have 2 KiB.
const FEW: u16 = 33;

/// Most buffers that a frame is scattered over.
const MAX_SLOTS: usize = 64;

/// Buffers of a guest, checked, into which a frame is about to be read.
#[derive(Debug)]
pub(crate) struct Slots {
    /// First descriptor and bytes of each.
    buffers: [(u16, usize); MAX_SLOTS],
    count: usize,
    /// Where the first one is.
    first: NonNull<u8>,
    /// Their memory, neighbours joined. Element 0 is for the first [`FRONT`] bytes, which go elsewhere.
    parts: [Part; MAX_SLOTS + 1],
    parts_used: usize,
}

// SAFETY: the addresses are used only under the lock of the half that they were taken from.
unsafe impl Send for Slots {}

impl Slots {
    pub(crate) fn new() -> Self {
        Slots {
            buffers: [(0, 0); MAX_SLOTS],
            count: 0,
            first: NonNull::dangling(),
            parts: [Part::EMPTY; MAX_SLOTS + 1],
            parts_used: 0,
        }
    }

    /// The places to read to, the first of them `front`.
    #[inline]
    pub(crate) fn parts(&mut self, front: &mut [u8; FRONT]) -> &[Part] {
        if let Some(place) = self.parts.first_mut() {
            *place = Part::new(front.as_mut_ptr(), FRONT);
        }
        self.parts.get(..self.parts_used).unwrap_or_default()
    }

    /// The places behind the front.
    #[inline]
    pub(crate) fn rest(&self) -> &[Part] {
        self.parts.get(1..self.parts_used).unwrap_or_default()
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is in the ring; the guest sees it after [`ReceiveQueue::publish`].
    Done,
    /// The guest has not given enough buffers. Nothing changed.
    Full,
    /// It would not fit if every buffer of the ring were free.
    TooLarge,
}

/// The receive ring of one guest.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    queue: SplitQueue<MappedRing>,
    memory: Buffers,
    /// Most buffers that the guest has given at a time.
    most: u16,
}

impl ReceiveQueue {
    pub(crate) fn new(memory: Buffers, ring: MappedRing, completed: u16) -> Self {
        ReceiveQueue { queue: SplitQueue::new(ring, completed), memory, most: 0 }
    }

    pub(crate) fn completed(&self) -> u16 {
        self.queue.completed()
    }

    /// How many buffers the guest had given, modulo 2^16, when that was looked at last.
    pub(crate) fn given(&self) -> u16 {
        self.queue.completed().wrapping_add(self.queue.waiting())
    }

    /// Puts a frame into the guest's buffers. `num_buffers` of its offload header is set here.
    ///
    /// # Errors
    /// The guest broke the ring.
    #[inline]
    pub(crate) fn deliver(&mut self, frame: Parts<'_>) -> Result<Delivery, RingFault> {
        self.place(frame).map_err(fault)
    }

    #[inline]
    fn place(&mut self, frame: Parts<'_>) -> Result<Delivery, FaultKind> {
        if self.queue.waiting() == 0 && self.queue.refresh()? == 0 {
            return Ok(Delivery::Full);
        }
        let total = frame.total();
        let (mut head, first, mut place) = self.buffer(0)?;
        let mut length = size(&first);
        if total > length && !self.suffices(total)? {
            return Ok(if self.queue.waiting() == QUEUE_SIZE { Delivery::TooLarge } else { Delivery::Full });
        }
        let mut source = frame.reader();
        let (header, mut left, mut count) = (place, total, 0_u16);
        loop {
            let chunk = left.min(length);
            // SAFETY: `place` is `length` writable bytes, checked by `buffer`.
            unsafe { source.copy(place, chunk) };
            self.queue.set_used(count, head, u32::try_from(chunk).unwrap_or(u32::MAX));
            left -= chunk;
            count += 1;
            if left == 0 {
                break;
            }
            // The guest may have changed its descriptors since their lengths were added up.
            if count == self.queue.waiting() {
                return Ok(Delivery::Full);
            }
            let (next_head, next, next_place) = self.buffer(count)?;
            (head, length, place) = (next_head, size(&next), next_place);
        }
        // SAFETY: the first buffer has at least `MIN_RX_BUFFER` bytes, so the whole header is in it.
        let field = unsafe { header.add(NUM_BUFFERS) };
        // SAFETY: two writable bytes, as above; there is no alignment to rely on.
        unsafe { field.cast::<[u8; 2]>().write_unaligned(count.to_le_bytes()) };
        self.queue.complete(count);
        Ok(Delivery::Done)
    }

    /// Whether more than a quarter of the buffers that the guest is used to give are free: what its neighbours may not fill, so that a
    /// flood from one of them does not keep out what comes from the host.
    pub(crate) fn has_room_for_neighbours(&mut self) -> bool {
        // A broken index counts as room: the delivery reports it.
        let Ok(waiting) = self.queue.refresh() else { return true };
        self.most = self.most.max(waiting);
        waiting > self.most / 4
    }

    /// Whether the guest has never given as many buffers at a time as the largest frame may need: it rests with few, and gives more when it is told.
    pub(crate) fn has_given_few(&mut self) -> bool {
        let Ok(waiting) = self.queue.refresh() else { return false };
        self.most = self.most.max(waiting);
        self.most < FEW
    }

    /// Lists the next buffers, enough for a frame of any size. False if there are not enough, or too many are needed.
    /// Nothing changes in the ring.
    ///
    /// # Errors
    /// The guest broke the ring.
    pub(crate) fn offer(&mut self, slots: &mut Slots) -> Result<bool, RingFault> {
        self.list(slots).map_err(fault)
    }

    fn list(&mut self, slots: &mut Slots) -> Result<bool, FaultKind> {
        (slots.count, slots.parts_used) = (0, 1);
        let (mut room, mut ahead) = (0, 0);
        while room < HEADER_SIZE + MAX_FRAME {
            if ahead == self.queue.waiting() && self.queue.refresh()? == ahead {
                return Ok(false);
            }
            let (head, descriptor, mut place) = self.buffer(ahead)?;
            let length = size(&descriptor);
            let Some(slot) = slots.buffers.get_mut(slots.count) else { return Ok(false) };
            *slot = (head, length);
            let mut behind_front = length;
            if slots.count == 0 {
                slots.first = place;
                behind_front -= FRONT;
                // SAFETY: the buffer has at least `MIN_RX_BUFFER` bytes, more than `FRONT`.
                place = unsafe { place.add(FRONT) };
            }
            slots.count += 1;
            let joined = slots.parts_used > 1
                && slots
                    .parts
                    .get_mut(slots.parts_used - 1)
                    .is_some_and(|last| last.join(place, behind_front));
            if !joined && let Some(part) = slots.parts.get_mut(slots.parts_used) {
                *part = Part::new(place.as_ptr(), behind_front);
                slots.parts_used += 1;
            }
            room += length;
            ahead += 1;
        }
        Ok(true)
    }

    /// Makes the frame of `total` bytes (at least a header), that was read into `slots` behind its `front`, the next
    /// one of the ring. `slots` are what [`Self::offer`] listed, and nothing was done with the ring since.
    pub(crate) fn accept(&mut self, slots: &Slots, front: &[u8; FRONT], total: usize) {
        let (mut left, mut count) = (total, 0_u16);
        for &(head, length) in slots.buffers.iter().take(slots.count) {
            let chunk = left.min(length);
            self.queue.set_used(count, head, u32::try_from(chunk).unwrap_or(u32::MAX));
            left -= chunk;
            count += 1;
            if left == 0 {
                break;
            }
        }
        let mut front = *front;
        if let Some(field) = front.get_mut(NUM_BUFFERS..HEADER_SIZE) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        // SAFETY: the first buffer has at least `FRONT` writable bytes, checked by `offer`, and its memory is still
        // there.
        unsafe { std::ptr::copy(front.as_ptr(), slots.first.as_ptr(), FRONT.min(total)) };
        self.queue.complete(count);
    }

    /// Whether the buffers that wait hold `total` bytes. Their lengths are only an estimate, taken to avoid copying a
    /// frame in vain: the guest may change them before they are used.
    fn suffices(&mut self, total: usize) -> Result<bool, FaultKind> {
        let (mut sum, mut ahead) = (0_usize, 0);
        loop {
            if ahead == self.queue.waiting() && self.queue.refresh()? == ahead {
                return Ok(false);
            }
            let (_, descriptor) = self.queue.peek(ahead)?;
            sum = sum.saturating_add(size(&descriptor));
            if sum >= total {
                return Ok(true);
            }
            ahead += 1;
        }
    }

    /// The buffer that is `ahead` behind the next one, checked.
    #[inline]
    fn buffer(&self, ahead: u16) -> Result<(u16, Descriptor, NonNull<u8>), FaultKind> {
        let (head, descriptor) = self.queue.peek(ahead)?;
        if descriptor.flags & DESC_WRITE == 0 {
            return Err(FaultKind::WrongDirection);
        }
        if descriptor.flags & DESC_NEXT != 0 {
            return Err(FaultKind::LongChain(1));
        }
        if descriptor.length < MIN_RX_BUFFER {
            return Err(FaultKind::SmallBuffer(descriptor.length));
        }
        let place = self
            .memory
            .translate(descriptor.address, descriptor.length)
            .ok_or(FaultKind::OutsideMemory { address: descriptor.address, length: descriptor.length })?;
        Ok((head, descriptor, place))
    }

    /// Shows the guest what was delivered. Returns whether that was anything.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        self.queue.publish()
    }

    /// Whether the guest wants an interrupt for it.
    #[inline]
    pub(crate) fn interrupt_wanted(&self) -> bool {
        self.queue.interrupt_wanted()
    }

    /// Asks the guest to ring the doorbell when it gives buffers, or not to. Returns true if it gave some meanwhile.
    #[inline]
    pub(crate) fn want_doorbell(&mut self, wanted: bool) -> bool {
        if wanted {
            let given = self.queue.waiting();
            let _ = self.queue.set_looking(false);
            // A broken index counts as news; the next delivery reports it.
            self.queue.refresh() != Ok(given)
        } else {
            if !self.queue.is_looking() {
                let _ = self.queue.set_looking(true);
            }
            false
        }
    }
}

#[inline]
fn size(descriptor: &Descriptor) -> usize {
    usize::try_from(descriptor.length).unwrap_or(usize::MAX)
}

fn fault(kind: FaultKind) -> RingFault {
    RingFault { queue: Queue::Receive, kind }
}
