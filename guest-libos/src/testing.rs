//! A machine for tests on the host: virtual registers, control page and rings in ordinary memory, and the VMM's side of
//! the rings. Each test's thread is a guest of its own, with a clock that only the test moves.

#![allow(unreachable_pub, missing_docs, reason = "stands in for public functions")]

use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use foraker_abi::control::CoreControl;
use foraker_abi::hypercall as abi;
use foraker_abi::net::{FEATURE_CSUM, FEATURE_TSO, HEADER_SIZE, Header};
use foraker_abi::registers::{Net, Registers};
use foraker_abi::ring::*;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Ethernet address of the guest.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Ethernet address of the gateway.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

thread_local! {
    static REGISTERS: &'static Registers = {
        // SAFETY: all fields are integers, for which zeros are valid.
        let mut registers: Box<Registers> = unsafe { Box::new(core::mem::zeroed()) };
        registers.cores = 1;
        registers.memory_size = 64 << 20;
        registers.resources.memory_allocated = AtomicU64::new(64 << 20);
        registers.memory_end = 64 << 20;
        registers.entropy = *b"0123456789abcdef0123456789abcdef";
        registers.incarnation = AtomicU64::new(1);
        registers.boot.argument_count = 2;
        registers.boot.environment_count = 1;
        registers.boot.size = boot_bytes().len() as u32;
        registers.net = Net {
            present: 1,
            features: FEATURE_CSUM | FEATURE_TSO,
            mac: MAC,
            mtu: 1500,
            ipv4: [10, 99, 0, 2],
            gateway4: [10, 99, 0, 1],
            dns4: [10, 99, 0, 1],
            prefix4: 24,
            prefix6: 64,
            ipv6: [0xfd, 0, 0, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            ..Net::default()
        };
        Box::leak(registers)
    };
    static CONTROL: &'static CoreControl = Box::leak(Box::default());
    static NOW: Cell<u64> = const { Cell::new(1_000_000) };
    static RINGS: (*mut u8, *mut u8) = (ring_memory(), ring_memory());
    static VMM: RefCell<Vmm> = RefCell::new(Vmm::default());
}

fn ring_memory() -> *mut u8 {
    #[repr(align(4096))]
    struct Pages([u8; RING_SIZE as usize]);
    Box::leak(Box::new(Pages([0; RING_SIZE as usize]))).0.as_mut_ptr()
}

pub fn registers() -> &'static Registers {
    REGISTERS.with(|r| *r)
}

pub fn control() -> &'static CoreControl {
    CONTROL.with(|c| *c)
}

pub fn boot_bytes() -> &'static [u8] {
    b"test\0one\0KEY=value\0"
}

pub fn rings() -> (*mut u8, *mut u8) {
    RINGS.with(|r| *r)
}

pub fn now() -> u64 {
    NOW.get()
}

pub fn advance(ns: u64) {
    NOW.set(NOW.get() + ns);
}

pub fn doorbell_async() {}

/// # Safety
/// As for the real one.
pub unsafe fn hypercall(number: u64, a: u64, b: u64, _: u64, _: u64, _: u64) -> i64 {
    match number {
        abi::TERMINATE => panic!("terminate({a})"),
        abi::CONSOLE => b as i64,
        abi::IDLE | abi::DOORBELL => {
            VMM.with(|vmm| vmm.borrow_mut().drain());
            0
        }
        _ => 0,
    }
}

/// The VMM's side of the rings.
#[derive(Default)]
pub struct Vmm {
    rx_taken: u16,
    tx_taken: u16,
    sent: VecDeque<(Header, Vec<u8>)>,
    /// Takes no frames from the transmit ring.
    pub stuck: bool,
}

fn word(base: *mut u8, offset: u64) -> &'static AtomicU16 {
    // SAFETY: within the leaked ring, aligned.
    unsafe { &*base.add(offset as usize).cast::<AtomicU16>() }
}

fn descriptor(base: *mut u8, index: u16) -> Descriptor {
    // SAFETY: within the leaked ring.
    unsafe { base.cast::<Descriptor>().add(usize::from(index)).read_volatile() }
}

fn head(base: *mut u8, at: u16) -> u16 {
    word(base, AVAIL_OFFSET + 4 + 2 * u64::from(at % QUEUE_SIZE)).load(Ordering::Acquire)
}

