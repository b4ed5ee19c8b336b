//! The images that the daemon keeps: files named by their content, and the names that people give them.
//!
//! What a guest runs cannot change under it: it is known by the SHA-256 of its content, and stays as long as a guest needs it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foraker_api::Image;
use foraker_api::owner::is_name;
use foraker_cell::LoadedImage;
use sha2::{Digest, Sha256};

use foraker_api::units::now_ms;

use crate::refused::Refused;
use crate::resolve::Defaults;
use crate::store::StoredImage;

/// Where they are in the state directory.
pub const FOLDER: &str = "images";
/// Longest image, bytes.
pub(crate) const LONGEST: usize = 256 << 20;
/// How much of its digest stands for an image without a name.
const SHORT: usize = 12;

/// An image.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) stored: StoredImage,
    pub(crate) defaults: Arc<Defaults>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Images {
    directory: PathBuf,
    kept: BTreeMap<String, Kept>,
    names: BTreeMap<String, String>,
}

/// Reads, checks and stores an image in a directory.
///
/// # Errors
/// It is none, or cannot be written.
pub(crate) fn store(directory: &Path, bytes: &[u8]) -> Result<Kept, Refused> {
    let digest = hex(&Sha256::digest(bytes));
    let path = directory.join(&digest);
    let size = bytes.len() as u64;
    if !path.exists() {
        let failed = |e| Refused::Broken(format!("the image cannot be stored: {e}"));
        // Whole or not there, whatever happens meanwhile, and no two writers in one file.
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        // Checked before anybody can name it.
        Defaults::of_file(file.path())?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
    }
    let defaults = Arc::new(Defaults::of_file(&path)?);
    Ok(Kept { stored: StoredImage { digest, size, created_ms: now_ms() }, defaults })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Defaults {
    fn of_file(path: &Path) -> Result<Defaults, Refused> {
        let image = LoadedImage::open(path).map_err(|e| Refused::Invalid(e.to_string()))?;
        Defaults::of(&image).map_err(Refused::Invalid)
    }
}

impl Images {
    /// Those that stand in the registry. One whose file is gone or damaged is left out, with a word about it.
    pub(crate) fn open(
        directory: PathBuf,
        stored: Vec<StoredImage>,
        names: BTreeMap<String, String>,
    ) -> std::io::Result<Images> {
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&directory)?.flatten() {
            // What was being written when a daemon was killed.
            if !stored.iter().any(|image| entry.file_name() == image.digest.as_str()) {
                fs::remove_file(entry.path())?;
            }
        }
        let mut kept = BTreeMap::new();
        for image in stored {
            match Defaults::of_file(&directory.join(&image.digest)) {
                Ok(defaults) => {
                    let defaults = Arc::new(defaults);
                    kept.insert(image.digest.clone(), Kept { stored: image, defaults });
                }
                Err(e) => log::error!("image {} is damaged, its guests do not start: {e}", image.digest),
            }
        }
        Ok(Images { directory, kept, names })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of an image.
    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        self.directory.join(digest)
    }

    /// An image by its name or its digest.
    pub(crate) fn find(&self, reference: &str) -> Result<&Kept, Refused> {
        let digest = self.names.get(reference).map_or(reference, String::as_str);
        self.kept.get(digest).ok_or_else(|| {
            Refused::NotFound(format!(
                "there is no image {reference}: give `vmm run` its file, or see `vmm images`"
            ))
        })
    }

    /// Takes one. False when it was there.
    pub(crate) fn add(&mut self, image: Kept) -> bool {
        let digest = image.stored.digest.clone();
        let new = !self.kept.contains_key(&digest);
        if new {
            self.kept.insert(digest, image);
        }
        new
    }

    /// Gives one a name, which another one may have had.
    ///
    /// # Errors
    /// It is no name, or there is no such image.
    pub(crate) fn name(&mut self, name: &str, digest: &str) -> Result<(), Refused> {
        // 64 hexadecimal digits are a digest.
        if !is_name(name) || name.len() == 64 {
            return Err(Refused::Invalid(format!(
                "'{name}' is no name of an image: use 1 to 63 letters, digits, '-', '_' and '.'"
            )));
        }
        let digest = self.find(digest)?.stored.digest.clone();
        self.names.insert(name.to_owned(), digest);
        Ok(())
    }

    /// Removes one, with its names and its file.
    pub(crate) fn remove(&mut self, digest: &str) {
        self.kept.remove(digest);
        self.names.retain(|_, of| of != digest);
        if let Err(e) = fs::remove_file(self.path(digest)) {
            log::warn!("the file of image {digest} stays: {e}");
        }
    }

    /// How an image is called in a list; `guests` counts those of each digest.
    pub(crate) fn list(&self, guests: impl Fn(&str) -> usize) -> Vec<Image> {
        self.kept.values().map(|kept| self.listed(kept, &guests)).collect()
    }

    /// One of the list.
    pub(crate) fn listed(&self, kept: &Kept, guests: impl Fn(&str) -> usize) -> Image {
        let StoredImage { digest, size, created_ms } = kept.stored.clone();
        Image {
            names: self.names.iter().filter(|(_, of)| **of == digest).map(|(name, _)| name.clone()).collect(),
            size,
            memory: kept.defaults.memory,
            network: kept.defaults.network,
            created_ms,
            guests: guests(&digest),
            digest,
        }
    }
}

/// What guests of an image are called of which nothing is said.
pub(crate) fn usual_name(reference: &str) -> &str {
    if reference.len() == 64 { reference.get(..SHORT).unwrap_or(reference) } else { reference }
}
