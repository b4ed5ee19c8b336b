//! The transmit ring: frames of a guest.

use foraker_abi::net::{HEADER_SIZE, Header, MAX_CHAIN, MAX_FRAME};
use foraker_abi::ring::{DESC_NEXT, DESC_WRITE};

use crate::frame::MAX_HEADERS;
use crate::memory::{Buffers, MappedRing};
use crate::offload;
use crate::parts::{Part, Parts};
use crate::ring::{FaultKind, Queue, RingFault, SplitQueue};

/// Bytes of header and frame that are copied before they are checked: every header, and small frames whole.
const COPIED: usize = 512;
const _: () = assert!(COPIED >= HEADER_SIZE + MAX_HEADERS);

/// A frame taken from the ring: its first bytes copied, the rest where the guest has it.
pub(crate) struct Outgoing {
    copy: [u8; COPIED],
    copied: usize,
    /// Element 0 is for the copy; then come the guest's.
    parts: [Part; 1 + MAX_CHAIN],
    parts_used: usize,
    head: u16,
    total: usize,
    /// Whose memory the parts are in.
    queue: *const TransmitQueue,
}

impl Outgoing {
    pub(crate) fn new() -> Self {
        Outgoing {
            copy: [0; COPIED],
            copied: 0,
            parts: [Part::EMPTY; 1 + MAX_CHAIN],
            parts_used: 0,
            head: 0,
            total: 0,
            queue: std::ptr::null(),
        }
    }

    /// Bytes of the frame.
    #[inline]
    pub(crate) fn length(&self) -> usize {
        self.total - HEADER_SIZE
    }

    /// The offload header as the guest wrote it, or as it was replaced.
    #[inline]
    pub(crate) fn header(&self) -> Header {
        Header::from_bytes(self.copy.first_chunk().copied().unwrap_or_default())
    }

    /// Replaces the offload header.
    #[inline]
    pub(crate) fn set_header(&mut self, header: Header) {
        if let Some(place) = self.copy.first_chunk_mut() {
            *place = header.to_bytes();
        }
    }

    /// The copied first bytes of the frame: all of it, or at least [`MAX_HEADERS`].
    #[inline]
    pub(crate) fn prefix(&self) -> &[u8] {
        self.copy.get(HEADER_SIZE..self.copied).unwrap_or_default()
    }

    /// Header and frame: what was copied from the copy, the rest from the guest's memory. `queue` is the one that this
    /// was taken from.
    #[inline]
    pub(crate) fn parts<'a>(&'a mut self, queue: &'a TransmitQueue) -> Parts<'a> {
        debug_assert_eq!(self.queue, std::ptr::from_ref(queue));
        let copy = self.copy.get(..self.copied).unwrap_or_default();
        if let Some(first) = self.parts.first_mut() {
            *first = Part::new(copy.as_ptr(), copy.len());
        }
        // SAFETY: the copy is borrowed for as long, and the other parts were translated by the memory that `queue` keeps.
        unsafe { Parts::new(self.parts.get(..self.parts_used).unwrap_or_default(), self.total) }
    }
}

/// The transmit ring of one guest.
#[derive(Debug)]
pub(crate) struct TransmitQueue {
    queue: SplitQueue<MappedRing>,
    memory: Buffers,
}

impl TransmitQueue {
    pub(crate) fn new(memory: Buffers, ring: MappedRing, completed: u16) -> Self {
        TransmitQueue { queue: SplitQueue::new(ring, completed), memory }
    }

    pub(crate) fn completed(&self) -> u16 {
        self.queue.completed()
    }

    /// Takes the next frame, without completing its buffer. False if there is none.
    ///
    /// # Errors
    /// The guest broke the ring.
    #[inline]
    pub(crate) fn next(&mut self, out: &mut Outgoing) -> Result<bool, RingFault> {
        self.take(out).map_err(|kind| RingFault { queue: Queue::Transmit, kind })
    }

    #[inline]
    fn take(&mut self, out: &mut Outgoing) -> Result<bool, FaultKind> {
        if self.queue.waiting() == 0 && self.queue.refresh()? == 0 {
            return Ok(false);
        }
        let (head, mut descriptor) = self.queue.peek(0)?;
        // The chain, from element 1 on.
        let (mut count, mut total) = (0_usize, 0_usize);
        loop {
            if descriptor.flags & DESC_WRITE != 0 {
                return Err(FaultKind::WrongDirection);
            }
            let place = self
                .memory
                .translate(descriptor.address, descriptor.length)
                .ok_or(FaultKind::OutsideMemory { address: descriptor.address, length: descriptor.length })?;
            let length = usize::try_from(descriptor.length).unwrap_or(usize::MAX);
            total = total.saturating_add(length);
            if total > HEADER_SIZE + MAX_FRAME {
                return Err(FaultKind::LongBuffer(HEADER_SIZE + MAX_FRAME));
            }
            count += 1;
            let part = out.parts.get_mut(count).ok_or(FaultKind::LongChain(MAX_CHAIN))?;
            *part = Part::new(place.as_ptr(), length);
            if descriptor.flags & DESC_NEXT == 0 {
                break;
            }
            descriptor = self.queue.descriptor(descriptor.next)?;
        }
        if total < HEADER_SIZE {
            return Err(FaultKind::ShortBuffer(total));
        }
        // SAFETY: the parts were translated from readable windows, which stay mapped as long as `memory`.
        let chain = unsafe { Parts::new(out.parts.get(1..=count).unwrap_or_default(), total) };
        let copied = chain.copy_to(&mut out.copy);
        (out.head, out.copied, out.total) = (head, copied, total);
        out.queue = self;
        out.parts_used = 1;
        if total > copied {
            out.parts_used += skip(out.parts.get_mut(1..=count).unwrap_or_default(), copied);
        }
        offload::check(&out.header(), total - HEADER_SIZE).map_err(FaultKind::BadOffload)?;
        Ok(true)
    }

    /// Gives the buffer of the frame taken last back to the guest, which sees it after [`Self::publish`].
    #[inline]
    pub(crate) fn complete(&mut self, out: &Outgoing) {
        self.queue.set_used(0, out.head, 0);
        self.queue.complete(1);
    }

    /// Shows the guest what was completed. Returns whether that was anything.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        self.queue.publish()
    }

    /// Whether the guest wants an interrupt for it.
    #[inline]
    pub(crate) fn interrupt_wanted(&self) -> bool {
        self.queue.interrupt_wanted()
    }

    /// See [`SplitQueue::set_looking`].
    pub(crate) fn set_looking(&mut self, looking: bool) -> bool {
        self.queue.set_looking(looking)
    }

    /// Whether frames wait.
    #[inline]
    pub(crate) fn pending(&mut self) -> bool {
        // A broken index counts as work: taking a frame reports it.
        self.queue.waiting() > 0 || self.queue.refresh().map_or(true, |waiting| waiting > 0)
    }
}

/// Removes the first `count` bytes from a list of parts, moving what is left to its front. Returns how many are left.
fn skip(parts: &mut [Part], mut count: usize) -> usize {
    let mut kept = 0;
    for i in 0..parts.len() {
        let Some(part) = parts.get(i).copied() else { break };
        if count >= part.length() {
            count -= part.length();
            continue;
        }
        // SAFETY: `count` is below the part's length.
        let base = unsafe { part.base().add(count) };
        let rest = Part::new(base, part.length() - count);
        count = 0;
        if let Some(place) = parts.get_mut(kept) {
            *place = rest;
        }
        kept += 1;
    }
    kept
}
