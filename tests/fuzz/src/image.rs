//! ELF files: what [`Image::parse`] accepts lies within the layout, and the page tables built for it give the guest
//! exactly the rights that the layout names.

use foraker_abi::layout::{
    BLOCK, BOOT, BOOT_SIZE, CONTROL, DATA_BASE, DEFAULT_STACK, FAULT_STACK, FAULT_STUBS, IMAGE_BASE,
    LARGE_PAGE_SIZE, MAX_MEMORY, MAX_STACK, PAGE_SIZE, PRIVATE_BASE, REGISTERS, SUPERVISOR_BASE,
    SUPERVISOR_END, TASK_STATES, VISIT,
};
use foraker_image::{Image, Rights};
use foraker_memory::{MemoryError, Plan, tables};

/// Most bytes that are mapped: bounds the time of a run, and hides nothing, as tables repeat.
const MOST: u64 = 8 << 20;
/// Memory of a guest whose image names none.
const DEFAULT_MEMORY: u64 = 1 << 20;

/// Parses `data` as an image and, if it is one, lays it out and builds its page tables.
pub fn run(data: &[u8]) {
    let Ok(image) = Image::parse(data) else { return };
    check_image(&image, data);
    if image.read_only_end() - IMAGE_BASE > MOST {
        return;
    }
    let memory = if image.note.memory == 0 { DEFAULT_MEMORY } else { image.note.memory.min(MOST) };
    match Plan::new(&image, memory) {
        Ok(plan) => check_plan(&image, &plan, memory),
        Err(MemoryError::TooLittle { given, needed }) => {
            assert_eq!(given, memory);
            assert!(needed > memory & !(PAGE_SIZE - 1), "{needed} needed, {memory} given");
            if needed <= MOST {
                let plan = Plan::new(&image, needed).expect("what is said to be needed is enough");
                check_plan(&image, &plan, needed);
                assert!(Plan::new(&image, needed - PAGE_SIZE).is_err(), "less than {needed} is enough");
            }
        }
        Err(MemoryError::Stack(asked)) => assert!(asked > MAX_STACK && asked == image.note.stack_size),
        Err(error) => panic!("{error}"),
    }
}

fn check_image(image: &Image, data: &[u8]) {
    let mut end = 0;
    for s in &image.segments {
        assert!(s.address.is_multiple_of(PAGE_SIZE) && s.size > 0 && s.content.len() as u64 <= s.size);
        assert!(s.content.len() <= data.len());
        assert!(s.address >= end, "segments overlap, or are not in order");
        let (low, high) = match s.rights {
            Rights::Write => (DATA_BASE, DATA_BASE + MAX_MEMORY),
            Rights::Read | Rights::Execute => (IMAGE_BASE, PRIVATE_BASE),
        };
        assert!(s.address >= low && s.address + s.size <= s.end() && s.end() <= high);
        end = s.end();
    }
    let entry = image.segments.iter().find(|s| (s.address..s.address + s.size).contains(&image.entry));
    assert!(entry.is_some_and(|s| s.rights == Rights::Execute), "the entry point is not executable");
    assert_eq!(image.note.abi_version, foraker_abi::VERSION);
    assert!((IMAGE_BASE..=PRIVATE_BASE).contains(&image.read_only_end()));
    assert!((DATA_BASE..=DATA_BASE + MAX_MEMORY).contains(&image.data_end()));
}

/// What a guest, and the supervisor pages' code, may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    user: bool,
    write: bool,
    execute: bool,
}

/// What the layout says of a page, from its address alone. None: nothing is there.
fn expected(image: &Image, plan: &Plan, page: u64) -> Option<Page> {
    let user =
        |rights| Page { user: true, write: rights == Rights::Write, execute: rights == Rights::Execute };
    let supervisor = |write, execute| Page { user: false, write, execute };
    let stack = if image.note.stack_size == 0 { DEFAULT_STACK } else { image.note.stack_size };
    let stack_bottom = REGISTERS - stack.next_multiple_of(PAGE_SIZE);
    let heap = image.data_end();
    let segment = image.segments.iter().find(|s| (s.address..s.end()).contains(&page));
    match page {
        // The VMM's routine, which a guest may read and run.
        VISIT => Some(Page { user: true, write: false, execute: true }),
        SUPERVISOR_BASE..SUPERVISOR_END => {
            Some(supervisor(false, (FAULT_STUBS..TASK_STATES).contains(&page)))
        }
        _ if page >= stack_bottom && page < REGISTERS => Some(user(Rights::Write)),
        REGISTERS..CONTROL => Some(user(Rights::Read)),
        CONTROL..FAULT_STACK => Some(user(Rights::Write)),
        FAULT_STACK..BLOCK => Some(supervisor(true, false)),
        BOOT.. if page < BOOT + BOOT_SIZE => Some(user(Rights::Read)),
        _ if segment.is_some() => segment.map(|s| user(s.rights)),
        _ if page >= heap && page < plan.memory_end => Some(user(Rights::Write)),
        _ => None,
    }
}

