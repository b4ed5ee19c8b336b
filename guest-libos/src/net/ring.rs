//! The driver's side of the two rings: split virtqueues at fixed addresses, used in order.
//!
//! Every access to ring memory goes through the few functions of [`Ring`]; buffers belong to the driver except between
//! being made available and coming back used.

use alloc::alloc::{Layout, alloc};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering, fence};
use foraker_abi::net::{HEADER_SIZE, Header};
use foraker_abi::ring::{
    AVAIL_OFFSET, Avail, DESC_WRITE, Descriptor, NO_INTERRUPT, NO_NOTIFY, QUEUE_SIZE, USED_OFFSET, Used,
    UsedElement,
};

/// A ring's memory.
struct Ring {
    base: *mut u8,
    /// Entries that this side has made available, modulo 2^16; published or not.
    available: u16,
    published: u16,
    /// Used elements that this side has taken.
    taken: u16,
}

impl Ring {
    /// # Safety
    /// `base` is the start of a ring that nobody else in this guest uses, valid for good.
    unsafe fn new(base: *mut u8) -> Self {
        let mut ring = Ring { base, available: 0, published: 0, taken: 0 };
        // A restored or restarted program goes on where the ring stands.
        ring.available = ring.avail().index.load(Ordering::Relaxed);
        ring.published = ring.available;
        ring.taken = ring.used_index();
        ring
    }

    fn avail(&self) -> &Avail {
        // SAFETY: part of the ring; all fields are atomics.
        unsafe { &*self.base.add(AVAIL_OFFSET as usize).cast::<Avail>() }
    }

    fn used_field(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `flags` and `index` of the used ring, which the VMM writes: reached as atomics.
        unsafe { &*self.base.add(USED_OFFSET as usize + offset).cast::<AtomicU16>() }
    }

    #[inline]
    fn used_index(&self) -> u16 {
        self.used_field(core::mem::offset_of!(Used, index)).load(Ordering::Acquire)
    }

    /// Used elements that were not taken yet.
    #[inline]
    fn waiting(&self) -> u16 {
        self.used_index().wrapping_sub(self.taken)
    }

    /// The element that comes `ahead` after the next one. Only for those that are [waiting](Self::waiting).
    #[inline]
    fn element(&self, ahead: u16) -> UsedElement {
        let slot = usize::from(self.taken.wrapping_add(ahead) % QUEUE_SIZE);
        let offset =
            USED_OFFSET as usize + core::mem::offset_of!(Used, ring) + slot * size_of::<UsedElement>();
        // SAFETY: within the ring; the VMM wrote it before it raised the index that was read with acquire.
        unsafe { self.base.add(offset).cast::<UsedElement>().read_volatile() }
    }

