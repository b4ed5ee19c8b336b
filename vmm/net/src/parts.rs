//! A frame in pieces: some in the VMM's memory, some still where a guest has them.

use std::marker::PhantomData;
use std::ptr::NonNull;

/// Bytes of the VMM or of a guest. The same layout as `iovec`, so that a list of them can be given to the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Part(libc::iovec);

impl Part {
    pub(crate) const EMPTY: Part = Part(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });

    #[inline]
    pub(crate) fn new(base: *const u8, length: usize) -> Self {
        Part(libc::iovec { iov_base: base.cast_mut().cast(), iov_len: length })
    }

    /// Takes in what lies directly behind. False if it lies elsewhere.
    #[inline]
    pub(crate) fn join(&mut self, next: NonNull<u8>, length: usize) -> bool {
        if self.base().wrapping_add(self.length()) != next.as_ptr() {
            return false;
        }
        self.0.iov_len += length;
        true
    }

    #[inline]
    pub(crate) fn base(&self) -> *const u8 {
        self.0.iov_base.cast_const().cast()
    }

    #[inline]
    pub(crate) fn length(&self) -> usize {
        self.0.iov_len
    }
}

/// An offload header and a frame, in pieces.
///
/// Invariant: the pieces' bytes are mapped and readable for `'a`. They may change at any time where they are a
/// guest's, so they are only copied, by the VMM or by the kernel.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    list: &'a [Part],
    total: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Parts<'a> {
    /// These pieces, of `total` bytes together.
    ///
    /// # Safety
    /// Their bytes are mapped and readable for `'a`.
    #[inline]
    pub(crate) unsafe fn new(list: &'a [Part], total: usize) -> Self {
        Parts { list, total, bytes: PhantomData }
    }

    /// Bytes of header and frame.
    #[inline]
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Copies them to the start of `to`, as far as that has room. Returns how many bytes.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        // SAFETY: `to` is a slice.
        unsafe { self.reader().copy(NonNull::from(&mut *to).cast(), to.len()) }
    }

    #[inline]
    pub(crate) fn list(&self) -> &'a [Part] {
        self.list
    }

    /// Reads the bytes one behind the other.
    #[inline]
    pub(crate) fn reader(&self) -> PartsReader<'a> {
        PartsReader { parts: self.list, taken: 0, bytes: PhantomData }
    }
}

/// One contiguous piece.
pub(crate) struct Whole<'a> {
    part: [Part; 1],
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Whole<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Whole { part: [Part::new(bytes.as_ptr(), bytes.len())], bytes: PhantomData }
    }

    #[inline]
    pub(crate) fn parts(&self) -> Parts<'_> {
        let [part] = &self.part;
        Parts { list: &self.part, total: part.length(), bytes: PhantomData }
    }
}

/// Room for an offload header and a frame, in pieces.
///
/// Invariant: the pieces are mapped and writable for `'a`, and nobody else in the VMM writes to them meanwhile. Where
/// they are a guest's, it may.
pub struct Places<'a> {
    list: &'a [Part],
    bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Places<'a> {
    /// These pieces.
    ///
    /// # Safety
    /// They are mapped and writable for `'a`, and nobody else in the VMM writes to them meanwhile.
    #[inline]
    pub(crate) unsafe fn new(list: &'a [Part]) -> Self {
        Places { list, bytes: PhantomData }
    }

    /// Copies `from` to them, as far as they have room. Returns how many bytes.
    pub fn copy_from(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        for part in self.list {
            let rest = from.get(done..).unwrap_or_default();
            let chunk = rest.len().min(part.length());
            // SAFETY: `chunk` writable bytes, by the invariant.
            unsafe { std::ptr::copy(rest.as_ptr(), part.base().cast_mut(), chunk) };
            done += chunk;
        }
        done
    }

    #[inline]
    pub(crate) fn list(&self) -> &'a [Part] {
        self.list
    }
}

/// Copies the bytes of [`Parts`] in order.
pub(crate) struct PartsReader<'a> {
    parts: &'a [Part],
    /// Bytes taken from the first of `parts`.
    taken: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl PartsReader<'_> {
    /// Copies the next `length` bytes to `to`; fewer if the parts end before. Returns how many.
    ///
    /// # Safety
    /// `length` bytes at `to` are mapped and writable. They may change meanwhile.
    #[inline]
    pub(crate) unsafe fn copy(&mut self, to: NonNull<u8>, length: usize) -> usize {
        let mut done = 0;
        while done < length
            && let Some((part, rest)) = self.parts.split_first()
        {
            let chunk = (part.length() - self.taken).min(length - done);
            // SAFETY: `done <= length`, within what the caller vouches for.
            let target = unsafe { to.add(done) };
            // SAFETY: `taken + chunk` is at most the part's length.
            let source = unsafe { part.base().add(self.taken) };
            // SAFETY: mapped by the invariant of `Parts` and by the caller. The ranges may overlap when a guest receives
            // where it sends from.
            unsafe { std::ptr::copy(source, target.as_ptr(), chunk) };
            done += chunk;
            self.taken += chunk;
            if self.taken == part.length() {
                self.parts = rest;
                self.taken = 0;
            }
        }
        done
    }
}
