#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("websocket"), |bytes: &[u8]| towline_fuzz::websocket::run(bytes));
