//! Page tables: four levels, 4 KiB pages, 2 MiB pages where a range of the heap is that large. Pure.
//!
//! The accessed and dirty bits are set beforehand, so that nobody writes to tables that guests share. They lie in a slot that could be written,
//! because AMD's nested walker treats reads of guest page tables as writes; no address of a guest leads to them.

use foraker_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};
use foraker_image::Rights;

use crate::plan::{Access, Plan};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where tables are written: words by their guest address.
pub trait Words {
    /// Reads the word at a guest address within the table area.
    fn read(&self, address: u64) -> u64;
    /// Writes the word at a guest address within the table area.
    fn write(&mut self, address: u64, value: u64);
}

/// Writes the tables of `plan` to its table area, which must be zero. Returns the address of the top table, for CR3.
///
/// # Panics
/// When the area is smaller than the tables: a mistake in [`Plan::new`].
pub fn build(plan: &Plan, words: &mut impl Words) -> u64 {
    let mut next = plan.tables.start;
    let limit = plan.tables.end;
    let mut take = || {
        let table = next;
        next += PAGE_SIZE;
        assert!(next <= limit, "the plan reserved too few page tables");
        table
    };
    let root = take();
    for (range, access) in &plan.ranges {
        let bits = bits(*access);
        let mut at = range.start;
        while at < range.end {
            let large = at.is_multiple_of(LARGE_PAGE_SIZE)
                && range.end - at >= LARGE_PAGE_SIZE
                && at >= plan.heap_start;
            let leaf_shift = if large { 21 } else { 12 };
            let mut table = root;
            for shift in [39, 30, 21] {
                if shift == leaf_shift {
                    break;
                }
                let entry = table + (at >> shift & 511) * 8;
                let value = words.read(entry);
                table = if value & PRESENT == 0 {
                    let below = take();
                    // Rights are decided at the leaf alone.
                    words.write(entry, below | PRESENT | WRITE | USER | ACCESSED);
                    below
                } else {
                    value & ADDRESS
                };
            }
            let size = if large { LARGE } else { 0 };
            words.write(table + (at >> leaf_shift & 511) * 8, at | bits | size);
            at += 1 << leaf_shift;
        }
    }
    root
}

