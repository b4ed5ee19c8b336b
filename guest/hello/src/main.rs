//! The smallest guest: says hello and ends.
#![no_std]
#![no_main]

use guest_libos::{boot, now, println, registers};

guest_libos::entry!(main);

fn main() {
    let kib = registers().memory_size >> 10;
    println!("hello from {}, guest time {} us, memory {kib} KiB", boot::name(), now() / 1000);
}
