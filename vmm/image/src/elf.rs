//! Reading and checking an ELF file.

use std::path::{Path, PathBuf};

use foraker_abi::layout::{DATA_BASE, IMAGE_BASE, MAX_MEMORY, PAGE_SIZE, PRIVATE_BASE};
use foraker_abi::note;
use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_NOTE};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

/// Most program headers of an image.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of a manifest.
const MAX_MANIFEST: u64 = 64 << 10;

/// Why a file is not run.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("cannot read the image: {0}")]
    Io(#[from] std::io::Error),
    /// The file is not an ELF file, or a damaged one.
    #[error("not an image: {0} (build one with the library OS; see the chapter \"Your first guest\")")]
    NotAnImage(&'static str),
    /// The image is for another version of the architecture.
    #[error(
        "the image is for version {found} of the virtual architecture, this VMM for version {expected}: build the image again"
    )]
    Version {
        /// Version in the image's note.
        found: u32,
        /// Version of this VMM.
        expected: u32,
    },
    /// A segment does not fit the layout.
    #[error("segment at {address:#x}: {problem}")]
    Segment {
        /// Where the segment starts.
        address: u64,
        /// What is wrong.
        problem: &'static str,
    },
}

/// What a guest may do with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// r-x.
    Execute,
    /// r--.
    Read,
    /// rw-.
    Write,
}

/// A range of the address space with its first content.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it starts, page-aligned.
    pub address: u64,
    /// Bytes in memory.
    pub size: u64,
    /// First content; the rest is zeros. Never longer than `size`.
    pub content: Vec<u8>,
    /// What the guest may do.
    pub rights: Rights,
}

impl Segment {
    /// End of the last page of the segment.
    #[must_use]
    pub fn end(&self) -> u64 {
        (self.address + self.size).next_multiple_of(PAGE_SIZE)
    }
}

/// A checked image.
#[derive(Clone, Debug)]
pub struct Image {
    /// First instruction.
    pub entry: u64,
    /// What the note says.
    pub note: note::Descriptor,
    /// Manifest in TOML, if the file has one.
    pub manifest: Option<String>,
    /// Segments in the order of their addresses.
    pub segments: Vec<Segment>,
    /// The file, when there is one: where symbols are.
    pub path: Option<PathBuf>,
}

