//! A hostile driver. See `foraker_fuzz::rings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| foraker_fuzz::rings::run(data));
