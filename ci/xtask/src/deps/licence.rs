//! SPDX licence expressions (SPDX 2.3, annex D), as crates declare them.

use std::collections::BTreeSet;

/// Whether an expression can be fulfilled with allowed licences alone; `None` when it is malformed.
pub(crate) fn allowed(expression: &str, allow: &BTreeSet<String>) -> Option<bool> {
    // Old manifests write `/` for OR.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allow };
    let result = parser.any()?;
    parser.words.is_empty().then_some(result)
}

struct Parser<'a> {
    words: &'a [&'a str],
    allow: &'a BTreeSet<String>,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    /// Takes the next word if it is this one.
    fn eat(&mut self, word: &str) -> bool {
        let found = self.words.first().is_some_and(|w| *w == word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    /// `a OR b`; AND binds more tightly.
    fn any(&mut self) -> Option<bool> {
        let mut result = self.all()?;
        while self.eat("OR") {
            result |= self.all()?;
        }
        Some(result)
    }

    fn all(&mut self) -> Option<bool> {
        let mut result = self.one()?;
        while self.eat("AND") {
            result &= self.one()?;
        }
        Some(result)
    }

    fn one(&mut self) -> Option<bool> {
        if self.eat("(") {
            let result = self.any()?;
            return self.eat(")").then_some(result);
        }
        let name = self.next().filter(|w| !["AND", "OR", "WITH", "(", ")"].contains(w))?;
        if self.eat("WITH") {
            let exception = self.next()?;
            return Some(self.allow.contains(&format!("{name} WITH {exception}")));
        }
        Some(self.allow.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated() {
        let allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
        let allow: BTreeSet<String> = allow.iter().map(ToString::to_string).collect();
        for (expression, expected) in [
            ("MIT", Some(true)),
            ("GPL-2.0", Some(false)),
            ("MIT OR GPL-2.0", Some(true)),
            ("MIT AND GPL-2.0", Some(false)),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", Some(true)),
            ("GPL-2.0 OR MIT AND Unicode-3.0", Some(true)),
            ("(GPL-2.0 OR MIT) AND GPL-2.0", Some(false)),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", Some(true)),
            ("MIT WITH LLVM-exception", Some(false)),
            ("MIT/Apache-2.0", Some(true)),
            ("", None),
            ("MIT OR", None),
            ("(MIT", None),
            ("MIT Apache-2.0", None),
            ("AND", None),
        ] {
            assert_eq!(allowed(expression, &allow), expected, "{expression}");
        }
    }
}
