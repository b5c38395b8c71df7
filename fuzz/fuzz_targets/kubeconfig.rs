#![no_main]

#[path = "../src/kubeconfig.rs"]
mod kubeconfig;

libfuzzer_sys::fuzz_target!(init: towline_fuzz::sow(&kubeconfig::seeds()), |bytes: &[u8]| kubeconfig::run(bytes));
