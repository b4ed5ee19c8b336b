//! An image that was read, and where its guests start: templates of its segments, by size, and of guests that were ready.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foraker_abi::layout::PAGE_SIZE;
use foraker_abi::{hypercall, layout, note};
use foraker_image::Image;
use foraker_memory::{MemoryError, Pages, Template};

use crate::cell::CellError;
use crate::templates::{Captured, Key};

/// What a guest gets when neither its image nor its owner says otherwise, bytes.
pub const DEFAULT_MEMORY: u64 = 16 << 20;
/// Most sizes of guests for which an image's start is kept ready.
const MOST_TEMPLATES: usize = 16;

/// Captured templates of an image: few, so that a look through them is cheap.
type CapturedByKey = Vec<(Key, Arc<Captured>)>;

/// An image that was read.
#[derive(Debug)]
pub struct LoadedImage {
    pub(crate) image: Image,
    /// Its templates, by memory and pages.
    templates: Mutex<Vec<Arc<Template>>>,
    /// Where its guests stood when they were ready.
    captured: Mutex<CapturedByKey>,
}

impl LoadedImage {
    /// Reads an image.
    ///
    /// # Errors
    /// The file cannot be read or is not an image, or the host has no memory.
    pub fn open(path: &Path) -> Result<Arc<LoadedImage>, CellError> {
        Ok(LoadedImage::of(Image::open(path)?))
    }

    fn of(image: Image) -> Arc<LoadedImage> {
        Arc::new(LoadedImage { image, templates: Mutex::default(), captured: Mutex::default() })
    }

    /// Where guests of this kind start, if one was captured.
    pub(crate) fn captured(&self, key: &Key) -> Option<Arc<Captured>> {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.iter().find(|(k, _)| k == key).map(|(_, there)| Arc::clone(there))
    }

    /// The templates, if one of this kind is wanted: there is none yet, and there are not too many.
    pub(crate) fn wanting(&self, key: &Key) -> Option<MutexGuard<'_, CapturedByKey>> {
        let all = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        (all.len() < MOST_TEMPLATES && all.iter().all(|(k, _)| k != key)).then_some(all)
    }

    /// Keeps where a guest stands, if it is still wanted.
    pub(crate) fn keep(&self, key: Key, captured: Captured) {
        if let Some(mut all) = self.wanting(&key) {
            all.push((key, Arc::new(captured)));
        }
    }

    /// The start of its guests that have so much memory.
    pub(crate) fn template(&self, memory: u64, pages: Pages) -> Result<Arc<Template>, MemoryError> {
        let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
        let suits =
            |t: &&Arc<Template>| t.pages() == pages && t.plan().memory_size == memory & !(PAGE_SIZE - 1);
        if let Some(template) = templates.iter().find(suits) {
            return Ok(Arc::clone(template));
        }
        let template = Arc::new(Template::of_image(&self.image, memory, pages)?);
        if templates.len() >= MOST_TEMPLATES {
            // The oldest: its guests keep it as long as they need it.
            templates.remove(0);
        }
        templates.push(Arc::clone(&template));
        Ok(template)
    }

    /// An image of a few instructions that ends with status 42: shows that guests run.
    #[must_use]
    pub fn smallest() -> Arc<LoadedImage> {
        // mov edi, 42; mov eax, TERMINATE; out PORT, al
        let code =
            [0xbf, 42, 0, 0, 0, 0xb8, hypercall::TERMINATE.to_le_bytes()[0], 0, 0, 0, 0xe6, hypercall::PORT];
        LoadedImage::of_code(&code)
    }

    /// An image of a page of instructions, at most.
    #[must_use]
    pub fn of_code(code: &[u8]) -> Arc<LoadedImage> {
        let text = foraker_image::Segment {
            address: layout::IMAGE_BASE,
            size: layout::PAGE_SIZE,
            content: code.chunks(layout::PAGE_SIZE as usize).next().unwrap_or_default().to_vec(),
            rights: foraker_image::Rights::Execute,
        };
        let image = Image {
            entry: layout::IMAGE_BASE,
            note: note::Descriptor::default(),
            manifest: None,
            segments: vec![text],
            path: None,
        };
        LoadedImage::of(image)
    }

    /// Its manifest in TOML, if it has one.
    #[must_use]
    pub fn manifest(&self) -> Option<&str> {
        self.image.manifest.as_deref()
    }

    /// Whether its note says that it uses the network.
    #[must_use]
    pub fn wants_network(&self) -> bool {
        self.image.note.flags & note::FLAG_NET != 0
    }

    /// Memory that its note asks for, bytes, or the default.
    #[must_use]
    pub fn memory(&self) -> u64 {
        if self.image.note.memory == 0 { DEFAULT_MEMORY } else { self.image.note.memory }
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.image.path.as_deref()
    }
}