    #[inline]
    fn set_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        // SAFETY: within the table; the VMM reads a descriptor only after it was made available.
        unsafe {
            self.base.cast::<Descriptor>().add(usize::from(index % QUEUE_SIZE)).write_volatile(descriptor)
        };
    }

    /// Makes the buffer that starts at descriptor `index` available; seen by the VMM after `publish`.
    #[inline]
    fn make_available(&mut self, index: u16) {
        self.avail().ring[usize::from(self.available % QUEUE_SIZE)].store(index, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the VMM what was made available; true if there was something new.
    #[inline]
    fn publish(&mut self) -> bool {
        if self.available == self.published {
            return false;
        }
        self.avail().index.store(self.available, Ordering::Release);
        self.published = self.available;
        true
    }

    /// Whether the VMM wants a doorbell for what was published.
    #[inline]
    fn wants_doorbell(&self) -> bool {
        // The index must be visible before the flag is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        self.used_field(core::mem::offset_of!(Used, flags)).load(Ordering::Relaxed) & NO_NOTIFY == 0
    }

    /// Says whether this side wants interrupts for used buffers.
    fn want_interrupts(&mut self, wanted: bool) {
        self.avail().flags.store(if wanted { 0 } else { NO_INTERRUPT }, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// Page-aligned memory for buffers, never given back. Not touched here. Much of it is aligned to eight pages, which the host maps together.
fn buffers(bytes: usize) -> Option<*mut u8> {
    let layout =
        Layout::from_size_align(bytes.max(1), if bytes < 256 << 10 { 4096 } else { 32 << 10 }).ok()?;
    // SAFETY: the size is not 0.
    let memory = unsafe { alloc(layout) };
    (!memory.is_null()).then_some(memory)
}

/// The receive ring.
///
/// Buffer `i` belongs to descriptor `i`, and buffers are adjacent: as they are used in the order in which they were
/// given, a frame that fills several stands in one piece, except where it runs past the last buffer. Few buffers are
/// given at first, since all of them come round before the first is used again: a quiet guest's working set stays small. There are more
/// when bursts use most of them, or when the VMM has a frame that needs more.
pub(crate) struct Receiver {
    ring: Ring,
    memory: *mut u8,
    buffer: usize,
    /// Buffers in circulation, and how many there may be.
    count: u16,
    most: u16,
    /// How many were given back, modulo 2^16. They are used, and given back, in the order in which they were given.
    back: u16,
    /// Buffers that the VMM had used at once in the present burst.
    burst: u16,
    /// Where a frame is put together that runs past the last buffer.
    scratch: Vec<u8>,
}

/// A received frame, until it is [released](Receiver::release).
pub(crate) struct Frame {
    data: *const u8,
    length: usize,
    buffers: u16,
    pub(crate) header: Header,
}

impl Frame {
    /// The ethernet frame.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `next` checked the bounds; the buffers are the driver's until `release`, which takes `self`.
        unsafe { core::slice::from_raw_parts(self.data, self.length) }
    }
}

impl Receiver {
    /// Gives the VMM the first `count` of at most `most` buffers of `buffer` bytes.
    ///
    /// # Safety
    /// As for `Ring::new`.
    pub(crate) unsafe fn new(base: *mut u8, buffer: usize, count: u16, most: u16) -> Option<Self> {
        let most = most.min(QUEUE_SIZE);
        let count = count.min(most);
        let memory = buffers(usize::from(most) * buffer)?;
        // SAFETY: the caller's promise.
        let ring = unsafe { Ring::new(base) };
        let mut receiver =
            Receiver { ring, memory, buffer, count: 0, most, back: 0, burst: 0, scratch: Vec::new() };
        receiver.back = receiver.ring.available;
        receiver.ring.want_interrupts(true);
        receiver.add(count);
        receiver.ring.publish();
        Some(receiver)
    }

    /// Puts further buffers into circulation, up to `count`.
    fn add(&mut self, count: u16) {
        for index in self.count..count {
            let address = self.memory as u64 + u64::from(index) * self.buffer as u64;
            let descriptor = Descriptor { address, length: self.buffer as u32, flags: DESC_WRITE, next: 0 };
            self.ring.set_descriptor(index, descriptor);
            self.ring.make_available(index);
        }
        self.count = count;
    }

    /// Whether a frame waits.
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        self.ring.waiting() != 0
    }

    /// The next frame.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let waiting = self.ring.waiting();
        if waiting == 0 {
            self.burst = 0;
            return None;
        }
        super::stamps::received();
        let first = self.ring.element(0);
        let id = first.id as usize;
        if id >= usize::from(self.count) {
            return self.skip(1);
        }
        let length = (first.length as usize).min(self.buffer);
        // SAFETY: buffer `id` came back used, so that the VMM no longer writes to it.
        let data: *const u8 = unsafe { self.memory.add(id * self.buffer) };
        // SAFETY: a buffer is larger than a header.
        let header = Header::from_bytes(unsafe { data.cast::<[u8; HEADER_SIZE]>().read() });
        let buffers = header.num_buffers.max(1);
        if buffers > self.count || length < HEADER_SIZE {
            return self.skip(1);
        }
        if waiting < buffers {
            return None;
        }
        self.burst = self.burst.max(waiting);
        // SAFETY: within the buffer, as `length` is at least a header's.
        let start = unsafe { data.add(HEADER_SIZE) };
        if buffers == 1 {
            self.ring.taken = self.ring.taken.wrapping_add(1);
            return Some(Frame { data: start, length: length - HEADER_SIZE, buffers, header });
        }
        self.merged(id, buffers, header)
    }

    /// A frame in several buffers.
    fn merged(&mut self, id: usize, buffers: u16, header: Header) -> Option<Frame> {
        let mut total = 0;
        let mut in_one_piece = true;
        for n in 0..buffers {
            let element = self.ring.element(n);
            let at = element.id as usize;
            if at >= usize::from(self.count) {
                return self.skip(buffers);
            }
            let length = (element.length as usize).min(self.buffer);
            in_one_piece &= at == id + usize::from(n) && (length == self.buffer || n + 1 == buffers);
            total += length;
        }
        let data = if in_one_piece {
            // SAFETY: the first buffer, which is larger than a header; those that follow are adjacent.
            unsafe { self.memory.add(id * self.buffer + HEADER_SIZE) }
        } else {
            self.scratch.clear();
            for n in 0..buffers {
                let element = self.ring.element(n);
                let length = (element.length as usize).min(self.buffer);
                let at = (element.id as usize).min(usize::from(self.count) - 1);
                // SAFETY: buffer `at` came back used with at most its size.
                let part = unsafe { core::slice::from_raw_parts(self.memory.add(at * self.buffer), length) };
                self.scratch.extend_from_slice(part);
            }
            total = self.scratch.len();
            // SAFETY: the first part holds a header, as `next` checked.
            unsafe { self.scratch.as_ptr().add(HEADER_SIZE) }
        };
        self.ring.taken = self.ring.taken.wrapping_add(buffers);
        Some(Frame { data, length: total - HEADER_SIZE, buffers, header })
    }

    /// Gives back what makes no sense; the VMM is trusted, so this is for the day when it errs.
    #[cold]
    fn skip(&mut self, buffers: u16) -> Option<Frame> {
        self.ring.taken = self.ring.taken.wrapping_add(buffers);
        self.give_back(buffers);
        None
    }

    /// Gives the frame's buffers back to the ring.
    #[inline]
    pub(crate) fn release(&mut self, frame: Frame) {
        self.give_back(frame.buffers);
    }

    #[inline]
    fn give_back(&mut self, buffers: u16) {
        for _ in 0..buffers {
            let index = self.ring.avail().ring[usize::from(self.back % QUEUE_SIZE)].load(Ordering::Relaxed);
            // Before the first buffer comes round again, so that buffers stay in order.
            if index == 0 && self.count < self.most && self.burst > self.count / 2 {
                self.grow(0);
            }
            self.back = self.back.wrapping_add(1);
            self.ring.make_available(index);
        }
    }

    /// Doubles the buffers in circulation, and makes them `least` if that is more.
    #[cold]
    fn grow(&mut self, least: u16) {
        self.add((self.count * 2).max(least).min(self.most));
    }

    /// The VMM has raised an interrupt. If there is no frame, and it wants to hear of buffers, then one waits for which there are too few: now there are as
    /// many as the largest frame fills.
    pub(crate) fn look_for_starved(&mut self, least: u16) {
        if !self.is_waiting() && self.count < self.most && self.ring.wants_doorbell() {
            self.grow(least);
            if self.publish() {
                crate::hypercall::doorbell_async();
            }
        }
    }

    /// Shows the VMM the buffers given back; true if it asks for a doorbell: a frame waits for them. It may have had some left, but
    /// too few for that frame.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        self.ring.publish() && self.ring.wants_doorbell()
    }
}

