#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("ticket"), |bytes: &[u8]| towline_fuzz::ticket::run(bytes));
