//! Randomness: ChaCha12 seeded from the virtual registers' entropy.
//!
//! The VMM writes fresh entropy at each launch, restore and clone, and changes `incarnation`: two clones of one
//! template never draw the same numbers, because the generator is seeded anew when the incarnation changes.

use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

/// A generator of its owner's own.
pub struct Generator {
    rng: ChaCha12Rng,
    incarnation: u64,
    /// Tells generators of one incarnation apart.
    stream: u64,
}

impl Generator {
    /// A generator. Those with different `stream`s give independent numbers.
    #[must_use]
    pub fn new(stream: u64) -> Self {
        let incarnation = crate::registers::incarnation();
        let mut rng = ChaCha12Rng::from_seed(crate::registers::entropy());
        rng.set_stream(stream);
        Generator { rng, incarnation, stream }
    }

    /// The generator, seeded anew if the guest was restored or cloned since.
    fn fresh(&mut self) -> &mut ChaCha12Rng {
        if crate::registers::incarnation() != self.incarnation {
            *self = Generator::new(self.stream);
        }
        &mut self.rng
    }
}

impl rand_core::TryRng for Generator {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.fresh().next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.fresh().next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.fresh().fill_bytes(bytes);
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Generator {}
