//! The note by which an ELF file says that it is an image, and for which version of the architecture.
//!
//! A `SHT_NOTE`/`PT_NOTE` entry with the name [`NAME`], the type [`TYPE`] and a [`Descriptor`].

/// Owner's name of the note, with its closing NUL.
pub const NAME: [u8; 8] = *b"Foraker\0";
/// Type of the note.
pub const TYPE: u32 = 1;
/// Name of the ELF section that holds an image's manifest (TOML), if it has one.
pub const MANIFEST_SECTION: &str = ".foraker.manifest";
/// `flags`: the guest uses the network.
pub const FLAG_NET: u32 = 1 << 0;

/// What the note says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// [`crate::VERSION`] the image was built for.
    pub abi_version: u32,
    /// [`FLAG_NET`].
    pub flags: u32,
    /// Bytes of core 0's stack; 0 for [`crate::layout::DEFAULT_STACK`].
    pub stack_size: u64,
    /// Bytes of memory to give when nobody says otherwise; 0 for the VMM's default.
    pub memory: u64,
}

/// A whole note, as it stands in the file.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// Bytes of `name`.
    pub name_size: u32,
    /// Bytes of `descriptor`.
    pub descriptor_size: u32,
    /// [`TYPE`].
    pub note_type: u32,
    /// [`NAME`].
    pub name: [u8; 8],
    /// [`Descriptor`], as 32-bit words so that the note has no padding.
    pub descriptor: [u32; 6],
}

impl Note {
    /// The note of an image for this version.
    #[must_use]
    pub const fn new(flags: u32, stack_size: u64, memory: u64) -> Self {
        const LOW: u64 = 0xffff_ffff;
        const fn halves(v: u64) -> (u32, u32) {
            ((v & LOW) as u32, (v >> 32) as u32)
        }
        let (s0, s1) = halves(stack_size);
        let (m0, m1) = halves(memory);
        Note {
            name_size: 8,
            descriptor_size: 24,
            note_type: TYPE,
            name: NAME,
            descriptor: [crate::VERSION, flags, s0, s1, m0, m1],
        }
    }
}

const _: () = {
    assert!(size_of::<Descriptor>() == 24);
    assert!(size_of::<Note>() == 12 + 8 + 24);
};
