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
//! Neither servers nor load are bound to processors, native or guest. On the development machine (two virtual processors) this is
//! what suits the native server best, except with a single connection; native requests per second, measured with other work on the machine:
//!
//! | connections | free | a processor each | both on one |
//! |---|---|---|---|
//! | 1 | 12,600 | 8,700 | 107,000 |
//! | 16 | 183,000 | 50,000 | 149,000 |
//! | 64 | 182,000 | 54,000 | 161,000 |
//! | 256 | 187,000 | 56,000 | 141,000 |
//! | 1000 | 156,000 | 60,000 | 114,000 |
//! | 4000 | 104,000 | 34,000 | 76,000 |
//!
//! With a single connection, server and load take turns, and each turn wakes an idle processor, which takes a virtual
//! machine tens of microseconds; on one processor there is nothing to wake. A quiet scheduler does not put them there (a busy one
//! does, so that on a machine with other work the native figure for one connection is several times higher). Whoever quotes
//! the figure for one connection should say so.
//!
//! # Output
//!
//! A table, or with `--json` one object per figure and line ([`figure::Figure`]). Progress and errors go to standard error.

pub mod bulk;
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
pub mod process;
pub mod stats;
pub mod suites;
pub mod targets;
pub mod trace;
pub mod wrk;
