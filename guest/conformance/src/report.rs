//! One line for each thing that was checked.

use core::fmt;

use guest_libos::println;

/// Counts what was checked.
#[derive(Default)]
pub(crate) struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    /// `ok NAME`, or `FAIL NAME: detail`.
    pub(crate) fn check(&mut self, name: &str, holds: bool, detail: fmt::Arguments<'_>) {
        if holds {
            self.passed += 1;
            println!("ok {name}");
        } else {
            self.failed += 1;
            println!("FAIL {name}: {detail}");
        }
    }

    /// Two values that must be the same.
    pub(crate) fn equal<T: PartialEq + fmt::Debug>(&mut self, name: &str, found: T, expected: T) {
        let holds = found == expected;
        self.check(name, holds, format_args!("{found:?}, expected {expected:?}"));
    }

    /// The closing line; the guest's exit status.
    pub(crate) fn close(self) -> i32 {
        println!("conformance: {} ok, {} failed", self.passed, self.failed);
        i32::from(self.failed != 0)
    }
}
