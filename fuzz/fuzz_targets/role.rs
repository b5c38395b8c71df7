#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("role"), |bytes: &[u8]| towline_fuzz::role::run(bytes));
