//! A machine for tests on the host: virtual registers, control page and rings in ordinary memory, one for each test's thread.

#![allow(unreachable_pub, reason = "stands in for public functions")]

use core::sync::atomic::AtomicU64;
use foraker_abi::control::CoreControl;
use foraker_abi::registers::Registers;
use std::cell::Cell;

thread_local! {
    static REGISTERS: &'static Registers = {
        // SAFETY: all fields are integers, for which zeros are valid.
        let mut registers: Box<Registers> = unsafe { Box::new(core::mem::zeroed()) };
        registers.cores = 1;
        registers.memory_size = 64 << 20;
        registers.entropy = *b"0123456789abcdef0123456789abcdef";
        registers.incarnation = AtomicU64::new(1);
        Box::leak(registers)
    };
    static CONTROL: &'static CoreControl = Box::leak(Box::default());
    static NOW: Cell<u64> = const { Cell::new(0) };
}

pub fn registers() -> &'static Registers {
    REGISTERS.with(|r| *r)
}

pub fn control() -> &'static CoreControl {
    CONTROL.with(|c| *c)
}

pub fn boot_bytes() -> &'static [u8] {
    b"test\0one\0KEY=value\0"
}

pub fn now() -> u64 {
    NOW.get()
}

pub fn doorbell_async() {}

/// # Safety
/// As for the real one.
pub unsafe fn hypercall(number: u64, a: u64, b: u64, _: u64, _: u64, _: u64) -> i64 {
    match number {
        foraker_abi::hypercall::TERMINATE => panic!("terminate({a})"),
        foraker_abi::hypercall::CONSOLE => b as i64,
        _ => 0,
    }
}
