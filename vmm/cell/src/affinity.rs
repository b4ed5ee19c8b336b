//! Two threads on processors of their own.

/// Keeps the uplink's thread and the worker of a guest that looks on processors of their own while both are awake; the scheduler,
/// which cannot know that each waits for the other, at times puts them on one.
pub(crate) struct Apart {
    process: libc::cpu_set_t,
    worker: i32,
}

impl Apart {
    /// Moves the calling thread off the processor that `worker` (a thread's id) ran on last, and keeps that one there.
    pub(crate) fn from(worker: i32, processor: usize) -> Option<Apart> {
        let process = affinity(0)?;
        let mut alone = empty_set();
        // SAFETY: the index was taken from the kernel and is checked against the set's size by the macro's function.
        unsafe { libc::CPU_SET(processor, &mut alone) };
        let mut others = process;
        // SAFETY: as above.
        unsafe { libc::CPU_CLR(processor, &mut others) };
        // SAFETY: a valid set.
        if unsafe { libc::CPU_COUNT(&others) } == 0 || worker == 0 {
            return None;
        }
        set_affinity(0, &others);
        set_affinity(worker, &alone);
        Some(Apart { process, worker })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        set_affinity(0, &self.process);
        set_affinity(self.worker, &self.process);
    }
}

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: all-zero is the empty set.
    unsafe { std::mem::zeroed() }
}

fn affinity(thread: i32) -> Option<libc::cpu_set_t> {
    let mut set = empty_set();
    // SAFETY: a valid set of the given size.
    let got = unsafe { libc::sched_getaffinity(thread, size_of::<libc::cpu_set_t>(), &raw mut set) };
    (got == 0).then_some(set)
}

fn set_affinity(thread: i32, set: &libc::cpu_set_t) {
    // SAFETY: a valid set of the given size. A thread that has ended, or a set that the host has narrowed, changes nothing.
    unsafe { libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), std::ptr::from_ref(set)) };
}
