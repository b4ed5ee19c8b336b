//! Counts what really ran, out of what test programs print.

use std::ops::AddAssign;

use crate::terminal;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Totals {
    /// One thing that is no test, and went well or not.
    pub(crate) fn one(good: bool) -> Self {
        Totals { passed: u64::from(good), failed: u64::from(!good), skipped: 0 }
    }

    /// One thing that was not done, for a reason that was shown.
    pub(crate) fn skipped() -> Self {
        Totals { skipped: 1, ..Totals::default() }
    }

    /// Whether anything was counted.
    pub(crate) fn is_empty(self) -> bool {
        self == Totals::default()
    }

    /// Adds what a line of libtest's or nextest's output reports, if it does.
    pub(crate) fn take(&mut self, line: &str) {
        let line = terminal::plain(line);
        let line = line.trim();
        if let Some(counts) = line.strip_prefix("test result: ") {
            // test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s
            let counts = counts.split_once('.').map_or("", |(_, rest)| rest);
            self.add_counts(counts, ';');
        } else if line.starts_with("Summary [") {
            // Summary [   0.357s] 22 tests run: 21 passed (1 slow), 1 failed, 0 skipped
            let counts = line.split_once(" run: ").map_or("", |(_, rest)| rest);
            self.add_counts(counts, ',');
        }
    }

    fn add_counts(&mut self, counts: &str, separator: char) {
        for part in counts.split(separator) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match (word, words.next()) {
                ("passed", _) => self.passed += number,
                ("failed", _) | ("timed", Some("out")) | ("exec", Some("failed")) => self.failed += number,
                ("ignored" | "skipped", _) => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(lines: &[&str]) -> (u64, u64, u64) {
        let mut totals = Totals::default();
        lines.iter().for_each(|line| totals.take(line));
        (totals.passed, totals.failed, totals.skipped)
    }

    #[test]
    fn libtest_is_understood() {
        let lines = [
            "running 6 tests",
            "test a ... ok",
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s",
            "test result: \x1b[31mFAILED\x1b[m. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out",
        ];
        assert_eq!(totals(&lines), (7, 3, 1));
    }

    #[test]
    fn nextest_is_understood() {
        let lines = [
            "    Starting 22 tests across 1 binary",
            "        PASS [   0.007s] ( 1/22) xtask::bin/xtask x",
            "     Summary [   0.357s] 22 tests run: 18 passed (1 slow), 2 failed, 1 timed out, 1 exec failed, 4 skipped",
            "\x1b[32;1m     Summary\x1b[0m [   0.005s] \x1b[1m1\x1b[0m test run: \x1b[1m1\x1b[0m passed, \x1b[1m0\x1b[0m skipped",
        ];
        assert_eq!(totals(&lines), (19, 4, 4));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(totals(&["5 passed, 3 failed", "warning: 2 failed", "Summary"]), (0, 0, 0));
    }

    #[test]
    fn the_last_line_is_plain() {
        assert_eq!(Totals { passed: 3, failed: 1, skipped: 0 }.to_string(), "3 passed, 1 failed");
        assert_eq!(Totals { passed: 3, failed: 0, skipped: 2 }.to_string(), "3 passed, 0 failed, 2 skipped");
    }
}