/// Bytes of a small transmit buffer: header, ethernet frame of an MTU of 1500 and some room.
const SMALL: usize = 2048;
/// Bytes of a large transmit buffer, for a full IP packet.
const LARGE: usize = HEADER_SIZE + 14 + 65536;

#[derive(Clone, Copy)]
struct Buffer {
    data: *mut u8,
    large: bool,
}

/// The transmit ring. A frame stands behind its header in one buffer; buffers are used last in, first out, so that those in
/// the processor's cache come first.
pub(crate) struct Transmitter {
    ring: Ring,
    slots: Vec<Option<Buffer>>,
    small: Vec<*mut u8>,
    large: Vec<*mut u8>,
    /// Buffers that may still be made.
    small_left: usize,
    large_left: usize,
    unsent: bool,
}

impl Transmitter {
    /// # Safety
    /// As for `Ring::new`.
    pub(crate) unsafe fn new(base: *mut u8, large: usize) -> Self {
        // SAFETY: the caller's promise.
        let mut ring = unsafe { Ring::new(base) };
        ring.want_interrupts(false);
        Transmitter {
            ring,
            slots: alloc::vec![None; usize::from(QUEUE_SIZE)],
            small: Vec::new(),
            large: Vec::new(),
            small_left: usize::from(QUEUE_SIZE),
            large_left: large,
            unsent: false,
        }
    }

