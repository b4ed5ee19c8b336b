//! The device side of a split virtqueue (OASIS VIRTIO 1.2, section 2.7), used in order.
//!
//! As buffers come back in the order in which they were made available, one used element each, a single counter
//! says both which available entry is next and where the next used element goes. The queue is generic over how its
//! memory is reached, so that the same code runs over a guest's memory and under the model checker.
//!
//! Memory ordering, driver's side in brackets:
//! - `avail.index` is read with acquire [written with release behind descriptors and entries];
//! - `used.index` is written with release [read with acquire before elements and buffers];
//! - before `avail.flags` is read to decide on an interrupt, and between writing `used.flags` and looking at
//!   `avail.index` again, stands a full fence [and the mirror image of both], so that of two sides that each write
//!   one word and then read the other's, at least one sees the other's write: no wake-up is lost.
//!
//! Everything that the guest wrote is read once and checked before use. Nothing here loops longer than the ring.

use foraker_abi::ring::{DESC_NEXT, DESC_WRITE, Descriptor, NO_INTERRUPT, NO_NOTIFY, QUEUE_SIZE};

/// A queue of the virtual ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Frames for the guest.
    Receive,
    /// Frames of the guest.
    Transmit,
}

impl std::fmt::Display for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Queue::Receive => "receive",
            Queue::Transmit => "transmit",
        })
    }
}

/// The guest broke the protocol of a ring. Its network ends, and so should the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{queue} ring: {kind}")]
pub struct RingFault {
    /// Which ring.
    pub queue: Queue,
    /// What is wrong.
    pub kind: FaultKind,
}

/// How a ring is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// `avail.index` is further ahead than the ring is long.
    #[error("available index {index} is more than {QUEUE_SIZE} ahead of {completed}")]
    IndexJump {
        /// The guest's index.
        index: u16,
        /// Buffers completed so far, modulo 2^16.
        completed: u16,
    },
    /// An available entry or `next` names a descriptor that does not exist.
    #[error("descriptor {0} does not exist")]
    NoSuchDescriptor(u16),
    /// A chain is longer than the contract allows, or loops.
    #[error("chain of more than {0} descriptors")]
    LongChain(usize),
    /// A flag that is not offered.
    #[error("descriptor flags {0:#x}")]
    DescriptorFlags(u16),
    /// A transmit buffer that is writable, or a receive buffer that is not.
    #[error("buffer of the wrong direction")]
    WrongDirection,
    /// A descriptor of no bytes.
    #[error("descriptor of length 0")]
    ZeroLength,
    /// A receive buffer too small for the contract.
    #[error("receive buffer of {0} bytes")]
    SmallBuffer(u32),
    /// A buffer that is not within the guest's memory.
    #[error("buffer at {address:#x}, {length} bytes, is outside of the guest's memory")]
    OutsideMemory {
        /// Guest address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A transmit buffer that does not hold an offload header.
    #[error("transmit buffer of {0} bytes")]
    ShortBuffer(usize),
    /// A transmit buffer of more bytes than the largest frame.
    #[error("transmit buffer of more than {0} bytes")]
    LongBuffer(usize),
    /// An offload header that contradicts itself or the length of its frame.
    #[error("offload header: {0}")]
    BadOffload(crate::offload::BadOffload),
}

/// How a queue's memory is reached. Indices are below [`QUEUE_SIZE`]; an implementation masks them.
pub trait RingMemory {
    /// `avail.index`, acquire.
    fn avail_index(&self) -> u16;
    /// `avail.flags`.
    fn avail_flags(&self) -> u16;
    /// An entry of the ring of available descriptors.
    fn avail_entry(&self, slot: u16) -> u16;
    /// A descriptor, copied.
    fn descriptor(&self, index: u16) -> Descriptor;
    /// Writes a used element.
    fn set_used_element(&self, slot: u16, id: u32, length: u32);
    /// `used.index`, release.
    fn set_used_index(&self, index: u16);
    /// `used.flags`.
    fn set_used_flags(&self, flags: u16);
    /// Sequentially consistent fence.
    fn fence(&self);
}

