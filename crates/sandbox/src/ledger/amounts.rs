//! What a version of a balance holds: exact decimals of every shape, recomputable by anybody.

use uuid::Uuid;

/// The three amounts of a balance, as canonical decimal text: no exponent, no needless zeros, so that
/// what PostgreSQL prints is the same text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amounts {
    /// What can be spent; negative for external accounts.
    pub available: String,
    /// What is reserved.
    pub on_hold: String,
    /// What of the overdraft is used; never negative.
    pub overdraft_used: String,
}

/// The amounts of this version of this balance.
///
/// Of 16 versions of a balance one has 31 integer digits, one 30 fractional digits, one has both, one is
/// zero, one is a whole number; the others are amounts of money with two digits. `external` balances are
/// negative.
///
/// The overdraft of every second balance grows with each eighth version, the others have none. It never falls: after a
/// repayment the ledger's operations may name amounts that are not the true ones, so their readers don't rely on them.
/// [`write_repayments`](super::write_repayments) writes such operations.
pub fn amounts_of(id: Uuid, version: i64, external: bool) -> Amounts {
    let (high, low) = id.as_u64_pair();
    let mut numbers = Numbers(high ^ low.rotate_left(32) ^ version.cast_unsigned().wrapping_mul(GOLDEN));
    let (whole, fraction) = match numbers.next() % 16 {
        0 => (numbers.digits(31), String::new()),
        1 => (numbers.small(10), numbers.digits(30)),
        2 => (numbers.digits(31), numbers.digits(30)),
        3 => ("0".to_owned(), String::new()),
        4 => (numbers.small(1_000_000), String::new()),
        _ => (numbers.small(100_000_000), format!("{:02}", numbers.next() % 100)),
    };
    let plain = decimal(&whole, &fraction);
    let available = if external && plain != "0" { format!("-{plain}") } else { plain };
    let money =
        |numbers: &mut Numbers| decimal(&numbers.small(10_000), &format!("{:02}", numbers.next() % 100));
    let on_hold = if numbers.next().is_multiple_of(4) { money(&mut numbers) } else { "0".to_owned() };
    Amounts { available, on_hold, overdraft_used: overdraft_of(high ^ low, version) }
}

/// See [`amounts_of`].
fn overdraft_of(id: u64, version: i64) -> String {
    let mut numbers = Numbers(id);
    let (uses, phase, step) = (numbers.next() % 2, numbers.next() % 8, 1 + numbers.next() % 99_999);
    let times = (version.unsigned_abs() + phase) / 8;
    let cents = u128::from(uses * step) * u128::from(times);
    decimal(&(cents / 100).to_string(), &format!("{:02}", cents % 100))
}

/// 2^64 divided by the golden ratio, the increment of `splitmix64`.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The generator `splitmix64` (Steele, Lea, Flood 2014): two neighbouring versions share nothing.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn small(&mut self, below: u64) -> String {
        (self.next() % below).to_string()
    }

    /// This many digits, neither the first nor the last of them zero.
    fn digits(&mut self, count: usize) -> String {
        (0..count)
            .map(|place| {
                let edge = place == 0 || place + 1 == count;
                let digit = if edge { 1 + self.next() % 9 } else { self.next() % 10 };
                char::from(b'0' + u8::try_from(digit).unwrap_or_default())
            })
            .collect()
    }
}

fn decimal(whole: &str, fraction: &str) -> String {
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_shape_occurs_and_every_text_is_canonical() {
        let id = Uuid::from_u128(7);
        let mut shapes = HashSet::new();
        for version in 1..=400 {
            let amounts = amounts_of(id, version, version % 2 == 0);
            for text in [&amounts.available, &amounts.on_hold, &amounts.overdraft_used] {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
                assert!(!digits.ends_with('.') && !fraction.ends_with('0'), "{text}");
                assert!(whole == "0" || !whole.starts_with('0'), "{text}");
                assert!(text != "-0" && whole.len() <= 31 && fraction.len() <= 30, "{text}");
                shapes.insert((whole.len().max(9), fraction.len(), text.starts_with('-')));
            }
            assert!(!amounts.overdraft_used.starts_with('-'));
        }
        for shape in
            [(31, 0, false), (31, 30, true), (9, 30, false), (9, 2, false), (9, 2, true), (9, 0, false)]
        {
            assert!(shapes.contains(&shape), "{shape:?} never occurs");
        }
    }

    #[test]
    fn an_overdraft_is_never_repaid() {
        let overdraft = |id, version| {
            let text = amounts_of(Uuid::from_u128(id), version, false).overdraft_used;
            let (whole, cents) = text.split_once('.').unwrap_or((&text, ""));
            format!("{whole}{cents:0<2}").parse::<u128>().unwrap_or(u128::MAX)
        };
        for id in 1..200 {
            let all: Vec<u128> = (1..40).map(|version| overdraft(id, version)).collect();
            assert!(all.is_sorted(), "{id}: {all:?}");
        }
        let used = |version| (1..200).filter(|id| overdraft(*id, version) > 0).count();
        assert!(used(1) > 0 && used(1) < used(3) && used(3) < used(20) && used(20) < 130, "{}", used(20));
        assert!(overdraft(1, i64::MAX) < u128::MAX && overdraft(2, i64::MAX) < u128::MAX);
    }

    #[test]
    fn a_version_always_holds_the_same_and_the_next_one_something_else() {
        let id = Uuid::from_u128(0x1234_5678);
        assert_eq!(amounts_of(id, 41, false), amounts_of(id, 41, false));
        assert_ne!(amounts_of(id, 41, false), amounts_of(id, 42, false));
        assert_ne!(amounts_of(id, 41, false), amounts_of(Uuid::from_u128(9), 41, false));
    }
}
