//! Any bytes as a member of a schedule. `make fuzz` runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| balance_sync_domain_fuzz::member(bytes));
