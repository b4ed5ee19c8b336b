//! Short slices for threads that others wait for.

/// What a thread that is woken for others asks of the host's scheduler: to run for so long at a time, nanoseconds, but soon.
const SLICE_NS: u64 = 100_000;

/// Has the calling thread run soon after it wakes, in front of those that compute: the scheduler (EEVDF, from Linux 6.12 on) lets whoever asks for
/// shorter slices go first, for no more time in all. Older kernels take no notice.
pub fn run_soon() {
    // SAFETY: a call with numbers; of the calling thread it cannot fail.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0),
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: a valid structure that says its own size. Refused, everything stays as it is.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}
