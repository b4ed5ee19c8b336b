//! Templates that were captured: where a guest stood when it said that it is `ready`, for others to start from.
//!
//! A guest starts from a template only if everything that the template's own start could depend on is the same: image, memory, arguments,
//! environment, whether there is a network, and whose it is. What must differ is written anew: registers, arguments' page (the name), addresses,
//! entropy, incarnation. Time goes on from where the template stood.

use std::sync::Arc;

use foraker_machine::Saved;
use foraker_memory::{Pages, Template};
use foraker_net::RingState;

use crate::image::LoadedImage;
use crate::spec::GuestSpec;

/// Most memory of a guest that is captured, bytes: what is held twice from then on.
pub(crate) const MOST_CAPTURED: u64 = 8 << 20;

/// What guests that start from one template have in common, besides their image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    memory: u64,
    pages: Pages,
    arguments: Vec<String>,
    environment: Vec<String>,
    network: bool,
    owner: String,
}

impl Key {
    /// The key of a guest; none if guests like this one do not start from templates.
    pub(crate) fn of(spec: &GuestSpec) -> Option<Key> {
        let owner = spec.from_template.as_ref()?;
        (spec.cores == 1 && spec.pages == Pages::Small).then(|| Key {
            memory: spec.memory,
            pages: spec.pages,
            arguments: spec.arguments.clone(),
            environment: spec.environment.clone(),
            network: spec.network.is_some(),
            owner: owner.clone(),
        })
    }
}

/// A guest that is to be captured when it is ready.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) image: Arc<LoadedImage>,
    pub(crate) key: Key,
}

/// Where a guest stood.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) memory: Arc<Template>,
    pub(crate) core: Saved,
    pub(crate) rings: RingState,
    /// Its time, nanoseconds.
    pub(crate) time: u64,
}
