//! Any bytes as the value of a balance. `make fuzz` runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| balance_sync_domain_fuzz::value(bytes));
