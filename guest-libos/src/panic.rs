//! What a panic does: message, place and return addresses on the console, then the end of the guest.

use core::panic::PanicInfo;

/// Exit status of a guest that panicked, as Rust's own runtime has it.
const STATUS: i32 = 101;

/// Most return addresses printed.
const DEPTH: usize = 24;
/// Most words of the stack looked at.
const WORDS: usize = 4096;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    crate::println!("{info}");
    print_stack();
    crate::terminate(STATUS)
}

/// Prints what look like return addresses on the stack, innermost first: addresses of text behind a call. It needs
/// neither frame pointers nor unwind tables; now and then one is left over from an earlier call.
#[inline(never)]
fn print_stack() {
    // SAFETY: the linker script defines both; only their addresses are taken.
    unsafe extern "C" {
        safe static __text_start: u8;
        safe static __text_end: u8;
    }
    let (start, end) = (&raw const __text_start as usize, &raw const __text_end as usize);
    let mut here: *const usize;
    // SAFETY: reads RSP.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) here, options(nomem, nostack, preserves_flags)) };
    // Another core's stack lies in the heap: its end is not known here.
    let top = crate::registers().stack_top as usize;
    let words = top.saturating_sub(here as usize) / size_of::<usize>();
    let mut found = 0;
    for _ in 0..words.min(WORDS) {
        // SAFETY: between RSP and the top of core 0's stack.
        let word = unsafe { here.read_volatile() };
        // SAFETY: stays within the stack, or one past its end.
        here = unsafe { here.add(1) };
        // SAFETY: the eight bytes before `word` are text.
        if word >= start + 8 && word < end && unsafe { follows_call(word as *const u8) } {
            if found == 0 {
                crate::println!("return addresses on the stack:");
            }
            crate::println!("  {word:#x}");
            found += 1;
            if found == DEPTH {
                break;
            }
        }
    }
}

/// Whether the instruction before `address` can be a call: `call rel32`, or `call` through a register or memory.
///
/// # Safety
/// The eight bytes before `address` are readable.
unsafe fn follows_call(address: *const u8) -> bool {
    // SAFETY: the caller's promise.
    let byte = |back: usize| unsafe { address.sub(back).read() };
    let is_call_group = |modrm: u8| modrm & 0x38 == 0x10;
    byte(5) == 0xe8
        || (byte(2) == 0xff && is_call_group(byte(1)))
        || (byte(3) == 0xff && is_call_group(byte(2)))
        || (byte(6) == 0xff && is_call_group(byte(5)))
        || (byte(7) == 0xff && is_call_group(byte(6)))
}

// The core library was built with unwinding, so builds that are not optimised refer to the unwinder's entry points.
// Nothing calls them, as panics abort.
core::arch::global_asm!(
    r#"
    .section .text.unwinder, "ax", @progbits
    .weak rust_eh_personality
    .weak _Unwind_Resume
rust_eh_personality:
_Unwind_Resume:
    ud2
    .text
    "#
);
