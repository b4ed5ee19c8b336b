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

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;

    #[test]
    fn streams_differ_and_a_clone_draws_other_numbers() {
        let (mut a, mut b) = (Generator::new(1), Generator::new(2));
        assert_ne!(a.next_u64(), b.next_u64());
        let mut twin = Generator::new(1);
        twin.next_u64();
        assert_eq!(a.next_u64(), twin.next_u64());
        // Without fresh entropy a new incarnation starts over: it does not go on with the old stream.
        crate::registers().incarnation.store(2, Ordering::Release);
        let mut fresh = Generator::new(1);
        assert_eq!(a.next_u64(), fresh.next_u64());
    }
}
