//! The files of the site. They are part of the image: read-only, and shared by all of its guests.

use alloc::format;
use alloc::vec::Vec;

/// A file of the site.
pub(crate) struct File {
    pub(crate) path: &'static str,
    content_type: &'static str,
    pub(crate) body: &'static [u8],
    hash: u64,
}

macro_rules! file {
    ($path:literal, $content_type:literal) => {{
        const BODY: &[u8] = include_bytes!(concat!("../site", $path));
        File { path: $path, content_type: $content_type, body: BODY, hash: const { fnv1a(BODY) } }
    }};
}

static FILES: [File; 5] = [
    file!("/index.html", "text/html; charset=utf-8"),
    file!("/style.css", "text/css; charset=utf-8"),
    file!("/favicon.svg", "image/svg+xml"),
    file!("/robots.txt", "text/plain; charset=utf-8"),
    file!("/hello.txt", "text/plain; charset=utf-8"),
];

/// FNV-1a with 64 bits, computed by the compiler: it only has to change when the content does.
const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}

/// A file with what every answer says of it.
pub(crate) struct Entry {
    pub(crate) file: &'static File,
    /// Header fields: length, type, tag.
    pub(crate) fields: Vec<u8>,
    /// The tag with its quotes.
    pub(crate) tag: Vec<u8>,
}

/// The site, ready to be served.
pub(crate) struct Site(Vec<Entry>);

impl Site {
    pub(crate) fn new() -> Self {
        let entry = |file: &'static File| {
            let tag = format!("\"{:016x}\"", file.hash).into_bytes();
            let mut fields = format!(
                "Content-Length: {}\r\nContent-Type: {}\r\nCache-Control: max-age=60\r\nETag: ",
                file.body.len(),
                file.content_type
            )
            .into_bytes();
            fields.extend_from_slice(&tag);
            fields.extend_from_slice(b"\r\n");
            Entry { file, fields, tag }
        };
        Site(FILES.iter().map(entry).collect())
    }

    /// The number of the file at `path`.
    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        self.0.iter().position(|entry| entry.file.path == path)
    }

    /// The file of a number that [`find`](Self::find) gave.
    pub(crate) fn entry(&self, index: usize) -> &Entry {
        &self.0[index]
    }
}
