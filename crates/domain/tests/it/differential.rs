//! Compares the decoder with a naive reading of the same rule, on values that ledgers wrote and that were then
//! changed in the ways that matter: other spellings and shapes, stale or broken twins, equal names, odd numbers,
//! escapes, another order, broken bytes.
//!
//! `make test` compares a small fixed set. `make differential` compares ten million in release mode, and
//! `DIFFERENTIAL_INPUTS` and `DIFFERENTIAL_SEED` choose other ones.

use std::collections::BTreeMap;

use balance_sync_domain::BalanceValue;

use crate::checks;

/// Enough that each kind of refusal occurs.
const FEW_INPUTS: u64 = 10_000;

/// The names that matter, UpperCamel and lowerCamel.
const PAIRS: [(&str, &str); 7] = [
    ("ID", "id"),
    ("Available", "available"),
    ("OnHold", "onHold"),
    ("OverdraftUsed", "overdraftUsed"),
    ("Version", "version"),
    ("AssetCode", "assetCode"),
    ("Key", "key"),
];

/// What a field may be changed to.
const ODD_VALUES: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "[1,{\"ID\":[]}]",
    "{\"ID\":1,\"ID\":2}",
    "0",
    "-0",
    "1",
    "2",
    "3",
    "2.0",
    "1.50",
    "-250.1",
    "1e2",
    "9.025e1",
    "1e-3",
    "0.0",
    "1.2345678901235e+14",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "1e19",
    "1e131072",
    "0e131073",
    "1e-16384",
    "01",
    "1.",
    "+1",
    "\"\"",
    "\"0\"",
    "\"-0\"",
    "\"00\"",
    "\"2\"",
    "\"02\"",
    "\"2.0\"",
    "\"1e2\"",
    "\"+1\"",
    "\".5\"",
    "\"5.\"",
    "\"0090.250\"",
    "\"-0.00\"",
    "\"9223372036854775807\"",
    "\"9223372036854775808\"",
    "\"1e400000\"",
    "\"NaN\"",
    "\" 1\"",
    "\"\\u0031\"",
    "\"\\ud800\"",
    "\"@alice#default\"",
    "\"00000000-0000-0000-0000-000000000000\"",
    "\"urn:uuid:fb8a88b1-6f54-5836-9a3f-c5a4f86b4b4a\"",
    "\"{fb8a88b16f5458369a3fc5a4f86b4b4a}\"",
];

/// What may stand between the tokens.
const SPACES: [&str; 4] = ["", " ", "\n\t", "\r\n"];

/// The generator `splitmix64` (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// Name and value as they stand in the JSON, quotes included.
type Member = (String, String);

/// Values that ledgers wrote, taken apart.
fn originals() -> Vec<Vec<Member>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/");
    let mut originals = Vec::new();
    for file in ["producer_samples.json", "value_samples.json"] {
        let samples: Vec<serde_json::Value> =
            serde_json::from_str(&std::fs::read_to_string(format!("{folder}{file}")).unwrap()).unwrap();
        for sample in samples {
            let members = checks::naive::members(sample["value"].as_str().unwrap()).unwrap();
            let quoted = |(name, raw)| (serde_json::to_string(&name).unwrap(), raw);
            originals.push(members.into_iter().map(quoted).collect());
        }
    }
    originals
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// One character of a JSON string written as an escape.
fn escaped(text: &str, random: &mut Random) -> String {
    let places: Vec<(usize, char)> =
        text.char_indices().filter(|(place, c)| *place > 0 && c.is_ascii_alphanumeric()).collect();
    if places.is_empty() || text.contains('\\') {
        return text.to_owned();
    }
    let (place, character) = *random.pick(&places);
    let escape = format!("\\u{:04x}", u32::from(character));
    format!("{}{escape}{}", &text[..place], &text[place + 1..])
}

fn random_decimal(random: &mut Random) -> String {
    let digits = |random: &mut Random| -> String {
        let len = *random.pick(&[0, 1, 1, 2, 5, 19, 31]);
        (0..len).map(|_| *random.pick(&['0', '0', '1', '5', '9'])).collect()
    };
    let sign = *random.pick(&["", "", "", "-", "+"]);
    let whole = digits(random);
    let fraction = if random.one_in(2) { format!(".{}", digits(random)) } else { String::new() };
    let exponent = match random.below(6) {
        0 => format!("{}{}{}", random.pick(&["e", "E"]), random.pick(&["", "+", "-"]), random.below(40)),
        _ => String::new(),
    };
    let text = format!("{sign}{whole}{fraction}{exponent}");
    if random.one_in(2) { quoted(&text) } else { text }
}

