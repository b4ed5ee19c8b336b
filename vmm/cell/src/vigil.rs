//! How a worker sleeps: until it is woken, the TAP device it watches becomes readable, or the time has come.
//!
//! What is watched changes seldom, and a sleep is one system call.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What ended a sleep; neither when the time had come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Woken {
    /// Somebody woke the worker.
    pub(crate) called: bool,
    /// What it watched has become readable.
    pub(crate) readable: bool,
}

/// A worker's sleep.
pub(crate) struct Vigil {
    epoll: Epoll,
    watched: Option<RawFd>,
}

const CALL: u64 = 0;
const WATCHED: u64 = 1;

impl Vigil {
    /// The sleep of a worker that is woken by `event`, which stays open as long as this.
    ///
    /// # Errors
    /// The host has no descriptor to give.
    pub(crate) fn new(event: RawFd) -> io::Result<Vigil> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, event, EpollEvent::new(EventSet::IN, CALL))?;
        Ok(Vigil { epoll, watched: None })
    }

    /// Sleeps, and watches this descriptor meanwhile if there is one. A signal ends the sleep, too.
    pub(crate) fn keep(&mut self, watch: Option<RawFd>, timeout: Option<Duration>) -> Woken {
        if self.watched != watch
            && let Err(e) = self.watch(watch)
        {
            // The descriptors are open as long as the cell, so that only memory can be short.
            log::debug!("cannot watch the TAP device: {e}");
        }
        let timeout = timeout.map(timespec);
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        // SAFETY: the descriptor is open, the buffer and the time are valid for the call.
        let count = unsafe {
            libc::epoll_pwait2(self.epoll.as_raw_fd(), events.as_mut_ptr(), 2, timeout, std::ptr::null())
        };
        let seen = |what| events.iter().take(usize::try_from(count).unwrap_or(0)).any(|e| { e.u64 } == what);
        Woken { called: seen(CALL), readable: seen(WATCHED) }
    }

    fn watch(&mut self, watch: Option<RawFd>) -> io::Result<()> {
        if let Some(before) = self.watched.take() {
            self.epoll.ctl(ControlOperation::Delete, before, EpollEvent::default())?;
        }
        if let Some(fd) = watch {
            let readable = EpollEvent::new(EventSet::IN, WATCHED);
            self.epoll.ctl(ControlOperation::Add, fd, readable)?;
            self.watched = Some(fd);
        }
        Ok(())
    }
}

/// A duration as the kernel wants it.
pub(crate) fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    fn event() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn says_what_ended_the_sleep() {
        let (mine, device) = (event(), event());
        let mut vigil = Vigil::new(mine.as_raw_fd()).unwrap();
        let moment = Some(Duration::from_micros(300));
        let none = vigil.keep(None, moment);
        assert!(!none.called && !none.readable);
        device.write(1).unwrap();
        assert!(!vigil.keep(None, moment).readable, "not watched");
        assert!(vigil.keep(Some(device.as_raw_fd()), None).readable, "was readable before it was watched");
        assert!(vigil.keep(Some(device.as_raw_fd()), None).readable, "and still is");
        mine.write(1).unwrap();
        let both = vigil.keep(Some(device.as_raw_fd()), None);
        assert!(both.called && both.readable);
        let one = vigil.keep(None, None);
        assert!(one.called && !one.readable);
    }
}