impl Image {
    /// Reads an image from a file; only the parts needed to run it.
    ///
    /// # Errors
    /// The file cannot be read, or see [`Image::parse`].
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        let file = std::fs::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(ImageError::NotAnImage("not a regular file"));
        }
        let cache = object::read::ReadCache::new(file);
        Ok(Image { path: Some(path.to_path_buf()), ..Image::parse(&cache)? })
    }

    /// Checks and lays out an image.
    ///
    /// # Errors
    /// Not an ELF file for this architecture, no note or one of another version, or a segment that does not fit the layout.
    pub fn parse<'a, R: ReadRef<'a>>(data: R) -> Result<Image, ImageError> {
        let header = FileHeader64::<LittleEndian>::parse(data)
            .map_err(|_| ImageError::NotAnImage("not an ELF file"))?;
        let endian =
            header.endian().map_err(|_| ImageError::NotAnImage("not a 64-bit little-endian ELF file"))?;
        if header.e_machine(endian) != EM_X86_64 || header.e_type(endian) != ET_EXEC {
            return Err(ImageError::NotAnImage("not a static executable for x86-64 (position-independent?)"));
        }
        let headers = header
            .program_headers(endian, data)
            .map_err(|_| ImageError::NotAnImage("damaged program headers"))?;
        if headers.len() > MAX_SEGMENTS {
            return Err(ImageError::NotAnImage("too many program headers"));
        }
        // The note before the segments: of an ordinary program, only that it is one is of interest.
        let mut found = None;
        for h in headers {
            match h.p_type(endian) {
                PT_INTERP | PT_DYNAMIC => {
                    return Err(ImageError::NotAnImage("dynamically linked: link it with -static -no-pie"));
                }
                PT_NOTE if found.is_none() => {
                    let bytes = h.data(endian, data).map_err(|()| ImageError::NotAnImage("damaged note"))?;
                    found = find_note(bytes);
                }
                _ => {}
            }
        }
        let Some(note) = found else {
            return Err(ImageError::NotAnImage("no note of this VMM (an ordinary program cannot be run)"));
        };
        if note.abi_version != foraker_abi::VERSION {
            return Err(ImageError::Version { found: note.abi_version, expected: foraker_abi::VERSION });
        }
        if note.stack_size > MAX_MEMORY || note.memory > MAX_MEMORY {
            return Err(ImageError::NotAnImage("the note asks for too much memory"));
        }
        let loaded = headers.iter().filter(|h| h.p_type(endian) == PT_LOAD && h.p_memsz(endian) > 0);
        let mut segments = loaded.map(|h| load(h, endian, data)).collect::<Result<Vec<_>, _>>()?;
        segments.sort_by_key(|s| s.address);
        for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
            if a.end() > b.address {
                return Err(ImageError::Segment { address: b.address, problem: "overlaps the one before" });
            }
        }
        let entry = header.e_entry(endian);
        let inside =
            |s: &Segment| s.rights == Rights::Execute && (s.address..s.address + s.size).contains(&entry);
        if !segments.iter().any(inside) {
            return Err(ImageError::NotAnImage("the entry point is not in an executable segment"));
        }
        let manifest = manifest(header, endian, data);
        Ok(Image { entry, note, manifest, segments, path: None })
    }

    /// End of the shared, read-only part: text and read-only data.
    #[must_use]
    pub fn read_only_end(&self) -> u64 {
        self.segments
            .iter()
            .filter(|s| s.rights != Rights::Write)
            .map(Segment::end)
            .max()
            .unwrap_or(IMAGE_BASE)
    }

    /// End of data and bss.
    #[must_use]
    pub fn data_end(&self) -> u64 {
        self.segments
            .iter()
            .filter(|s| s.rights == Rights::Write)
            .map(Segment::end)
            .max()
            .unwrap_or(DATA_BASE)
    }
}

fn load<'a, R: ReadRef<'a>>(
    h: &object::elf::ProgramHeader64<LittleEndian>,
    endian: LittleEndian,
    data: R,
) -> Result<Segment, ImageError> {
    let address = h.p_vaddr(endian);
    let refuse = |problem| Err(ImageError::Segment { address, problem });
    let size = h.p_memsz(endian);
    let has = |flag| h.p_flags(endian) & flag == flag;
    let rights = match (has(PF_W), has(PF_X)) {
        (true, true) => return refuse("writable and executable"),
        (true, false) => Rights::Write,
        (false, true) => Rights::Execute,
        (false, false) => Rights::Read,
    };
    let (low, high) = if rights == Rights::Write {
        (DATA_BASE, DATA_BASE + MAX_MEMORY)
    } else {
        (IMAGE_BASE, PRIVATE_BASE)
    };
    if !address.is_multiple_of(PAGE_SIZE) {
        return refuse("does not start on a page");
    }
    if address < low || address.checked_add(size).is_none_or(|end| end > high) {
        return refuse("outside the range that the layout gives it");
    }
    if h.p_filesz(endian) > size {
        return refuse("has more content than size");
    }
    let Ok(content) = h.data(endian, data) else { return refuse("its content is cut off") };
    Ok(Segment { address, size, content: content.to_vec(), rights })
}

/// Finds the image's note among the notes in `bytes`.
fn find_note(mut bytes: &[u8]) -> Option<note::Descriptor> {
    fn word(b: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }
    fn long(b: &[u8], at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }
    loop {
        let name_size = usize::try_from(word(bytes, 0)?).ok()?;
        let size = usize::try_from(word(bytes, 4)?).ok()?;
        let kind = word(bytes, 8)?;
        let name_end = name_size.checked_add(12)?;
        let start = name_end.checked_next_multiple_of(4)?;
        let end = start.checked_add(size)?;
        let (name, body) = (bytes.get(12..name_end)?, bytes.get(start..end)?);
        if name == note::NAME && kind == note::TYPE {
            return Some(note::Descriptor {
                abi_version: word(body, 0)?,
                flags: word(body, 4).unwrap_or(0),
                stack_size: long(body, 8).unwrap_or(0),
                memory: long(body, 16).unwrap_or(0),
            });
        }
        bytes = bytes.get(end.checked_next_multiple_of(4)?..)?;
    }
}

