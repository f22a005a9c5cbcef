//! What became of the balances that were claimed, and how many came to what.

use std::{
    fmt,
    marker::PhantomData,
    ops::{AddAssign, Index, IndexMut},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::names;

names! {
    /// What became of a balance that was claimed.
    pub enum Outcome {
        /// Its row was written.
        Updated = "updated",
        /// Its row was as new or newer.
        Stale = "stale",
        /// Its row is deleted: nothing is left to write.
        Deleted = "deleted",
        /// Its row and its value in Redis have different histories; each time that it is found.
        Forked = "forked",
        /// Put off, because its value is in a format of a later release; each time that it is.
        UnknownFormat = "unknown_format",
        /// Put off, because the database may be another tenant's; each time that it is.
        UnknownLedger = "unknown_ledger",
        /// Put off, because a deletion marker stands in its place; each time that it is.
        DeletionMarker = "deletion_marker",
        /// Put in quarantine.
        Quarantined = "quarantined",
        /// Its value had expired before it was read.
        Expired = "expired",
        /// Given back unwritten.
        Released = "released",
        /// It stayed scheduled at settling, because a newer mutation came.
        Kept = "kept",
    }
}

/// One value, mostly a counter, for each [`Outcome`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes<T = u64>([T; Outcome::ALL.len()]);

impl<T> Outcomes<T> {
    /// The same with each value converted.
    pub fn map<U>(&self, convert: impl FnMut(&T) -> U) -> Outcomes<U> {
        Outcomes(self.0.each_ref().map(convert))
    }

    /// Each outcome with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, &T)> {
        Outcome::ALL.into_iter().zip(&self.0)
    }
}

impl<T: Serialize> Outcomes<T> {
    /// Writes these outcomes as a map by name.
    ///
    /// # Errors
    /// As the serializer does.
    pub fn serialize_only<S: Serializer>(&self, only: &[Outcome], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(only.iter().map(|&outcome| (outcome, &self[outcome])))
    }
}

impl<T> Index<Outcome> for Outcomes<T> {
    type Output = T;

    fn index(&self, outcome: Outcome) -> &T {
        &self.0[outcome as usize]
    }
}

impl<T> IndexMut<Outcome> for Outcomes<T> {
    fn index_mut(&mut self, outcome: Outcome) -> &mut T {
        &mut self.0[outcome as usize]
    }
}

impl<T: AddAssign + Copy> AddAssign<&Self> for Outcomes<T> {
    fn add_assign(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += *more;
        }
    }
}

/// A map by name, without those that are 0.
impl<T: Serialize + Default + PartialEq> Serialize for Outcomes<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().filter(|(_, count)| **count != T::default()))
    }
}

/// What is not named is 0; names that this release doesn't know are left out.
impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Outcomes<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for ByName<T> {
            type Value = Outcomes<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of outcomes by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut outcomes = Outcomes::default();
                while let Some(name) = map.next_key::<String>()? {
                    match Outcome::parse(&name) {
                        Some(outcome) => outcomes[outcome] = map.next_value()?,
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(outcomes)
            }
        }

        deserializer.deserialize_map(ByName(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn every_one_another() -> Outcomes {
        let mut outcomes = Outcomes::default();
        for (n, outcome) in Outcome::ALL.into_iter().enumerate() {
            outcomes[outcome] = n as u64;
        }
        outcomes
    }

    #[test]
    fn each_outcome_has_its_own_counter_and_comes_back_under_its_name() {
        let outcomes = every_one_another();
        let json = serde_json::to_value(outcomes).unwrap();
        assert_eq!(json.as_object().unwrap().len(), Outcome::ALL.len() - 1, "without the one that is 0");
        for (n, outcome) in Outcome::ALL.into_iter().enumerate().skip(1) {
            assert_eq!(json[outcome.as_str()], n);
        }
        assert_eq!(serde_json::from_value::<Outcomes>(json).unwrap(), outcomes);
        let mut twice = outcomes;
        twice += &outcomes;
        assert_eq!(twice, outcomes.map(|count| 2 * count));
    }

    #[test]
    fn an_outcome_of_another_release_is_left_out() {
        let json = r#"{"updated":7,"teleported":{"to":"the moon"},"kept":2}"#;
        let outcomes: Outcomes<u32> = serde_json::from_str(json).unwrap();
        assert_eq!((outcomes[Outcome::Updated], outcomes[Outcome::Kept]), (7, 2));
        assert_eq!(outcomes.iter().map(|(_, count)| count).sum::<u32>(), 9);
    }
}
