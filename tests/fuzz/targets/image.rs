//! ELF files. See `foraker_fuzz::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| foraker_fuzz::image::run(data));
