//! Start of a guest: `_start`, the [`entry!`](crate::entry) macro and the image's note.

use foraker_abi::note::Note;

/// The first instructions. The VMM enters with RSP aligned at the top of the stack and RDI = 0; the frame pointer is
/// zeroed so that a walk of frames ends here.
///
/// # Safety
/// For the VMM alone, once.
#[cfg(not(test))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
unsafe extern "C" fn _start() -> ! {
    core::arch::naked_asm!(
        "xor ebp, ebp",
        "and rsp, -16",
        "call {main}",
        "ud2",
        main = sym run,
    )
}

// SAFETY: `entry!` defines it with this signature.
#[cfg(not(test))]
unsafe extern "Rust" {
    /// Defined by `entry!` in the guest.
    safe fn __foraker_guest_main() -> i32;
}

#[cfg(not(test))]
extern "C" fn run() -> ! {
    crate::terminate(__foraker_guest_main())
}

/// The note of an image. Used by [`entry!`](crate::entry).
#[doc(hidden)]
#[must_use]
pub const fn note(options: Options) -> Note {
    let flags = if options.net { foraker_abi::note::FLAG_NET } else { 0 };
    Note::new(flags, options.stack, options.memory)
}

/// What an image's note asks of the VMM. A manifest and the command line override it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of stack of core 0; 0 for the default.
    pub stack: u64,
    /// Bytes of memory; 0 for the VMM's default.
    pub memory: u64,
    /// Whether the guest wants the virtual ethernet.
    pub net: bool,
}

impl Options {
    /// Defaults: the VMM's stack and memory, no network.
    pub const NEW: Options = Options { stack: 0, memory: 0, net: false };
}

/// What `main` may return: an exit status.
pub trait Status {
    /// The status that the VMM reports: 0 for success; keep to 0..=119, as the VMM uses higher ones.
    fn status(self) -> i32;
}

impl Status for i32 {
    fn status(self) -> i32 {
        self
    }
}

impl Status for () {
    fn status(self) -> i32 {
        0
    }
}

impl Status for core::convert::Infallible {
    fn status(self) -> i32 {
        match self {}
    }
}

impl<E: core::fmt::Display> Status for Result<(), E> {
    fn status(self) -> i32 {
        match self {
            Ok(()) => 0,
            Err(e) => {
                crate::println!("error: {e}");
                1
            }
        }
    }
}

/// Makes a function the guest's program, and writes the note by which the VMM knows an image.
///
/// ```ignore
/// guest_libos::entry!(main);                                   // fn main() -> i32, or (), or Result<(), E: Display>
/// guest_libos::entry!(async main, net: true);                  // async fn main(), run by the executor
/// guest_libos::entry!(main, stack: 128 << 10, memory: 16 << 20);
/// ```
///
/// `stack` and `memory` are in bytes; `net` says that the guest wants the virtual ethernet.
#[macro_export]
macro_rules! entry {
    (async $main:path $(, $option:ident : $value:expr)* $(,)?) => {
        $crate::entry!(@define || $crate::task::run($main()) $(, $option : $value)*);
    };
    ($main:path $(, $option:ident : $value:expr)* $(,)?) => {
        $crate::entry!(@define $main $(, $option : $value)*);
    };
    (@define $call:expr $(, $option:ident : $value:expr)*) => {
        const _: () = {
            #[unsafe(no_mangle)]
            fn __foraker_guest_main() -> i32 {
                $crate::start::Status::status(($call)())
            }

            #[used]
            #[unsafe(link_section = ".note.foraker")]
            static NOTE: $crate::abi::note::Note = $crate::start::note($crate::start::Options {
                $($option: $value,)*
                ..$crate::start::Options::NEW
            });
        };
    };
}
