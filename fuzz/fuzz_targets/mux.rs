#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("mux"), |bytes: &[u8]| towline_fuzz::mux::run(bytes));
