//! Telling the host which ethernet address is behind a guest's address.
//!
//! The kernel lets nobody change its table of neighbours who has not CAP_NET_ADMIN, with which one can do much more. So one thread has it, and does nothing
//! else; guests come and go in others, which leave word here, in order.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use foraker_confine::Kind;
use foraker_net::{Mac, Port, Tap};

use super::Network;
use crate::cell::Shared;

/// Most words that wait. The host finds out by itself what it is not told; what it is not told to forget goes with the device, and is right for the next guest
/// with that address, as an ethernet address follows from it.
const MOST: usize = 1 << 14;

/// Of an address: who is behind it, or nobody any more.
type Word = (IpAddr, Option<Mac>);

/// What the host is to be told.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    words: VecDeque<Word>,
    stopping: bool,
}

impl Neighbours {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves word, unless too much waits.
    fn leave(&self, words: impl Iterator<Item = Word>) {
        let mut state = self.lock();
        let room = MOST.saturating_sub(state.words.len());
        state.words.extend(words.take(room));
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for word; none when nobody will leave any.
    fn next(&self) -> Option<VecDeque<Word>> {
        let waits = |state: &mut State| state.words.is_empty() && !state.stopping;
        let mut state = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        // What is left at the end goes with the device.
        (!state.stopping).then(|| std::mem::take(&mut state.words))
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_one();
    }
}

fn tell(tap: &Tap, (address, mac): Word) {
    let told = match mac {
        Some(mac) => tap.add_neighbour(address, mac),
        None => tap.remove_neighbour(address),
    };
    // The host finds out by itself, too.
    if let Err(e) = told {
        log::debug!("{address}: {e}");
    }
}

impl Network {
    /// Has the host told who is behind each address of a port, or that nobody is. Not of guests on somebody else's device, where it would stay behind.
    pub(super) fn tell_host(&self, port: &Port, mac: Option<Mac>) {
        if self.own_device {
            let addresses = [Some(IpAddr::from(port.ipv4())), port.ipv6().map(IpAddr::from)];
            self.neighbours.leave(addresses.into_iter().flatten().map(|address| (address, mac)));
        }
    }

    /// Whether there is anything to tell the host.
    pub(crate) fn tells_host(&self) -> bool {
        self.own_device
    }

    /// The thread that tells the host.
    pub(crate) fn serve_neighbours(cell: &Shared) {
        foraker_confine::enter(Kind::Neighbours);
        let Some(network) = &cell.network else { return };
        while let Some(words) = network.neighbours.next() {
            words.into_iter().for_each(|word| tell(network.uplink.link(), word));
        }
    }

    /// Ends that thread.
    pub(crate) fn stop_neighbours(&self) {
        self.neighbours.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(n: u8, mac: Option<u8>) -> Word {
        (IpAddr::from([10, 99, 0, n]), mac.map(|n| Mac([6, 0, 0, 0, 0, n])))
    }

    #[test]
    fn words_come_in_order_up_to_a_bound_and_end() {
        let neighbours = Neighbours::default();
        neighbours.leave([word(1, Some(1)), word(1, None)].into_iter());
        neighbours.leave([word(1, Some(1))].into_iter());
        let words: Vec<_> = neighbours.next().into_iter().flatten().collect();
        assert_eq!(words, [word(1, Some(1)), word(1, None), word(1, Some(1))]);
        neighbours.leave((0..=MOST).map(|_| word(2, None)));
        assert_eq!(neighbours.next().map(|words| words.len()), Some(MOST));
        neighbours.leave([word(3, None)].into_iter());
        neighbours.stop();
        assert!(neighbours.next().is_none());
    }
}
