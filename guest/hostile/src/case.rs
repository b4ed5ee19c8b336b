//! What a case is and how it comes out, for those that do not end with a fault.

/// One way of misbehaving.
pub(crate) struct Case {
    /// Name, as the first argument gives it.
    pub name: &'static str,
    /// Does it.
    pub run: fn() -> Verdict,
}

/// A case of a table.
pub(crate) const fn case(name: &'static str, run: fn() -> Verdict) -> Case {
    Case { name, run }
}

/// How a case came out that came back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The VMM answered as the architecture says.
    Held,
    /// The guest should have been stopped.
    WentOn,
    /// The VMM answered otherwise; a line says how.
    Failed,
}

impl Verdict {
    /// Exit status of the guest.
    pub(crate) const fn status(self) -> i32 {
        match self {
            Verdict::Held => 0,
            Verdict::WentOn => 1,
            Verdict::Failed => 2,
        }
    }
}

/// Held if the condition is true; a line says which one was not.
pub(crate) fn check(holds: bool, what: &str) -> Verdict {
    if holds {
        Verdict::Held
    } else {
        guest_libos::println!("FAIL {what}");
        Verdict::Failed
    }
}

/// The worst of several.
pub(crate) fn all(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    verdicts.into_iter().fold(Verdict::Held, |worst, v| if v.status() > worst.status() { v } else { worst })
}
