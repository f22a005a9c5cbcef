//! Values of balances: the JSON that the ledger's releases write, in all shapes, and what a worker reads from it with the
//! decoder of `crates/domain`.
//!
//! Each mutation has a number of its own, its mark. Amounts follow from the mark, and the mark can be read from them: so a
//! row shows which mutation its money is from, and whether it is that mutation's to the digit.

use std::fmt::Write as _;

use balance_sync_domain::{BalanceValue, ValueError};

use crate::bugs::Bug;

/// What no mutation has written: amounts that are not from one and the same mutation.
pub(crate) const MIXED: u64 = u64::MAX;

/// A version, and whose money stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) version: u64,
    pub(crate) mark: u64,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// UpperCamel alone.
    Upper,
    /// Both spellings. Older pods change UpperCamel alone: lowerCamel then holds an older state.
    Dual { lower: State },
    /// lowerCamel alone, of a release to come.
    New,
    /// lowerCamel alone, of the oldest releases.
    Oldest,
    /// A field that is in force can't be read, though the other spelling of it can.
    NullField,
    /// The overdraft is no number.
    BadOverdraft,
    /// A name stands twice.
    Twice,
    /// A format of a release to come.
    Unknown,
    /// The token of a deletion marker, which stands where the value was.
    Marker,
}

/// What a worker makes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// It can be written.
    Good(State),
    /// It is put in quarantine.
    Refused,
    /// It is put off: of a format to come, or a deletion marker (`false`).
    PutOff(bool),
}

/// A balance's value in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) state: State,
    pub(crate) shape: Shape,
}

impl Shape {
    /// Whether the value is put in quarantine.
    pub(crate) fn is_poison(self) -> bool {
        matches!(self, Self::NullField | Self::BadOverdraft | Self::Twice)
    }

    /// Whether the balance stays scheduled unwritten.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Unknown | Self::Marker)
    }
}

impl Document {
    /// The member of the schedule. Only that of a deletion marker matters.
    pub(crate) fn member(&self) -> &'static [u8] {
        if self.shape == Shape::Marker {
            b"tenant:t:balance:{transactions}:o:l:@a#default:deleted"
        } else {
            b"tenant:t:balance:{transactions}:o:l:@a#default"
        }
    }

    /// The text in Redis.
    pub(crate) fn json(&self, id: u128) -> String {
        let (state, mut out) = (self.state, String::with_capacity(512));
        let id = uuid(id);
        match self.shape {
            Shape::Upper => upper(&mut out, &id, state, false),
            Shape::Dual { lower: old } => {
                // Whoever encodes it last decides about the order: the spelling that counts may come first.
                if state.mark & 1 == 0 {
                    upper(&mut out, &id, state, true);
                    lower(&mut out, &id, old, true);
                } else {
                    lower(&mut out, &id, old, true);
                    upper(&mut out, &id, state, true);
                }
                out += "\"SchemaVersion\":2,";
            }
            Shape::New => {
                out += "\"SchemaVersion\":2,";
                lower(&mut out, &id, state, true);
            }
            Shape::Oldest => lower(&mut out, &id, state, false),
            Shape::NullField => {
                upper(&mut out, &id, state, true);
                lower(&mut out, &id, state, true);
                out += "\"SchemaVersion\":2,";
                out = out.replace(&format!("\"OnHold\":\"{}\"", state.mark), "\"OnHold\":null");
            }
            Shape::BadOverdraft => {
                upper(&mut out, &id, state, true);
                let overdraft = format!("\"OverdraftUsed\":\"{}\"", overdraft(state.mark));
                out = out.replace(&overdraft, "\"OverdraftUsed\":\"\"");
            }
            Shape::Twice => {
                upper(&mut out, &id, state, true);
                out += "\"Version\":1,";
            }
            Shape::Unknown => {
                out += "\"SchemaVersion\":3,";
                lower(&mut out, &id, state, true);
            }
            Shape::Marker => return format!("{:x}", state.mark),
        }
        out.insert(0, '{');
        out.pop();
        out.push('}');
        out
    }

    /// What a worker reads; `bug`: a rule of reading that is switched off.
    pub(crate) fn read(&self, id: u128, bug: Option<Bug>) -> Read {
        let state = self.state;
        match (bug, self.shape) {
            // Old money under a new version.
            (Some(Bug::OtherSpelling), Shape::Dual { lower }) => {
                return Read::Good(State { mark: lower.mark, ..state });
            }
            (Some(Bug::NullFallsBack), Shape::NullField) => return Read::Good(state),
            (Some(Bug::BadOverdraftIsZero), Shape::BadOverdraft) => {
                return Read::Good(State { mark: MIXED, ..state });
            }
            (Some(Bug::UnknownFormatRead), Shape::Unknown) => return Read::Good(state),
            (Some(Bug::PutOffIsQuarantined), shape) if shape.waits() => return Read::Refused,
            _ => {}
        }
        match BalanceValue::of_member(self.member(), self.json(id).as_bytes()) {
            Ok(value) => Read::Good(state_of(&value, self.shape, bug)),
            Err(error) if error.keeps_scheduled() => {
                Read::PutOff(matches!(error, ValueError::UnknownFormat { .. }))
            }
            Err(_) => Read::Refused,
        }
    }
}

