#![no_main]

#[allow(dead_code, reason = "a program a target")]
#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::job(data));
