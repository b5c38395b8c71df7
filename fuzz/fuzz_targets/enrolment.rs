#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("enrolment"), |bytes: &[u8]| towline_fuzz::enrolment::run(bytes));