/// The manifest's section, if the section table is readable and has one. A damaged table costs only the manifest.
fn manifest<'a, R: ReadRef<'a>>(
    header: &FileHeader64<LittleEndian>,
    endian: LittleEndian,
    data: R,
) -> Option<String> {
    let sections = header.sections(endian, data).ok()?;
    let (_, section) = sections.section_by_name(endian, note::MANIFEST_SECTION.as_bytes())?;
    if section.sh_size(endian) > MAX_MANIFEST {
        return None;
    }
    String::from_utf8(section.data(endian, data).ok()?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The smallest image: a header, a note, a page of text.
    fn smallest(version: u32) -> Vec<u8> {
        let mut f = vec![0u8; 0x2000];
        f[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut put = |at: usize, b: &[u8]| f[at..at + b.len()].copy_from_slice(b);
        put(16, &2u16.to_le_bytes());
        put(18, &62u16.to_le_bytes());
        put(20, &1u32.to_le_bytes());
        put(24, &IMAGE_BASE.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(52, &64u16.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &2u16.to_le_bytes());
        put(58, &64u16.to_le_bytes());
        let mut header = |i: usize, kind: u32, flags: u32, offset: u64, address: u64, size: u64| {
            let at = 64 + i * 56;
            put(at, &kind.to_le_bytes());
            put(at + 4, &flags.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 16, &address.to_le_bytes());
            put(at + 32, &size.to_le_bytes());
            put(at + 40, &size.to_le_bytes());
        };
        header(0, PT_LOAD.0, 5, 0x1000, IMAGE_BASE, 0x1000);
        header(1, PT_NOTE.0, 4, 0x200, 0, 44);
        put(0x200, &8u32.to_le_bytes());
        put(0x204, &24u32.to_le_bytes());
        put(0x208, &note::TYPE.to_le_bytes());
        put(0x20c, &note::NAME);
        put(0x214, &version.to_le_bytes());
        f
    }

    #[test]
    fn accepts_the_smallest_image() {
        let image = Image::parse(&smallest(foraker_abi::VERSION)[..]).unwrap();
        assert_eq!(image.entry, IMAGE_BASE);
        assert_eq!(image.read_only_end(), IMAGE_BASE + 0x1000);
        assert_eq!(image.data_end(), DATA_BASE);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut f = smallest(foraker_abi::VERSION);
            change(&mut f);
            Image::parse(&f[..]).unwrap_err().to_string()
        };
        assert!(refused(&|f| f[0] = 0).contains("not an ELF file"));
        assert!(refused(&|f| f[16] = 3).contains("static"));
        assert!(refused(&|f| f[0x214] = 99).contains("version 99"));
        assert!(refused(&|f| f[0x20c] = b'f').contains("no note"));
        assert!(refused(&|f| f[68] = 7).contains("writable and executable"));
        assert!(refused(&|f| f[80] = 1).contains("does not start on a page"));
        assert!(refused(&|f| f[83] = 0x10).contains("outside the range"));
        assert!(refused(&|f| f[104..112].fill(0xff)).contains("outside the range"));
        assert!(refused(&|f| f[24..32].fill(0)).contains("entry point"));
        assert!(refused(&|f| f.truncate(0x1800)).contains("cut off"));
    }

    proptest! {
        #[test]
        fn never_panics_and_keeps_its_promises(
            edits in proptest::collection::vec((0usize..0x300, any::<u8>()), 0..12), cut in 0usize..0x2001,
        ) {
            let mut f = smallest(foraker_abi::VERSION);
            for (at, value) in edits { f[at] = value; }
            f.truncate(cut);
            if let Ok(image) = Image::parse(&f[..]) {
                for s in &image.segments {
                    prop_assert!(s.address % PAGE_SIZE == 0 && s.content.len() as u64 <= s.size);
                    prop_assert!(s.address >= IMAGE_BASE && s.end() <= DATA_BASE + MAX_MEMORY);
                    prop_assert!((s.rights == Rights::Write) == (s.address >= DATA_BASE));
                }
            }
        }
    }
}
