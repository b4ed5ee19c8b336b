//! Benchmarks: each figure beside its baseline, measured in the same run of the same program.
//!
//! # Method
//!
//! - **Ratios.** A figure alone says more of the machine and its mood than of the program. Each is printed with a baseline that was
//!   measured in the same process run, and what is promised ([`targets`]) is promised of the ratio, or of something that no machine
//!   changes (exits per request).
//! - **Interleaved.** Runs alternate: value, baseline, value, baseline, ... A machine that becomes slower
//!   meanwhile becomes slower for both.
//! - **Medians.** Of all runs; the least and the greatest are printed too, so that a wide spread is seen. A run in which a single
//!   request failed, a packet was lost or a guest ended wrongly is no run: the benchmark fails.
//! - **The real thing.** Guests are launched by the release build of `vmm launch` from the images of `cargo xtask images`, and
//!   stopped as a user stops them; their counters come from the final report. Only the launch within a process and the
//!   memory of a guest use the library under the command, in a process of this program.
//! - **The same client.** Each load goes from the host's network namespace to a device (TAP for guests, veth for native
//!   servers) with the same parameters; native servers run in a namespace of their own ([`netns`]) and answer with the guest's very bytes.
//! - **Strong baselines.** They do no more than they must: [`floor`], [`native_http`], [`bulk`], [`echo`].
//! - **Nothing is pinned.** See below.
//!
//! # Pinning
//!
//! Neither servers nor load are bound to processors, native or guest: the scheduler places them, as it would for a user.
//!
//! With a single connection this matters much. Server and load take turns, and each turn wakes an idle processor, which takes a virtual
//! machine tens of microseconds; where both share a processor, or the processors are busy with something else, there is nothing to
//! wake. On the development machine (two virtual processors) the native server answers some 12,600 requests per second over one connection
//! when the machine is quiet, and 60,000 to 110,000 when it is busy or both sides are bound to one processor. So: measure
//! on a quiet machine, and say so when quoting the figure for one connection. The same holds for the round trip of `D1`.
//!
//! # Output
//!
//! A table, or with `--json` one object per figure and line ([`figure::Figure`]). Progress and errors go to standard error.

pub mod arrival;
pub mod bulk;
pub mod control;
pub mod crowd;
pub mod echo;
pub mod ethtool;
pub mod fetch;
pub mod figure;
pub mod floor;
pub mod guest;
pub mod idle_clients;
pub mod launch;
pub mod memory;
pub mod native_http;
pub mod netns;
pub mod plot;
pub mod process;
pub mod processor;
pub mod socket;
pub mod stats;
pub mod suites;
pub mod supervisor;
pub mod targets;
pub mod trace;
pub mod wrk;
pub mod zipf;
