//! The raw floor as a program: opens KVM, creates a virtual machine, runs it to its first exit, writes one byte, ends.
//!
//! What `vmm launch` is compared with, process start and end included. With a number as its argument it makes so many, and ends when it hears
//! that it may (a byte, or the end, of its standard input).

use std::io::{Read, Write};

fn main() -> anyhow::Result<()> {
    let count = std::env::args().nth(1).map(|n| n.parse::<usize>()).transpose()?;
    let mut floor = foraker_bench::floor::Floor::open()?;
    let instances = (0..count.unwrap_or(1)).map(|_| floor.launch()).collect::<Result<Vec<_>, _>>()?;
    let mut output = std::io::stdout();
    output.write_all(b".")?;
    output.flush()?;
    if count.is_some() {
        let _ = std::io::stdin().read(&mut [0])?;
    }
    // The kernel takes it all down at the process's end, at the same price.
    std::mem::forget(instances);
    Ok(())
}
