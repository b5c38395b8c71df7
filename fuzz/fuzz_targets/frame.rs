#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("frame"), |bytes: &[u8]| towline_fuzz::frame::run(bytes));
