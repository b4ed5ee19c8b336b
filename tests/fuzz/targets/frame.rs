//! Frames and their offload headers. See `foraker_fuzz::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| foraker_fuzz::frame::run(data));