/// The device side of a queue.
#[derive(Debug)]
pub struct SplitQueue<M> {
    memory: M,
    /// Buffers completed, modulo 2^16.
    completed: u16,
    /// `used.index` as last published.
    published: u16,
    /// `avail.index` as last read and checked: at most [`QUEUE_SIZE`] ahead of `completed`.
    seen: u16,
    /// Whether `used.flags` says [`NO_NOTIFY`].
    looking: bool,
}

impl<M: RingMemory> SplitQueue<M> {
    /// A queue of which `completed` buffers were completed before (0 for a new guest). Touches no memory.
    pub fn new(memory: M, completed: u16) -> Self {
        SplitQueue { memory, completed, published: completed, seen: completed, looking: false }
    }

    /// How the memory is reached.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Buffers completed, modulo 2^16.
    pub fn completed(&self) -> u16 {
        self.completed
    }

    /// Buffers that wait, by the last look at `avail.index`.
    #[inline]
    pub fn waiting(&self) -> u16 {
        self.seen.wrapping_sub(self.completed)
    }

    /// Looks at `avail.index` and returns how many buffers wait.
    ///
    /// # Errors
    /// The index jumped.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, FaultKind> {
        let index = self.memory.avail_index();
        let waiting = index.wrapping_sub(self.completed);
        if waiting > QUEUE_SIZE {
            return Err(FaultKind::IndexJump { index, completed: self.completed });
        }
        self.seen = index;
        Ok(waiting)
    }

    /// The first descriptor of the buffer that is `ahead` behind the next one, with `ahead` below [`Self::waiting`].
    ///
    /// # Errors
    /// There is no such descriptor, or its flags are unknown.
    #[inline]
    pub fn peek(&self, ahead: u16) -> Result<(u16, Descriptor), FaultKind> {
        let head = self.memory.avail_entry(self.completed.wrapping_add(ahead) % QUEUE_SIZE);
        Ok((head, self.descriptor(head)?))
    }

    /// The descriptor of this index.
    ///
    /// # Errors
    /// There is none, or its flags are unknown, or it holds nothing.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Result<Descriptor, FaultKind> {
        if index >= QUEUE_SIZE {
            return Err(FaultKind::NoSuchDescriptor(index));
        }
        let descriptor = self.memory.descriptor(index);
        if descriptor.flags & !(DESC_NEXT | DESC_WRITE) != 0 {
            return Err(FaultKind::DescriptorFlags(descriptor.flags));
        }
        if descriptor.length == 0 {
            return Err(FaultKind::ZeroLength);
        }
        Ok(descriptor)
    }

    /// Writes the used element of the buffer that is `ahead` behind the next one. The guest sees it after
    /// [`Self::complete`] and [`Self::publish`]; until then it may be written again.
    #[inline]
    pub fn set_used(&self, ahead: u16, head: u16, length: u32) {
        self.memory.set_used_element(
            self.completed.wrapping_add(ahead) % QUEUE_SIZE,
            u32::from(head),
            length,
        );
    }

    /// Completes the next `count` buffers, at most [`Self::waiting`], whose used elements are written.
    #[inline]
    pub fn complete(&mut self, count: u16) {
        debug_assert!(count <= self.waiting());
        self.completed = self.completed.wrapping_add(count);
    }

    /// Shows the guest what was completed. Returns whether that was anything.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.completed {
            return false;
        }
        self.memory.set_used_index(self.completed);
        self.published = self.completed;
        true
    }

    /// Whether the guest wants an interrupt for what was published.
    #[inline]
    pub fn interrupt_wanted(&self) -> bool {
        self.memory.fence();
        self.memory.avail_flags() & NO_INTERRUPT == 0
    }

    /// Tells the guest whether somebody looks at the ring, so that it need not ring the doorbell. When nobody does
    /// any longer, looks once more and returns true if buffers wait that the guest may not have announced.
    pub fn set_looking(&mut self, looking: bool) -> bool {
        if looking != self.looking {
            self.memory.set_used_flags(if looking { NO_NOTIFY } else { 0 });
            self.looking = looking;
        }
        if looking {
            return false;
        }
        self.memory.fence();
        self.memory.avail_index() != self.completed
    }

    /// Whether `used.flags` says that somebody looks.
    #[inline]
    pub fn is_looking(&self) -> bool {
        self.looking
    }
}
