//! Heads of HTTP requests. See `foraker_fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| foraker_fuzz::http::run(data));
