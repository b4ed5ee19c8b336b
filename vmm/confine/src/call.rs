//! The words of a table: a system call, and when it is allowed.

/// What an argument is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// The process' own number, known when the filter is made.
    OwnProcess,
}

/// A condition on one argument. Of most, the kernel looks at the lower 32 bits only, and so does the filter; a mask with higher bits looks at all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// The bits that are compared.
    pub mask: u64,
    /// What they must be.
    pub value: Value,
}

/// The bits of an argument of 32 bits.
pub(crate) const LOWER: u64 = u32::MAX as u64;

impl Condition {
    /// The argument is this number.
    #[must_use]
    pub const fn is(argument: u8, value: u32) -> Condition {
        Condition { argument, mask: LOWER, value: Value::Number(value as u64) }
    }

    /// The argument has none of these bits.
    #[must_use]
    pub const fn without(argument: u8, bits: u32) -> Condition {
        Condition { argument, mask: bits as u64, value: Value::Number(0) }
    }

    /// The argument has all of these bits.
    #[must_use]
    pub const fn with(argument: u8, bits: u32) -> Condition {
        Condition { argument, mask: bits as u64, value: Value::Number(bits as u64) }
    }

    /// The argument is this number in these bits.
    #[must_use]
    pub const fn masked(argument: u8, mask: u32, value: u32) -> Condition {
        Condition { argument, mask: mask as u64, value: Value::Number(value as u64) }
    }

    /// The argument names this process.
    #[must_use]
    pub const fn own_process(argument: u8) -> Condition {
        Condition { argument, mask: LOWER, value: Value::OwnProcess }
    }

    /// The argument is a null pointer.
    #[must_use]
    pub const fn null(argument: u8) -> Condition {
        Condition { argument, mask: u64::MAX, value: Value::Number(0) }
    }
}

/// One way in which a system call is allowed: all of its conditions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// How the book says it.
    pub text: &'static str,
    /// The conditions.
    pub conditions: &'static [Condition],
}

/// A system call of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The name of its number in the C library: `SYS_read`.
    pub symbol: &'static str,
    /// Its number.
    pub number: i64,
    /// The ways in which it is allowed, the most frequent first; none if it always is.
    pub rules: &'static [Rule],
}

impl Call {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.symbol.trim_start_matches("SYS_")
    }
}

/// Calls that belong together.
pub type Group = &'static [Call];

/// A call that is always allowed, or by the rules that follow its name.
macro_rules! call {
    ($symbol:ident) => {
        call!($symbol, &[])
    };
    ($symbol:ident, $rules:expr) => {
        $crate::call::Call { symbol: stringify!($symbol), number: libc::$symbol, rules: $rules }
    };
}

/// A rule: its text and its conditions.
macro_rules! rule {
    ($text:expr, $($condition:expr),+) => {
        $crate::call::Rule { text: $text, conditions: &[$($condition),+] }
    };
}

pub(crate) use {call, rule};
