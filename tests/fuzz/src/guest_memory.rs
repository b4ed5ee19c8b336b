//! Addresses and lengths that a guest passes to hypercalls: what [`GuestMemory`] does with them is what the layout
//! allows, by a model of plain bytes; the shared part and what lies around the guest's memory never change.

use std::ops::Range;
use std::sync::Arc;

use foraker_abi::layout::{
    BOOT, BOOT_SIZE, CONTROL, DATA_BASE, FAULT_FRAME_SIZE, FAULT_STACK, IMAGE_BASE, MAX_CORES, PAGE_SIZE,
    PRIVATE_BASE, REGISTERS, SMALL_BOOT, SUPERVISOR_BASE,
};
use foraker_abi::note;
use foraker_image::{Image, Rights, Segment};
use foraker_memory::{Arena, GuestMemory, MemoryError, Pages, Plan, Template};

use crate::program::Program;

/// Bytes of the arena.
const ARENA: u64 = 2 << 20;
/// Bytes on each side of the guest's memory that belong to others.
const FENCE: u64 = 256 << 10;
/// What they hold.
const PATTERN: u8 = 0xa5;
/// Bytes of a guest's memory, as programs count them: not whole pages.
const UNIT: u64 = 1700;
/// Most bytes that one operation moves.
const MOST: u16 = 20 << 10;
/// Most operations of a program.
const STEPS: usize = 64;

/// Operations.
pub mod op {
    /// Copy from the guest: address, length (2 bytes).
    pub const READ: u8 = 0;
    /// Copy to the guest: address, length (2 bytes), what to fill it with.
    pub const WRITE: u8 = 1;
    /// Drop pages: address, length (8 bytes).
    pub const DISCARD: u8 = 2;
    /// Allocate pages: address, length (8 bytes).
    pub const POPULATE: u8 = 3;
    /// Read a fault's frame: core (4 bytes), address.
    pub const FAULT_FRAME: u8 = 4;
    /// Write arguments: how many (1 byte), the length of each (1 byte).
    pub const BOOT: u8 = 5;
    /// How many there are.
    pub const COUNT: u8 = 6;
}

/// Addresses that others are given relative to.
pub const PLACES: [u64; 8] =
    [0, IMAGE_BASE, PRIVATE_BASE, CONTROL, BOOT, FAULT_STACK, DATA_BASE, SUPERVISOR_BASE];

/// An address: a place among [`PLACES`] (or an end, which depends on the memory's size), and a signed distance.
fn address(program: &mut Program<'_>, plan: &Plan) -> Option<u64> {
    let place = program.u8()?;
    let distance = program.u64()?;
    let ends = [plan.shared_end, plan.memory_end, plan.end(), plan.memory_start];
    let all = PLACES.len() + ends.len();
    let chosen = usize::from(place) % all;
    let base = PLACES.iter().chain(&ends).nth(chosen)?;
    Some(base.wrapping_add(distance))
}

fn image() -> Image {
    let segment = |address, size, content: u8, rights| Segment {
        address,
        size,
        content: vec![content; 5000.min(size as usize)],
        rights,
    };
    Image {
        entry: IMAGE_BASE,
        note: note::Descriptor { stack_size: 8 << 10, ..note::Descriptor::default() },
        manifest: None,
        segments: vec![
            segment(IMAGE_BASE, 5000, 0xcc, Rights::Execute),
            segment(IMAGE_BASE + 0x3000, 100, 0x11, Rights::Read),
            segment(DATA_BASE, 9000, 0x22, Rights::Write),
        ],
        path: None,
    }
}

struct Cell {
    arena: Arc<Arena>,
    image: Image,
    /// Of the ranges around the guest.
    fence: Arc<Template>,
    before: foraker_memory::arena::Range,
}

thread_local! {
    static CELL: Cell = {
        let (arena, image) = (Arena::new(ARENA).expect("address space"), image());
        let fence = Arc::new(Template::of_image(&image, FENCE, Pages::Small).expect("enough"));
        let before = arena.allocate(&fence).expect("room");
        fill(before.as_ptr(), FENCE, PATTERN);
        Cell { arena, image, fence, before }
    };
}

fn fill(base: *mut u8, size: u64, with: u8) {
    // SAFETY: callers pass memory of the arena that they own; no reference to it exists.
    unsafe { base.write_bytes(with, size as usize) };
}