fn put_used(base: *mut u8, id: u16, length: u32) {
    let index = word(base, USED_OFFSET + 2);
    let at = index.load(Ordering::Relaxed);
    let offset = USED_OFFSET as usize + 4 + 8 * usize::from(at % QUEUE_SIZE);
    // SAFETY: within the leaked ring.
    unsafe {
        base.add(offset).cast::<UsedElement>().write_volatile(UsedElement { id: u32::from(id), length })
    };
    index.store(at.wrapping_add(1), Ordering::Release);
}

impl Vmm {
    /// Takes what the guest has sent.
    fn drain(&mut self) {
        let base = rings().1;
        while !self.stuck && self.tx_taken != word(base, AVAIL_OFFSET + 2).load(Ordering::Acquire) {
            let id = head(base, self.tx_taken);
            let d = descriptor(base, id);
            assert_eq!(d.flags, 0);
            // SAFETY: the guest's buffer, which is this side's until it is used.
            let bytes = unsafe { core::slice::from_raw_parts(d.address as *const u8, d.length as usize) };
            let header = Header::from_bytes(bytes[..HEADER_SIZE].try_into().unwrap());
            self.sent.push_back((header, bytes[HEADER_SIZE..].to_vec()));
            assert!(self.sent.len() < 10_000, "the test takes no frames");
            put_used(base, id, 0);
            self.tx_taken = self.tx_taken.wrapping_add(1);
        }
    }
}

/// The frames that the guest has sent since the last call.
pub fn sent() -> VecDeque<(Header, Vec<u8>)> {
    VMM.with(|vmm| {
        let mut vmm = vmm.borrow_mut();
        vmm.drain();
        core::mem::take(&mut vmm.sent)
    })
}

/// Takes what the guest has sent, hands each frame to `f`, and copies nothing.
pub fn visit_sent(mut f: impl FnMut(&[u8])) {
    VMM.with(|vmm| {
        let mut vmm = vmm.borrow_mut();
        let base = rings().1;
        while vmm.tx_taken != word(base, AVAIL_OFFSET + 2).load(Ordering::Acquire) {
            let id = head(base, vmm.tx_taken);
            let d = descriptor(base, id);
            // SAFETY: the guest's buffer, which is this side's until it is used.
            f(unsafe { core::slice::from_raw_parts(d.address as *const u8, d.length as usize) }
                .split_at(HEADER_SIZE)
                .1);
            put_used(base, id, 0);
            vmm.tx_taken = vmm.tx_taken.wrapping_add(1);
        }
    });
}

pub fn set_stuck(stuck: bool) {
    VMM.with(|vmm| vmm.borrow_mut().stuck = stuck);
}

/// Puts a frame into the receive ring; false if there is no room. The buffers are filled as virtio's mergeable ones.
pub fn deliver(flags: u8, frame: &[u8]) -> bool {
    VMM.with(|vmm| {
        let mut vmm = vmm.borrow_mut();
        let base = rings().0;
        let available = word(base, AVAIL_OFFSET + 2).load(Ordering::Acquire);
        let mut at = vmm.rx_taken;
        let mut left = frame;
        let mut used = Vec::new();
        let mut header = [0; HEADER_SIZE];
        while used.is_empty() || !left.is_empty() {
            if at == available {
                return false;
            }
            let id = head(base, at);
            let d = descriptor(base, id);
            assert_eq!(d.flags, DESC_WRITE);
            let mut room = d.length as usize;
            let mut to = d.address as *mut u8;
            let mut length = 0;
            if used.is_empty() {
                // The header comes at last, when the number of buffers is known.
                to = to.wrapping_add(HEADER_SIZE);
                room -= HEADER_SIZE;
                length = HEADER_SIZE;
            }
            let part = left.len().min(room);
            // SAFETY: the guest's buffer, which is this side's until it is used.
            unsafe { to.copy_from_nonoverlapping(left.as_ptr(), part) };
            left = &left[part..];
            used.push((id, (length + part) as u32, d.address));
            at = at.wrapping_add(1);
        }
        header.copy_from_slice(
            &Header { flags, num_buffers: used.len() as u16, ..Header::default() }.to_bytes(),
        );
        // SAFETY: the first buffer.
        unsafe { (used[0].2 as *mut [u8; HEADER_SIZE]).write(header) };
        for (id, length, _) in used {
            put_used(base, id, length);
        }
        vmm.rx_taken = at;
        true
    })
}
