//! The console: text goes out in one hypercall for each `print!` or `println!`, up to [`BUFFER`] bytes.

use core::fmt;
use core::mem::MaybeUninit;

/// Bytes that one `print!` collects before it writes.
pub const BUFFER: usize = 1024;

/// Writes all bytes to the console. What the rate limit refuses is lost, and counted in the virtual registers.
pub fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match crate::hypercall::console(bytes) {
            Ok(taken @ 1..) => bytes = bytes.get(taken..).unwrap_or_default(),
            _ => return,
        }
    }
}

/// Collects formatted text on the stack. What is not used of the buffer is not touched.
struct Line {
    buffer: [MaybeUninit<u8>; BUFFER],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        let used = core::mem::take(&mut self.used);
        // SAFETY: `write_str` initialised the first `used` bytes.
        write(unsafe { core::slice::from_raw_parts(self.buffer.as_ptr().cast::<u8>(), used) });
    }
}

impl fmt::Write for Line {
    // Once in an image, not also within `write_char`: the text of a small guest fits a page.
    #[inline(never)]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > BUFFER - self.used {
            self.flush();
            if text.len() >= BUFFER {
                write(text.as_bytes());
                return Ok(());
            }
        }
        // SAFETY: `text` fits behind the `used` bytes, as was just checked, and cannot overlap this private buffer.
        unsafe {
            let to = self.buffer.as_mut_ptr().add(self.used).cast::<u8>();
            to.copy_from_nonoverlapping(text.as_ptr(), text.len());
        }
        self.used += text.len();
        Ok(())
    }
}

/// Writes formatted text. Used by [`print!`](crate::print).
#[doc(hidden)]
pub fn write_fmt(arguments: fmt::Arguments<'_>) {
    if let Some(text) = arguments.as_str() {
        return write(text.as_bytes());
    }
    format(arguments, "");
}

/// Writes formatted text and a new line. Used by [`println!`](crate::println).
#[doc(hidden)]
pub fn write_line(arguments: fmt::Arguments<'_>) {
    format(arguments, "\n");
}

fn format(arguments: fmt::Arguments<'_>, end: &str) {
    let mut line = Line { buffer: [const { MaybeUninit::uninit() }; BUFFER], used: 0 };
    // A `Display` that fails has printed what it could.
    let _ = fmt::Write::write_fmt(&mut line, arguments);
    let _ = fmt::Write::write_str(&mut line, end);
    line.flush();
}

/// Prints formatted text to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::write_fmt(::core::format_args!($($argument)*)) };
}

/// Prints formatted text and a new line to the console, in one hypercall if it is shorter than
/// [`BUFFER`](crate::console::BUFFER).
#[macro_export]
macro_rules! println {
    () => { $crate::console::write(b"\n") };
    ($($argument:tt)*) => { $crate::console::write_line(::core::format_args!($($argument)*)) };
}
