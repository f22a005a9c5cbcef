//! Replays the corpus of the fuzz targets with the checks they use, on any toolchain. A case the fuzzer finds is
//! added to the corpus, and is checked from then on.

use std::fs;
use std::path::Path;

use crate::checks;

/// The cases of a target, in the order of their names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut cases: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    cases.sort();
    cases
}

/// Checks the cases of a target, and each of them cut short at every place.
fn replay(target: &str, check: fn(&[u8]), at_least: usize) {
    let cases = corpus(target);
    assert!(cases.len() >= at_least, "{} cases of {target}, expected {at_least} or more", cases.len());
    for (name, bytes) in cases {
        for len in 0..=bytes.len() {
            let checked = std::panic::catch_unwind(|| check(&bytes[..len]));
            assert!(checked.is_ok(), "corpus/{target}/{name}, its first {len} bytes");
        }
    }
}

#[test]
fn members() {
    replay("member", checks::member, 20);
}

#[test]
fn values() {
    replay("value", checks::value, 20);
}

/// The names say what a case is for: `ok-` must be read in one of the key spaces, anything else refused.
#[test]
fn cases_are_what_they_are_named_for() {
    use balance_sync_domain::BalanceValue;
    for (name, bytes) in corpus("member") {
        assert_eq!(checks::readable(&bytes), name.starts_with("ok-"), "member/{name}");
    }
    for (name, bytes) in corpus("value") {
        assert_eq!(BalanceValue::decode(&bytes).is_ok(), name.starts_with("ok-"), "value/{name}");
    }
}
