//! The raw floor as a program: opens KVM, creates a virtual machine, runs it to its first exit, writes one byte, ends.
//!
//! What `vmm launch` is compared with, process start and end included.

use std::io::Write;

fn main() -> anyhow::Result<()> {
    let mut floor = foraker_bench::floor::Floor::open()?;
    let instance = floor.launch()?;
    std::io::stdout().write_all(b".")?;
    // The kernel takes it all down at the process's end, at the same price.
    std::mem::forget(instance);
    Ok(())
}