fn bits(access: Access) -> u64 {
    PRESENT
        | ACCESSED
        | DIRTY
        | match access {
            Access::SupervisorExecute => 0,
            Access::SupervisorRead => NO_EXECUTE,
            Access::SupervisorWrite => WRITE | NO_EXECUTE,
            Access::User(Rights::Execute) => USER,
            Access::User(Rights::Read) => USER | NO_EXECUTE,
            Access::User(Rights::Write) => USER | WRITE | NO_EXECUTE,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foraker_abi::layout::{
        DATA_BASE, FAULT_STACK, IMAGE_BASE, MAX_STACK, PRIVATE_BASE, REGISTERS, SUPERVISOR_BASE,
    };
    use foraker_abi::note;
    use foraker_image::{Image, Segment};
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Map(HashMap<u64, u64>);
    impl Words for Map {
        fn read(&self, address: u64) -> u64 {
            self.0.get(&address).copied().unwrap_or(0)
        }
        fn write(&mut self, address: u64, value: u64) {
            assert!(self.0.insert(address, value).unwrap_or(0) == 0, "{address:#x} written twice");
        }
    }

    impl Map {
        /// Walks as the processor does: the leaf's address and bits.
        fn walk(&self, root: u64, address: u64) -> Option<(u64, u64)> {
            let mut table = root;
            for shift in [39, 30, 21, 12] {
                let value = self.read(table + (address >> shift & 511) * 8);
                if value & PRESENT == 0 {
                    return None;
                }
                if shift == 12 || value & LARGE != 0 {
                    let mask = (1u64 << shift) - 1;
                    return Some((value & ADDRESS & !mask | address & mask, value & !ADDRESS));
                }
                table = value & ADDRESS;
            }
            None
        }
    }

    fn image(text: u64, data: u64, stack: u64) -> Image {
        let segment = |address, size, rights| Segment { address, size, content: vec![], rights };
        Image {
            entry: IMAGE_BASE,
            note: note::Descriptor { stack_size: stack, ..note::Descriptor::default() },
            manifest: None,
            segments: vec![
                segment(IMAGE_BASE, text, Rights::Execute),
                segment(IMAGE_BASE + text.next_multiple_of(PAGE_SIZE), 1, Rights::Read),
                segment(DATA_BASE, data, Rights::Write),
            ],
            path: None,
        }
    }

    #[test]
    fn what_is_needed_counts_the_tables_for_itself() {
        // The heap starts three pages below a large page's end: with its tables the memory reaches beyond, for one table more.
        let heap = DATA_BASE.next_multiple_of(LARGE_PAGE_SIZE) - 3 * PAGE_SIZE;
        let image = image(PAGE_SIZE, heap - DATA_BASE, 2 * PAGE_SIZE);
        let Err(crate::MemoryError::TooLittle { needed, .. }) = Plan::new(&image, 128 << 10) else {
            panic!()
        };
        assert_eq!(needed, 2 * PAGE_SIZE + (heap - REGISTERS), "they are shared");
        assert!(Plan::new(&image, needed).is_ok());
        assert!(Plan::new(&image, needed - PAGE_SIZE).is_err());
        // Two GiB of data take a thousand tables.
        let image = self::image(PAGE_SIZE, 2 << 30, 2 * PAGE_SIZE);
        let Err(crate::MemoryError::TooLittle { needed, .. }) = Plan::new(&image, 128 << 10) else {
            panic!()
        };
        let plan = Plan::new(&image, needed).unwrap();
        assert_eq!((plan.tables.end, plan.tables.start), (plan.end(), plan.memory_end));
        assert_eq!(
            needed,
            2 * PAGE_SIZE + (DATA_BASE - REGISTERS) + (2 << 30) + (plan.end() - plan.memory_end)
        );
        assert!(Plan::new(&image, needed - PAGE_SIZE).is_err());
        build(&plan, &mut Map::default());
    }

    #[test]
    fn a_stack_ends_above_the_image() {
        let plan = Plan::new(&image(PAGE_SIZE, PAGE_SIZE, MAX_STACK), 1 << 30).unwrap();
        assert_eq!(plan.memory_start, PRIVATE_BASE + PAGE_SIZE);
        for stack in [MAX_STACK + 1, u64::MAX] {
            let refused = Plan::new(&image(PAGE_SIZE, PAGE_SIZE, stack), 1 << 30);
            assert!(matches!(refused, Err(crate::MemoryError::Stack(asked)) if asked == stack));
        }
    }

    proptest! {
        #[test]
        fn maps_exactly_what_the_plan_says(
            text in 1u64..6 << 20, data in 1u64..5 << 20, stack in 0u64..3 << 20, memory in 0u64..40 << 20,
        ) {
            let image = image(text, data, stack);
            let Ok(plan) = Plan::new(&image, memory) else {
                let Err(crate::MemoryError::TooLittle { needed, .. }) = Plan::new(&image, memory) else { panic!() };
                prop_assert!(needed > memory & !4095);
                prop_assert!(Plan::new(&image, needed).is_ok());
                prop_assert!(Plan::new(&image, needed - PAGE_SIZE).is_err());
                return Ok(());
            };
            let mut map = Map::default();
            let root = build(&plan, &mut map);
            for (range, access) in &plan.ranges {
                if range.is_empty() { continue; }
                for at in [range.start, range.end - 1, range.start.midpoint(range.end)] {
                    let (physical, found) = map.walk(root, at).expect("mapped");
                    prop_assert_eq!(physical, at);
                    prop_assert_eq!(found & !LARGE, bits(*access));
                }
            }
            // Page 0, the guard below the stack, the tables and the hole around the image are not there.
            for at in [0, SUPERVISOR_BASE - 1, plan.memory_start - 1, plan.memory_end, root, plan.shared_end, PRIVATE_BASE] {
                prop_assert!(map.walk(root, at).is_none(), "{:#x}", at);
            }
            prop_assert_eq!(map.walk(root, REGISTERS).unwrap().1 & WRITE, 0);
            prop_assert_eq!(map.walk(root, FAULT_STACK).unwrap().1 & USER, 0);
        }
    }
}
