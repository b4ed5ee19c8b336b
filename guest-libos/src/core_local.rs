//! State that belongs to core 0: tasks and the network run there, so that they need no locks.

/// A value that only core 0 uses.
#[cfg(not(test))]
pub(crate) struct CoreLocal<T>(T);

// SAFETY: `with` refuses every core but 0, and code in an upcall's handler may not call it (see `upcall`).
#[cfg(not(test))]
unsafe impl<T> Sync for CoreLocal<T> {}

#[cfg(not(test))]
impl<T> CoreLocal<T> {
    pub(crate) const fn new(value: T) -> Self {
        CoreLocal(value)
    }

    /// Lends the value.
    ///
    /// # Panics
    /// On another core than 0.
    #[inline(always)]
    pub(crate) fn with<R>(&'static self, f: impl FnOnce(&'static T) -> R) -> R {
        assert!(on_core_0(), "tasks and network belong to core 0");
        f(&self.0)
    }
}

/// Whether this is core 0: its stack lies below the heap, those of other cores in the heap.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn on_core_0() -> bool {
    let rsp: u64;
    // SAFETY: reads RSP.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags, pure)) };
    rsp <= crate::registers().stack_top
}

/// Each thread of a test is a guest of its own.
#[cfg(test)]
pub(crate) fn on_core_0() -> bool {
    true
}

/// Defines a [`CoreLocal`] (one for each thread, in tests).
macro_rules! core_local {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(not(test))]
        $(#[$attribute])*
        static $name: $crate::core_local::CoreLocal<$type> = $crate::core_local::CoreLocal::new($value);
        #[cfg(test)]
        ::std::thread_local! {
            $(#[$attribute])*
            // Never dropped, as on a guest.
            static $name: ::core::mem::ManuallyDrop<$type> = const { ::core::mem::ManuallyDrop::new($value) };
        }
    };
}
pub(crate) use core_local;
