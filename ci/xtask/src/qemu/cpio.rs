//! Writes archives in the `newc` form of cpio, as the kernel unpacks them (its `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeMap;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that is being put together: paths without a leading `/`, each once.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    data: Vec<u8>,
}

impl Archive {
    /// Adds a folder, and those above it.
    pub(crate) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.entries.contains_key(path) {
            return;
        }
        self.parents(path);
        self.add(path, DIRECTORY | 0o755, (0, 0), Vec::new());
    }

    /// Adds a file that may be executed, and the folders above it.
    pub(crate) fn file(&mut self, path: &str, data: Vec<u8>) {
        self.parents(path);
        self.add(path, REGULAR | 0o755, (0, 0), data);
    }

    /// Adds a symbolic link, and the folders above it.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.add(path, SYMLINK | 0o777, (0, 0), target.as_bytes().to_vec());
    }

    /// Adds a character device, and the folders above it.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.add(path, CHARACTER | 0o600, (major, minor), Vec::new());
    }

    fn parents(&mut self, path: &str) {
        if let Some((folder, _)) = path.trim_matches('/').rsplit_once('/') {
            self.directory(folder);
        }
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), data: Vec<u8>) {
        self.entries.insert(path.trim_matches('/').to_owned(), Entry { mode, device, data });
    }

    /// The archive's bytes: the same entries give the same bytes. A folder stands before what is in it.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            write(&mut out, number, path, entry);
        }
        let trailer = Entry { mode: 0, device: (0, 0), data: Vec::new() };
        write(&mut out, 0, "TRAILER!!!", &trailer);
        out
    }
}

fn write(out: &mut Vec<u8>, number: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
    let size = u32::try_from(entry.data.len()).expect("a file of this form is shorter than 4 GiB");
    let name_size = u32::try_from(path.len() + 1).expect("a path is short");
    // Inode, mode, owner, group, links, time, size, device, special device, name's size, checksum.
    let (major, minor) = entry.device;
    out.extend_from_slice(b"070701");
    for field in [number, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    align(out);
    out.extend_from_slice(&entry.data);
    align(out);
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: path, mode, data.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let field = |i: usize| {
                let text = &bytes[at + 6 + 8 * i..at + 14 + 8 * i];
                u32::from_str_radix(std::str::from_utf8(text).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == b"TRAILER!!!" {
                return found;
            }
            let content = bytes[data..data + size].to_vec();
            found.push((String::from_utf8(name.to_vec()).unwrap(), mode, content));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"12345".to_vec());
        archive.symlink("a/link", "b/c");
        archive.directory("/a/");
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let entries = read(&bytes);
        let modes: Vec<_> = entries.iter().map(|(path, mode, _)| (path.as_str(), *mode)).collect();
        assert_eq!(
            modes,
            [
                ("a", 0o040_755),
                ("a/b", 0o040_755),
                ("a/b/c", 0o100_755),
                ("a/link", 0o120_777),
                ("dev", 0o040_755),
                ("dev/console", 0o020_600),
            ]
        );
        assert_eq!(entries[2].2, b"12345");
        assert_eq!(entries[3].2, b"b/c");
    }
}
