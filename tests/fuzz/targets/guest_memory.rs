//! Arguments of a guest that are addresses and lengths. See `foraker_fuzz::guest_memory`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| foraker_fuzz::guest_memory::run(data));