/// The table area of one guest, as words.
struct Area {
    start: u64,
    words: Vec<u64>,
}

impl Area {
    fn index(&self, address: u64) -> usize {
        assert!(address >= self.start && address.is_multiple_of(8), "{address:#x} is no entry of a table");
        usize::try_from((address - self.start) / 8).expect("small")
    }
}

impl tables::Words for Area {
    fn read(&self, address: u64) -> u64 {
        self.words[self.index(address)]
    }

    fn write(&mut self, address: u64, value: u64) {
        let index = self.index(address);
        assert_eq!(self.words[index], 0, "the entry at {address:#x} is written twice");
        self.words[index] = value;
    }
}

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED_AND_DIRTY: u64 = 3 << 5;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A mapped range: where it starts, its bytes, and the rights that all levels grant together.
struct Leaf {
    start: u64,
    size: u64,
    physical: u64,
    page: Page,
}

/// Walks the tables as a processor does, and lists what they map.
struct Walk<'a> {
    area: &'a Area,
    visited: Vec<u64>,
    leaves: Vec<Leaf>,
}

impl Walk<'_> {
    fn table(&mut self, table: u64, level: u32, start: u64, above: Page) {
        assert!(table.is_multiple_of(PAGE_SIZE) && !self.visited.contains(&table), "tables form a tree");
        self.visited.push(table);
        for i in 0..512 {
            let entry = tables::Words::read(self.area, table + i * 8);
            if entry & PRESENT == 0 {
                assert_eq!(entry, 0);
                continue;
            }
            let page = Page {
                user: above.user && entry & USER != 0,
                write: above.write && entry & WRITE != 0,
                execute: above.execute && entry & NO_EXECUTE == 0,
            };
            let size = PAGE_SIZE << (9 * level);
            let at = start + i * size;
            if level == 0 || entry & LARGE != 0 {
                assert!(level <= 1, "no page of a gibibyte");
                assert_eq!(entry & ACCESSED_AND_DIRTY, ACCESSED_AND_DIRTY, "text cannot be marked later");
                self.leaves.push(Leaf { start: at, size, physical: entry & ADDRESS, page });
            } else {
                self.table(entry & ADDRESS, level - 1, at, page);
            }
        }
    }
}

/// Builds the tables of `plan` and compares every page with the layout.
fn check_plan(image: &Image, plan: &Plan, memory: u64) {
    let end = plan.end();
    assert_eq!(plan.memory_size, memory & !(PAGE_SIZE - 1));
    assert!(PRIVATE_BASE < plan.memory_start && plan.memory_start < REGISTERS);
    assert!(
        image.data_end() <= plan.heap_start && plan.heap_start <= plan.memory_end && plan.memory_end <= end
    );
    let shared = plan.tables.end == SUPERVISOR_BASE && plan.tables.start >= PAGE_SIZE;
    assert!(if shared { plan.memory_end == end } else { plan.tables == (plan.memory_end..end) });

    let words = usize::try_from((plan.tables.end - plan.tables.start) / 8).expect("small");
    let mut area = Area { start: plan.tables.start, words: vec![0; words] };
    let root = tables::build(plan, &mut area);
    let mut walk = Walk { area: &area, visited: Vec::new(), leaves: Vec::new() };
    walk.table(root, 3, 0, Page { user: true, write: true, execute: true });

    let mut mapped = 0;
    for leaf in &walk.leaves {
        let last = leaf.start + leaf.size - PAGE_SIZE;
        assert_eq!(leaf.start, leaf.physical, "virtual = guest-physical");
        assert!(leaf.start >= SUPERVISOR_BASE, "{:#x} is mapped", leaf.start);
        assert!(last < plan.memory_end, "a page of tables is mapped");
        assert!(!(leaf.page.write && leaf.page.execute), "{:#x} is writable and executable", leaf.start);
        assert!(leaf.size == PAGE_SIZE || leaf.size == LARGE_PAGE_SIZE && leaf.start >= plan.heap_start);
        assert_eq!(Some(leaf.page), expected(image, plan, leaf.start), "{:#x}", leaf.start);
        assert_eq!(Some(leaf.page), expected(image, plan, last), "{last:#x}");
        mapped += leaf.size;
    }
    // Nothing is missing either.
    let present = |from: u64, to: u64| {
        (from..to).step_by(4096).filter(|&page| expected(image, plan, page).is_some()).count() as u64
    };
    let pages = present(SUPERVISOR_BASE, image.read_only_end()) + present(plan.memory_start, end);
    assert_eq!(mapped, pages * PAGE_SIZE, "every page of the layout is mapped");
}
