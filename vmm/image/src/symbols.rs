//! From an address to function, file and line.

use std::path::Path;

use crate::{Image, Rights};

/// Where an address is in the source. Each part may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Function, demangled.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
}

/// Looks an address up in an image's line tables and symbols; `None` when the file has neither or cannot be read.
#[must_use]
pub fn locate(path: &Path, address: u64) -> Option<Location> {
    let loader = addr2line::Loader::new(path).ok()?;
    if !is_code(path, address) {
        return None;
    }
    let mut found = Location::default();
    if let Ok(mut frames) = loader.find_frames(address) {
        // From the innermost inlined function outwards: the first that is not of the standard library, else the innermost.
        let mut chosen = false;
        while let Ok(Some(frame)) = frames.next() {
            let file = frame.location.as_ref().and_then(|l| l.file).unwrap_or_default();
            let own = !file.starts_with("/rustc/") && !file.contains("/library/core/");
            if found == Location::default() || own && !chosen {
                chosen = own;
                found.function =
                    frame.function.and_then(|f| f.demangle().ok().map(std::borrow::Cow::into_owned));
                found.file = frame.location.as_ref().and_then(|l| l.file).map(str::to_owned);
                found.line = frame.location.as_ref().and_then(|l| l.line);
            }
        }
    }
    if found.function.is_none() {
        found.function = loader
            .find_symbol(address)
            .map(|name| addr2line::demangle_auto(std::borrow::Cow::Borrowed(name), None).into_owned());
    }
    (found != Location::default()).then_some(found)
}

/// Whether an address is one of instructions. The last symbol of a file would claim all addresses behind it.
fn is_code(path: &Path, address: u64) -> bool {
    Image::open(path).is_ok_and(|image| {
        image.segments.iter().any(|s| s.rights == Rights::Execute && (s.address..s.end()).contains(&address))
    })
}