/// Changes the members in one way.
fn change(members: &mut Vec<Member>, originals: &[Vec<Member>], random: &mut Random) {
    if members.is_empty() {
        return;
    }
    let (upper, lower) = *random.pick(&PAIRS);
    let name = if random.one_in(2) { upper } else { lower };
    // Mostly a field that matters.
    let place = members
        .iter()
        .position(|(other, _)| *other == quoted(name) && !random.one_in(8))
        .unwrap_or_else(|| random.below(members.len()));
    match random.below(19) {
        0 => drop(members.remove(place)),
        1 => members[place].1 = "null".to_owned(),
        2 | 3 => members[place].1 = (*random.pick(ODD_VALUES)).to_owned(),
        4 => members[place].1 = random_decimal(random),
        5 => {
            let mut again = members[place].clone();
            if random.one_in(2) {
                again.1 = (*random.pick(ODD_VALUES)).to_owned();
            }
            if random.one_in(2) {
                again.0 = escaped(&again.0, random);
            }
            let at = random.below(members.len() + 1);
            members.insert(at, again);
        }
        6 => {
            let name = &members[place].0;
            let letter = 1 + random.below(name.len().saturating_sub(2));
            if name.is_char_boundary(letter) && name.is_char_boundary(letter + 1) {
                let mut other = name[letter..=letter].to_owned();
                if other.to_ascii_uppercase() == other {
                    other.make_ascii_lowercase();
                } else {
                    other.make_ascii_uppercase();
                }
                members[place].0 = format!("{}{other}{}", &name[..letter], &name[letter + 1..]);
            }
        }
        // Both spellings, one of them stale.
        7 => {
            let value = if random.one_in(2) { members[place].1.clone() } else { random_decimal(random) };
            let at = random.below(members.len() + 1);
            members.insert(at, (quoted(name), value));
        }
        8 => members.retain(|(other, _)| *other != quoted(upper)),
        9 => members.retain(|(other, _)| !PAIRS.iter().any(|(upper, _)| *other == quoted(upper))),
        10 => members.retain(|(other, _)| !PAIRS.iter().any(|(_, lower)| *other == quoted(lower))),
        11 => {
            for (name, _) in members.iter_mut() {
                if let Some((upper, lower)) =
                    PAIRS.iter().find(|(upper, lower)| *name == quoted(upper) || *name == quoted(lower))
                {
                    *name = quoted(if *name == quoted(upper) { lower } else { upper });
                }
            }
        }
        12 => {
            members.retain(|(name, _)| name != "\"SchemaVersion\"");
            if random.one_in(2) {
                let format = if random.one_in(2) { "2" } else { *random.pick(ODD_VALUES) };
                members.push((quoted("SchemaVersion"), format.to_owned()));
            }
        }
        13 => members[place].0 = escaped(&members[place].0.clone(), random),
        14 => members[place].1 = escaped(&members[place].1.clone(), random),
        15 => {
            for place in (1..members.len()).rev() {
                members.swap(place, random.below(place + 1));
            }
        }
        16 => {
            let raw = &members[place].1;
            members[place].1 = match raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')) {
                Some(content) => content.to_owned(),
                None => quoted(raw),
            };
        }
        17 => members.extend((0..random.below(60)).map(|number| (quoted(&format!("x{number}")), "1".into()))),
        _ => {
            let other = random.pick(originals);
            members.push(random.pick(other).clone());
        }
    }
}

fn write(members: &[Member], random: &mut Random) -> Vec<u8> {
    let spaces = random.one_in(8);
    let mut space = |text: &mut String| {
        if spaces {
            text.push_str(random.pick::<&str>(&SPACES));
        }
    };
    let mut text = String::new();
    space(&mut text);
    text.push('{');
    for (place, (name, raw)) in members.iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        space(&mut text);
        text.push_str(name);
        space(&mut text);
        text.push(':');
        space(&mut text);
        text.push_str(raw);
        space(&mut text);
    }
    text.push('}');
    space(&mut text);
    text.into_bytes()
}

/// Changes bytes, whatever they are.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    const BYTES: &[u8] = b"\"\\{}[]:,0129-+.eE ntu\0\x1f\x7f\x80\xc3\xff";
    for _ in 0..=random.below(2) {
        let place = random.below(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(place),
            1 => bytes.insert(place, *random.pick(BYTES)),
            2 if !bytes.is_empty() => drop(bytes.remove(place)),
            3 if !bytes.is_empty() => bytes[place] ^= 1 << random.below(8),
            _ if !bytes.is_empty() => bytes[place] = *random.pick(BYTES),
            _ => {}
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.replace('_', "")
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is {text:?}: allowed is a number"))
    })
}

#[test]
fn decoder_and_naive_reading_agree() {
    let inputs = number("DIFFERENTIAL_INPUTS", FEW_INPUTS);
    let seed = number("DIFFERENTIAL_SEED", 1);
    let originals = originals();
    let mut outcomes = BTreeMap::<&str, u64>::new();
    for input in 0..inputs {
        // Each input has a seed of its own, so that any of them can be made again alone.
        let mut random = Random(Random(seed ^ input.rotate_left(32)).next());
        let mut members = random.pick(&originals).clone();
        for _ in 0..random.below(5) {
            change(&mut members, &originals, &mut random);
        }
        let mut bytes = write(&members, &mut random);
        if random.one_in(8) {
            damage(&mut bytes, &mut random);
        }
        let decoded = BalanceValue::decode(&bytes);
        checks::compare(&bytes, &decoded);
        *outcomes.entry(decoded.map_or_else(|error| error.reason().as_str(), |_| "read")).or_default() += 1;
    }
    println!("{inputs} inputs of seed {seed}: {outcomes:?}");
    if inputs >= FEW_INPUTS {
        for outcome in [
            "read",
            "value_not_a_json_object",
            "value_unknown_format",
            "value_duplicate_name",
            "value_field_missing",
            "value_field_null",
            "value_invalid_id",
            "value_invalid_amount",
            "value_not_canonical",
            "value_invalid_version",
            "value_invalid_text",
        ] {
            let count = outcomes.get(outcome).copied().unwrap_or_default();
            assert!(count >= 10, "{outcome} occurred {count} times only: {outcomes:?}");
        }
    }
}
