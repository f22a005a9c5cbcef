//! Enums that have a name in logs, metrics, records and answers.
//!
//! [`names!`] makes the enum, the list of its variants and their names from one table, so that a variant can't be missing in
//! one of them.

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

#[cfg(test)]
mod tests {
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
}