fn bytes(base: *const u8, size: u64) -> Vec<u8> {
    let mut to = vec![0; size as usize];
    // SAFETY: callers pass memory that is mapped for at least `size` bytes, and nobody else writes to it.
    unsafe { base.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
    to
}

/// The first byte chooses how much memory the guest has; a program of [`op`] follows.
pub fn run(data: &[u8]) {
    let mut program = Program(data);
    let Some(size) = program.u8() else { return };
    CELL.with(|cell| cell.run(u64::from(size) * UNIT, &mut program));
}

impl Cell {
    fn run(&self, memory: u64, program: &mut Program<'_>) {
        let free = self.arena.available();
        let template = match Template::of_image(&self.image, memory, Pages::Small) {
            Ok(template) => Arc::new(template),
            Err(MemoryError::TooLittle { needed, .. }) => {
                assert!(needed > memory & !(PAGE_SIZE - 1));
                assert_eq!(self.arena.available(), free, "what failed takes nothing");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let guest = GuestMemory::new(&self.arena, &template).expect("room");
        let size = guest.slots()[1].size;
        assert_eq!((size, self.arena.available()), (memory & !(PAGE_SIZE - 1), free - size));
        let behind = self.arena.allocate(&self.fence).expect("room");
        fill(behind.as_ptr(), FENCE, PATTERN);

        let part = template.shared();
        let shared = bytes(part.as_ptr(), part.size() as u64);
        let mut model = Model::new(&guest, &shared, size);
        let fresh = model.private.clone();
        model.stage_fault(&guest);
        for _ in 0..STEPS {
            if model.step(&guest, program).is_none() {
                break;
            }
        }
        assert!(bytes(model.host, size) == model.private, "the guest's memory is not what it should be");
        assert!(bytes(part.as_ptr(), part.size() as u64) == shared, "the shared part changed");
        for fence in [&self.before, &behind] {
            assert!(bytes(fence.as_ptr(), FENCE) == [PATTERN; FENCE as usize], "a neighbour changed");
        }

        // The next owner finds what its template says, and nothing else.
        drop(guest);
        assert_eq!(self.arena.available(), free - FENCE);
        let next = self.arena.allocate(&template).expect("room");
        assert_eq!(next.as_ptr(), model.host);
        assert!(bytes(next.as_ptr(), size) == fresh, "the former guest's bytes");
    }
}

/// What a guest's memory is expected to hold, and which part of it may be reached.
struct Model {
    host: *mut u8,
    private: Vec<u8>,
    shared: Vec<u8>,
    readable: [Range<u64>; 4],
    writable: [Range<u64>; 3],
    start: u64,
    heap_end: u64,
}

impl Model {
    fn new(guest: &GuestMemory, shared: &[u8], size: u64) -> Self {
        let plan = guest.plan();
        let host = guest.slots()[1].host;
        Model {
            host,
            private: bytes(host, size),
            shared: shared.to_vec(),
            readable: [
                IMAGE_BASE..plan.shared_end,
                plan.memory_start..FAULT_STACK,
                BOOT..BOOT + BOOT_SIZE,
                DATA_BASE..plan.memory_end,
            ],
            writable: [plan.memory_start..REGISTERS, CONTROL..FAULT_STACK, DATA_BASE..plan.memory_end],
            start: plan.memory_start,
            heap_end: plan.memory_end,
        }
    }

    /// Writes words to the fault stack, as processors would.
    fn stage_fault(&mut self, guest: &GuestMemory) {
        let at = (FAULT_STACK - self.start) as usize;
        let words: Vec<u8> = (0..PAGE_SIZE as u16 / 2).flat_map(u16::to_le_bytes).collect();
        // SAFETY: the fault stack is a page of the private slot, and so are the words.
        unsafe { guest.slots()[1].host.add(at).copy_from_nonoverlapping(words.as_ptr(), words.len()) };
        self.private[at..at + words.len()].copy_from_slice(&words);
    }

    /// The bytes that are expected at an address.
    fn at(&self, address: u64, length: u64) -> &[u8] {
        let (base, bytes) = if address < PRIVATE_BASE {
            (SUPERVISOR_BASE, &self.shared)
        } else {
            (self.start, &self.private)
        };
        let start = (address - base) as usize;
        &bytes[start..start + length as usize]
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        let start = (address - self.start) as usize;
        self.private[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Runs one operation. None at the program's end.
    fn step(&mut self, guest: &GuestMemory, program: &mut Program<'_>) -> Option<()> {
        match program.u8()? % op::COUNT {
            op::READ => {
                let (address, length) = (address(program, guest.plan())?, program.u16()? % MOST);
                let mut to = vec![0x5a; length.into()];
                let within = window(&self.readable, address, length.into()).is_some();
                assert_eq!(guest.read(address, &mut to), within, "read {length} bytes at {address:#x}");
                if within && length > 0 {
                    assert_eq!(to, self.at(address, length.into()));
                }
            }
            op::WRITE => {
                let (address, length) = (address(program, guest.plan())?, program.u16()? % MOST);
                let from = vec![program.u8()?; length.into()];
                let found = window(&self.writable, address, length.into());
                assert_eq!(
                    guest.write(address, &from),
                    found.is_some(),
                    "write {length} bytes at {address:#x}"
                );
                if let Some(window) = self.writable.iter().find(|window| window.contains(&address)).cloned() {
                    // What begins inside and ends outside fails, and may be copied as far as it is inside.
                    let inside = usize::from(length).min((window.end - address) as usize);
                    let offset = (address - self.start) as usize;
                    let now = bytes(self.host.wrapping_add(offset), inside as u64);
                    let whole = found.is_some() || now == from[..inside];
                    assert!(whole || now == self.at(address, inside as u64), "half of it");
                    self.put(address, &now);
                    assert!(found.is_none() || now == from);
                }
            }
            op::DISCARD => {
                let (address, length) = (address(program, guest.plan())?, program.u64()?);
                let owns = self.owns(address, length);
                assert_eq!(guest.owns_pages(address, length), owns, "{length} bytes at {address:#x}");
                assert_eq!(guest.discard(address, length), owns, "discard {length} bytes at {address:#x}");
                if owns {
                    self.put(address, &vec![0; length as usize]);
                }
            }
            op::POPULATE => {
                let (address, length) = (address(program, guest.plan())?, program.u64()?);
                let owns = self.owns(address, length);
                assert_eq!(guest.populate(address, length), owns, "populate {length} bytes at {address:#x}");
            }
            op::FAULT_FRAME => {
                let (core, at) = (program.u32()?, address(program, guest.plan())?);
                let stack = FAULT_STACK + u64::from(core) * FAULT_FRAME_SIZE;
                let within = core < MAX_CORES
                    && at.is_multiple_of(8)
                    && (stack..stack + FAULT_FRAME_SIZE).contains(&at);
                let found = guest.fault_frame(core, at);
                assert_eq!(found.is_some(), within, "core {core}, {at:#x}");
                if let Some(frame) = found {
                    let end = stack + FAULT_FRAME_SIZE;
                    let mut expected = self
                        .at(at, end - at)
                        .chunks(8)
                        .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
                    assert!(frame.iter().all(|&word| word == expected.next().unwrap_or(0)));
                }
            }
            _ => {
                let count = program.u8()?;
                let lengths = program.bytes(count.into());
                let strings: Vec<String> = lengths.iter().map(|&length| "x".repeat(length.into())).collect();
                let mut expected: Vec<u8> = Vec::new();
                for string in &strings {
                    expected.extend(string.as_bytes());
                    expected.push(0);
                }
                match guest.write_boot(strings.iter().map(String::as_str)) {
                    Ok((size, offset)) => {
                        assert_eq!(size as usize, expected.len());
                        assert!(expected.len() as u64 <= BOOT_SIZE);
                        let place = REGISTERS + u64::from(offset);
                        let room = if place == BOOT { BOOT_SIZE } else { CONTROL - place };
                        assert!([SMALL_BOOT, BOOT].contains(&place) && u64::from(size) <= room);
                        self.put(place, &expected);
                    }
                    Err(_) => assert!(expected.len() as u64 > BOOT_SIZE),
                }
            }
        }
        Some(())
    }

    fn owns(&self, address: u64, length: u64) -> bool {
        let whole = |value: u64| value.is_multiple_of(PAGE_SIZE);
        let end = u128::from(address) + u128::from(length);
        let within = |from: u64, to: u64| address >= from && end <= to.into();
        whole(address) && whole(length) && (within(self.start, REGISTERS) || within(DATA_BASE, self.heap_end))
    }
}

/// The window that a range is wholly within. A range of no bytes is anywhere.
fn window(windows: &[Range<u64>], address: u64, length: u64) -> Option<Range<u64>> {
    if length == 0 {
        return Some(address..address);
    }
    let inside = |w: &&Range<u64>| address >= w.start && address < w.end && length <= w.end - address;
    windows.iter().find(inside).cloned()
}
