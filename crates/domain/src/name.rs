//! Enums that have a name in logs, metrics, records and answers.
//!
//! [`names!`](crate::names!) makes the enum, the list of its variants and their names from one table, so that a variant can't
//! be missing in one of them. [`Reported`] is such a name as another release may have written it.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name of another release that is kept, in characters.
const MAX_NAME_CHARS: usize = 64;

/// Makes an enum of named variants: `as_str`, `parse`, `ALL`, `NAMES`, and `Display`, `Serialize` and `Deserialize` as the
/// name.
///
/// Every name stands beside its variant and is part of an interface. Deriving the same needs one attribute for `serde` and
/// another for `Display`, `FromStr` and the list, and both derive names from those of the variants: renaming a variant
/// would rename what others read.
#[macro_export]
macro_rules! names {
    ($(#[$meta:meta])* $visibility:vis enum $Enum:ident {
        $($(#[$doc:meta])* $Variant:ident = $name:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility enum $Enum {
            $($(#[$doc])* $Variant,)+
        }

        impl $Enum {
            /// All of them, in order.
            $visibility const ALL: [Self; [$($name),+].len()] = [$(Self::$Variant),+];
            /// Their names, in the same order.
            $visibility const NAMES: [&'static str; Self::ALL.len()] = [$($name),+];

            /// The name in logs, metrics, records and answers.
            #[must_use]
            $visibility const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)+
                }
            }

            /// The one of this name.
            #[must_use]
            $visibility fn parse(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$Variant),)+
                    _ => None,
                }
            }
        }

        impl $crate::Named for $Enum {
            fn name(self) -> &'static str {
                self.as_str()
            }

            fn of_name(name: &str) -> Option<Self> {
                Self::parse(name)
            }
        }

        impl std::fmt::Display for $Enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $Enum {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $Enum {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&name).ok_or_else(|| serde::de::Error::unknown_variant(&name, &Self::NAMES))
            }
        }
    };
}

/// An enum that [`names!`](crate::names!) has made.
pub trait Named: Copy + 'static {
    /// The name in logs, metrics, records and answers.
    fn name(self) -> &'static str;

    /// The variant of this name.
    fn of_name(name: &str) -> Option<Self>;
}

/// A name that another worker has written. During a rolling update it may be of a release that knows more names than this
/// one; it is shown as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reported<E> {
    /// One of ours.
    Known(E),
    /// Of another release.
    Other(String),
}

impl<E: Named> Reported<E> {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.name(),
            Self::Other(name) => name,
        }
    }

    /// The variant, if this release knows it.
    #[must_use]
    pub fn known(&self) -> Option<E> {
        match self {
            Self::Known(known) => Some(*known),
            Self::Other(_) => None,
        }
    }
}

impl<E: Named> From<E> for Reported<E> {
    fn from(known: E) -> Self {
        Self::Known(known)
    }
}

/// A name that this release doesn't know is foreign text: what is not printable is escaped, and what is too long is cut.
impl<E: Named> From<&str> for Reported<E> {
    fn from(name: &str) -> Self {
        E::of_name(name)
            .map_or_else(|| Self::Other(name.escape_debug().take(MAX_NAME_CHARS).collect()), Self::Known)
    }
}

impl<E: PartialEq> PartialEq<E> for Reported<E> {
    fn eq(&self, other: &E) -> bool {
        matches!(self, Self::Known(known) if known == other)
    }
}

/// Known ones in their order, then the others by name.
impl<E: Named + Ord> Ord for Reported<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => a.cmp(b),
            (Self::Known(_), Self::Other(_)) => Ordering::Less,
            (Self::Other(_), Self::Known(_)) => Ordering::Greater,
            (Self::Other(a), Self::Other(b)) => a.cmp(b),
        }
    }
}

impl<E: Named + Ord> PartialOrd for Reported<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E: Named> fmt::Display for Reported<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<E: Named> Serialize for Reported<E> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, E: Named> Deserialize<'de> for Reported<E> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Ok(Self::from(&*name))
    }
}

#[cfg(test)]
mod tests {
    use super::Reported;

    names! {
        /// For the tests.
        enum Fruit {
            /// Red.
            Apple = "apple",
            /// Yellow.
            SweetPear = "sweet_pear",
        }
    }

    #[test]
    fn the_table_makes_list_names_and_display() {
        assert_eq!(Fruit::ALL, [Fruit::Apple, Fruit::SweetPear]);
        assert_eq!(Fruit::SweetPear.to_string(), "sweet_pear");
        assert_eq!(format!("{:>6}", Fruit::Apple), " apple");
        for fruit in Fruit::ALL {
            assert_eq!(Fruit::parse(fruit.as_str()), Some(fruit));
        }
        assert_eq!(Fruit::parse("Apple"), None);
        assert_eq!(Fruit::NAMES, ["apple", "sweet_pear"]);
        let read = |json| serde_json::from_str::<Fruit>(json).map_err(|error| error.to_string());
        assert_eq!(read("\"sweet_pear\""), Ok(Fruit::SweetPear));
        let error = read("\"plum\"").expect_err("no such fruit");
        assert!(error.contains("plum") && error.contains("`apple` or `sweet_pear`"), "{error}");
    }

    #[test]
    fn a_name_of_another_release_is_passed_on_as_it_is() {
        let read =
            |json: &str| serde_json::from_str::<Reported<Fruit>>(json).map_err(|error| error.to_string());
        assert_eq!(read("\"apple\""), Ok(Fruit::Apple.into()));
        let other = Reported::<Fruit>::Other("blood_orange".to_owned());
        assert_eq!(read("\"blood_orange\""), Ok(other.clone()));
        assert_eq!(serde_json::to_string(&other).ok().as_deref(), Some("\"blood_orange\""));
        assert_eq!((other.known(), other.to_string().as_str()), (None, "blood_orange"));
        assert_ne!(other, Fruit::Apple);
        assert_eq!(read("\"apple\"").ok().as_ref().and_then(Reported::known), Some(Fruit::Apple));
        assert!(read("7").is_err(), "not a name at all");
        let mut sorted = [other.clone(), Fruit::SweetPear.into(), Fruit::Apple.into()];
        sorted.sort();
        assert_eq!(sorted, [Fruit::Apple.into(), Fruit::SweetPear.into(), other]);
    }

    #[test]
    fn a_hostile_name_is_escaped_and_cut() {
        let name = Reported::<Fruit>::from("\u{1b}[31mred\n");
        assert_eq!(name.as_str(), "\\u{1b}[31mred\\n");
        assert_eq!(Reported::<Fruit>::from("x".repeat(10_000).as_str()).as_str().len(), 64);
    }
}