    /// Takes back the buffers that were sent.
    #[inline]
    pub(crate) fn reclaim(&mut self) {
        for _ in 0..self.ring.waiting() {
            let slot = usize::from(self.ring.taken % QUEUE_SIZE);
            self.ring.taken = self.ring.taken.wrapping_add(1);
            if let Some(buffer) = self.slots[slot].take() {
                let pool = if buffer.large { &mut self.large } else { &mut self.small };
                pool.push(buffer.data);
            }
        }
    }

    /// Whether a frame of any size can be sent now.
    #[inline]
    pub(crate) fn has_room(&mut self, with_large: bool) -> bool {
        self.ring.available.wrapping_sub(self.ring.taken) < QUEUE_SIZE
            && (!self.small.is_empty() || self.small_left != 0)
            && (!with_large || !self.large.is_empty() || self.large_left != 0)
    }

    /// A buffer for a frame of `length` bytes, taken from the pool or made.
    #[inline]
    fn take(&mut self, length: usize) -> Option<Buffer> {
        if length + HEADER_SIZE <= SMALL {
            if let Some(data) = self.small.pop() {
                return Some(Buffer { data, large: false });
            }
            // Two to a page; the second waits in the pool.
            self.small_left = self.small_left.checked_sub(2)?;
            let data = buffers(2 * SMALL)?;
            // SAFETY: the second half.
            self.small.push(unsafe { data.add(SMALL) });
            return Some(Buffer { data, large: false });
        }
        if length + HEADER_SIZE > LARGE {
            return None;
        }
        if let Some(data) = self.large.pop() {
            return Some(Buffer { data, large: true });
        }
        self.large_left = self.large_left.checked_sub(1)?;
        Some(Buffer { data: buffers(LARGE)?, large: true })
    }

    /// Sends a frame of `length` bytes, which `write` writes; it also makes its header. False if there was no room.
    #[inline]
    pub(crate) fn send<R>(
        &mut self,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> (Header, R),
    ) -> Option<R> {
        if self.ring.available.wrapping_sub(self.ring.taken) >= QUEUE_SIZE {
            return None;
        }
        let buffer = self.take(length)?;
        // SAFETY: the buffer is the driver's, and larger than header and frame; its bytes were written by earlier
        // frames or by the host, whichever: the memory of a guest always holds bytes.
        let frame = unsafe { core::slice::from_raw_parts_mut(launder(buffer.data).add(HEADER_SIZE), length) };
        let (header, result) = write(frame);
        // SAFETY: the start of the buffer.
        unsafe { buffer.data.cast::<[u8; HEADER_SIZE]>().write(header.to_bytes()) };
        let index = self.ring.available % QUEUE_SIZE;
        let descriptor = Descriptor {
            address: buffer.data as u64,
            length: (length + HEADER_SIZE) as u32,
            flags: 0,
            next: 0,
        };
        self.ring.set_descriptor(index, descriptor);
        self.slots[usize::from(index)] = Some(buffer);
        self.ring.make_available(index);
        Some(result)
    }

    /// Shows the VMM the frames.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.ring.publish() {
            self.unsent = true;
            super::stamps::sent();
        }
    }

    /// Whether frames were published since the last doorbell, and the VMM asks for one.
    #[inline]
    pub(crate) fn wants_doorbell(&mut self) -> bool {
        core::mem::take(&mut self.unsent) && self.ring.wants_doorbell()
    }

    /// Whether everything published was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.available == self.ring.used_index()
    }

    /// Asks for an interrupt when buffers come back, or no longer.
    pub(crate) fn want_interrupts(&mut self, wanted: bool) {
        self.ring.want_interrupts(wanted);
    }
}

/// Makes the compiler take the memory at `data` for written.
#[inline(always)]
fn launder(mut data: *mut u8) -> *mut u8 {
    // SAFETY: does nothing.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) data, options(nostack, preserves_flags)) };
    data
}