/// The state that amounts are from, if they are from one.
fn state_of(value: &BalanceValue, shape: Shape, bug: Option<Bug>) -> State {
    let mark = value.on_hold.as_str().parse().unwrap_or(MIXED);
    let mut read = value.available.as_str().to_owned();
    if bug == Some(Bug::FloatAmounts) {
        read = read.parse::<f64>().map_or(read, |float| float.to_string());
    }
    let canonical = !matches!(shape, Shape::Upper | Shape::Oldest);
    let exact = read == available(mark, canonical) && value.overdraft_used.as_str() == overdraft(mark);
    State {
        version: u64::try_from(value.version).unwrap_or(u64::MAX),
        mark: if exact { mark } else { MIXED },
    }
}

/// The members of the object that stand in UpperCamel, each with a comma behind it.
fn upper(out: &mut String, id: &str, State { version, mark }: State, canonical: bool) {
    let _ = write!(
        out,
        "\"ID\":\"{id}\",\"Available\":\"{}\",\"OnHold\":\"{mark}\",\"OverdraftUsed\":\"{}\",\"Version\":{version},\"AssetCode\":\"BRL\",\"Key\":\"default\",",
        available(mark, canonical),
        overdraft(mark)
    );
}

/// The same in lowerCamel. Formats with a schema version have numbers in canonical form, the version as text.
fn lower(out: &mut String, id: &str, State { version, mark }: State, canonical: bool) {
    let quote = if canonical { "\"" } else { "" };
    let _ = write!(
        out,
        "\"id\":\"{id}\",\"available\":{quote}{}{quote},\"onHold\":\"{mark}\",\"overdraftUsed\":\"{}\",\"version\":{quote}{version}{quote},\"assetCode\":\"BRL\",\"key\":\"default\",",
        available(mark, canonical),
        overdraft(mark)
    );
}

/// More digits than a float holds; negative for some. Formats that allow superfluous zeros have one.
fn available(mark: u64, canonical: bool) -> String {
    let sign = if mark.is_multiple_of(5) { "-" } else { "" };
    let zero = if canonical { "" } else { "0" };
    format!("{sign}9007199254740993{mark}.{:012}1{zero}", mark % 1_000_000_000_000)
}

fn overdraft(mark: u64) -> String {
    if mark.is_multiple_of(3) { "0".to_owned() } else { format!("{mark}.5") }
}

fn uuid(id: u128) -> String {
    let hex = format!("{id:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_read_as_what_it_is() {
        for mark in 1..200 {
            let state = State { version: 1_000_000_007 * mark, mark };
            let old = State { version: state.version - 1, mark: mark + 1_000 };
            let shapes = [
                (Shape::Upper, Read::Good(state)),
                (Shape::Dual { lower: old }, Read::Good(state)),
                (Shape::Dual { lower: state }, Read::Good(state)),
                (Shape::New, Read::Good(state)),
                (Shape::Oldest, Read::Good(state)),
                (Shape::NullField, Read::Refused),
                (Shape::BadOverdraft, Read::Refused),
                (Shape::Twice, Read::Refused),
                (Shape::Unknown, Read::PutOff(true)),
                (Shape::Marker, Read::PutOff(false)),
            ];
            for (shape, read) in shapes {
                assert_eq!(Document { state, shape }.read(7, None), read, "{shape:?}");
            }
        }
    }

    #[test]
    fn money_of_another_state_is_noticed() {
        let (state, old) = (State { version: 2, mark: 2 }, State { version: 1, mark: 1 });
        let document = Document { state, shape: Shape::Dual { lower: old } };
        assert_eq!(document.read(1, Some(Bug::OtherSpelling)), Read::Good(State { version: 2, mark: 1 }));
        let float = Document { state, shape: Shape::Upper }.read(1, Some(Bug::FloatAmounts));
        assert_eq!(float, Read::Good(State { version: 2, mark: MIXED }));
    }
}
