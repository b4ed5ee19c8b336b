//! Guests of a few instructions.

/// The instructions between two labels of one section, the first before the second.
///
/// # Safety
/// They are that.
pub(crate) unsafe fn code(from: &'static u8, to: &'static u8) -> Vec<u8> {
    let (from, to) = (std::ptr::from_ref(from), std::ptr::from_ref(to));
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(from, to as usize - from as usize) }.to_vec()
}
