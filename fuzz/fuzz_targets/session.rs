#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("session"), |bytes: &[u8]| towline_fuzz::session::run(bytes));
