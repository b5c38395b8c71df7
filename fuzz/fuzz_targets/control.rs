#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("control"), |bytes: &[u8]| towline_fuzz::control::run(bytes));
