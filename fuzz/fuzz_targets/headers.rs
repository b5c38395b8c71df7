#![no_main]

#[path = "../src/headers.rs"]
mod headers;

libfuzzer_sys::fuzz_target!(init: towline_fuzz::sow(&headers::seeds()), |bytes: &[u8]| headers::run(bytes));
