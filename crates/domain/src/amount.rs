//! An amount of money or of anything else, kept as the decimal text that was received.
//!
//! Amounts have up to dozens of digits, so they never pass through a float, and they are not computed with:
//! all the worker does is carry them to Postgres digit for digit. What has to be sure is that Postgres takes
//! the text, and takes it exactly; so the grammar is the part of Postgres' `numeric` input that JSON writers
//! use, and the bounds are those of `numeric`.

use std::fmt;
use std::str::FromStr;

use crate::excerpt::excerpt;

/// Most digits before the decimal point that a Postgres `numeric` holds. Source: Postgres manual, "Numeric types".
pub const MAX_INTEGER_DIGITS: u64 = 131_072;
/// Most digits after the decimal point that a Postgres `numeric` holds. Source: Postgres manual, "Numeric types".
pub const MAX_FRACTION_DIGITS: u64 = 16_383;

/// Exponents beyond this are taken for this: far out of all bounds, and sums with lengths don't overflow.
const EXPONENT_LIMIT: i64 = 1 << 40;

/// A decimal number that Postgres `numeric` holds exactly, as the text that was received.
///
/// Equality is that of the text: `1.5` and `1.50` differ. [`Amount::same_value`] compares the numbers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Amount(Box<str>);

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// It is not a decimal number. `NaN`, `Infinity`, hex, `_` and white space are none.
    #[error(
        "{value} is not a decimal number: allowed are an optional sign, digits with an optional fraction, \
         and an optional exponent"
    )]
    Malformed {
        /// The start of the text, escaped.
        value: String,
    },
    /// More digits before the decimal point than Postgres can hold.
    #[error("{value} has {digits} digits before the decimal point: at most {MAX_INTEGER_DIGITS} are allowed")]
    TooManyIntegerDigits {
        /// The start of the text, escaped.
        value: String,
        /// How many there are, with the exponent applied.
        digits: u64,
    },
    /// More digits after the decimal point than Postgres can hold.
    #[error("{value} has {digits} digits after the decimal point: at most {MAX_FRACTION_DIGITS} are allowed")]
    TooManyFractionDigits {
        /// The start of the text, escaped.
        value: String,
        /// How many there are, with the exponent applied and trailing zeros counted.
        digits: u64,
    },
}

impl AmountError {
    /// A short, stable name of the reason, for quarantine entries and metric labels.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "amount_malformed",
            Self::TooManyIntegerDigits { .. } => "amount_too_many_integer_digits",
            Self::TooManyFractionDigits { .. } => "amount_too_many_fraction_digits",
        }
    }
}

impl Amount {
    /// Checks `text` and keeps it as it is, except that a leading `+` is left out.
    ///
    /// # Errors
    /// When it is not a decimal number, or has more digits than Postgres `numeric` can hold.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        let decimal = Decimal::read(text).ok_or_else(|| AmountError::Malformed { value: excerpt(text) })?;
        let digits = decimal.integer_digits();
        if digits > MAX_INTEGER_DIGITS {
            return Err(AmountError::TooManyIntegerDigits { value: excerpt(text), digits });
        }
        let digits = decimal.fraction_digits();
        if digits > MAX_FRACTION_DIGITS {
            return Err(AmountError::TooManyFractionDigits { value: excerpt(text), digits });
        }
        Ok(Self(text.strip_prefix('+').unwrap_or(text).into()))
    }

    /// `0`.
    #[must_use]
    pub fn zero() -> Self {
        Self("0".into())
    }

    /// The text, which is valid input of Postgres `numeric`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the number is below zero; `-0.00` is not.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.decimal().is_some_and(|d| d.negative && !d.is_zero())
    }

    /// Whether both are the same number, however written: `1.5`, `1.50` and `15e-1` are.
    #[must_use]
    pub fn same_value(&self, other: &Self) -> bool {
        match (self.decimal(), other.decimal()) {
            (Some(a), Some(b)) => {
                // A zero has no sign and no magnitude.
                (a.is_zero() && b.is_zero())
                    || (a.negative == b.negative
                        && a.point() == b.point()
                        && a.significant().eq(b.significant()))
            }
            _ => false,
        }
    }

    fn decimal(&self) -> Option<Decimal<'_>> {
        Decimal::read(&self.0)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Amount({})", &self.0)
    }
}

impl AsRef<str> for Amount {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// The parts of a decimal number in text: `±<integer>.<fraction>e<exponent>`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decimal<'a> {
    pub(crate) negative: bool,
    /// Digits before the point, leading zeros included; may be empty when the fraction isn't.
    pub(crate) integer: &'a [u8],
    /// Digits after the point, trailing zeros included.
    pub(crate) fraction: &'a [u8],
    /// Within ±[`EXPONENT_LIMIT`].
    pub(crate) exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Takes `text` apart, or gives `None` when it is not a decimal number.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes() {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let (integer, rest) = take_digits(rest);
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => take_digits(rest),
            _ => (&rest[..0], rest),
        };
        if integer.is_empty() && fraction.is_empty() {
            return None;
        }
        let exponent = match rest {
            [] => 0,
            [b'e' | b'E', rest @ ..] => read_exponent(rest)?,
            _ => return None,
        };
        Some(Self { negative, integer, fraction, exponent })
    }

    /// All digits, most significant first.
    pub(crate) fn digits(&self) -> impl DoubleEndedIterator<Item = u8> + use<'a> {
        self.integer.iter().chain(self.fraction).copied()
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.digits().all(|d| d == b'0')
    }

    /// The digits between the zeros on both sides; none for zero.
    pub(crate) fn significant(&self) -> impl Iterator<Item = u8> + use<'a> {
        let trailing = self.trailing_zeros();
        let len = self.integer.len() + self.fraction.len() - trailing;
        self.digits().take(len).skip_while(|d| *d == b'0')
    }

    pub(crate) fn trailing_zeros(&self) -> usize {
        self.digits().rev().take_while(|d| *d == b'0').count()
    }

    /// Where the point stands, counted from the first significant digit: 3 for `123`, 0 for `0.123`.
    fn point(&self) -> i64 {
        let leading = self.digits().take_while(|d| *d == b'0').count();
        signed(self.integer.len()) - signed(leading) + self.exponent
    }

    /// Digits before the point once the exponent is applied, leading zeros not counted. Of a zero, whose
    /// exponent means nothing, at least the exponent, so that it too stays within what Postgres reads.
    fn integer_digits(&self) -> u64 {
        let digits = if self.is_zero() { self.exponent } else { self.point() };
        digits.max(0).unsigned_abs()
    }

    /// Digits after the point once the exponent is applied: Postgres keeps trailing zeros, so they count.
    fn fraction_digits(&self) -> u64 {
        (signed(self.fraction.len()) - self.exponent).max(0).unsigned_abs()
    }
}

fn take_digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// The exponent after the `e`, cut to ±[`EXPONENT_LIMIT`].
fn read_exponent(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let magnitude = digits.iter().fold(0, |m: i64, d| (m * 10 + i64::from(d - b'0')).min(EXPONENT_LIMIT));
    Some(sign * magnitude)
}

/// A length as a signed number; a slice is never longer than `isize::MAX`.
pub(crate) fn signed(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn amount(text: &str) -> Amount {
        Amount::parse(text).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn decimal_text_is_kept_digit_for_digit() {
        for text in [
            "0",
            "00",
            "-0",
            "1",
            "-250.1",
            "90.25",
            "0.500000000000000000000000000001",
            "1.10",
            "5.",
            ".5",
            "-.5",
            "1234567890123456789012345678902",
            "1e14",
            "1.5E+3",
            "25e-2",
            "5.e0",
            "0e0",
            "-1.2345678901235e+14",
        ] {
            assert_eq!(amount(text).as_str(), text);
            assert_eq!(amount(text).to_string(), text);
        }
        assert_eq!(amount("+1.5").as_str(), "1.5");
        assert_eq!(Amount::zero(), amount("0"));
        assert_ne!(amount("1.5"), amount("1.50"));
    }

    #[test]
    fn what_is_not_a_decimal_number_is_refused() {
        for text in [
            "", "-", "+", ".", "-.", "e5", ".e5", "1e", "1e+", "1e-", "1e1.5", "1.2.3", "--1", "+-1", "-+1",
            " 1", "1 ", "1\n", "NaN", "nan", "Infinity", "-inf", "0x10", "1_000", "1,5", "1.5f", "$1", "١",
            "１", "1\0", "null", "true",
        ] {
            assert_eq!(Amount::parse(text).unwrap_err().reason(), "amount_malformed", "{text:?}");
        }
    }

    #[test]
    fn bounds_are_those_of_postgres_numeric() {
        let nines = |n: usize| "9".repeat(n);
        for text in [
            nines(131_072),
            format!("-{}", nines(131_072)),
            format!("{}{}", "0".repeat(200_000), nines(131_072)),
            format!("0.{}", nines(16_383)),
            format!("{}.{}", nines(131_072), nines(16_383)),
            "1e131071".to_owned(),
            "1e-16383".to_owned(),
            "0.1e131072".to_owned(),
            format!("0.{}1e+140000", "0".repeat(16_000)),
            format!("0.{}e1", nines(16_384)),
            "0e131072".to_owned(),
        ] {
            assert_eq!(amount(&text).as_str(), text);
        }
        let refused = |text: &str| Amount::parse(text).unwrap_err();
        let integer = |text: &str| match refused(text) {
            AmountError::TooManyIntegerDigits { digits, .. } => digits,
            other => panic!("{other}"),
        };
        let fraction = |text: &str| match refused(text) {
            AmountError::TooManyFractionDigits { digits, .. } => digits,
            other => panic!("{other}"),
        };
        assert_eq!(integer(&nines(131_073)), 131_073);
        assert_eq!(integer("1e131072"), 131_073);
        assert_eq!(integer("0.01e131075"), 131_074);
        assert_eq!(fraction(&format!("0.{}", nines(16_384))), 16_384);
        assert_eq!(fraction(&format!("1.{}", "0".repeat(16_384))), 16_384);
        assert_eq!(fraction("1e-16384"), 16_384);
        assert_eq!(fraction("0e-16384"), 16_384);
        integer("1e99999999999999999999999999");
        integer("0e99999999999999999999999999");
        fraction("1e-99999999999999999999999999");
    }

    #[test]
    fn errors_show_a_short_value_and_the_bound() {
        let text = Amount::parse(&"9".repeat(200_000)).unwrap_err().to_string();
        assert!(text.len() < 400 && text.contains("200000 digits") && text.contains("131072"), "{text}");
        assert!(Amount::parse("1\n").unwrap_err().to_string().contains(r#""1\n""#));
    }

    #[test]
    fn negative_means_below_zero() {
        for (text, negative) in [
            ("-1", true),
            ("-0.01", true),
            ("-1e5", true),
            ("0", false),
            ("-0", false),
            ("-0.00", false),
            ("1", false),
        ] {
            assert_eq!(amount(text).is_negative(), negative, "{text}");
        }
    }

    #[test]
    fn values_are_compared_as_numbers() {
        let same = [
            ("1.5", "1.50"),
            ("15e-1", "1.5"),
            ("100", "1e2"),
            ("0", "-0.00"),
            ("0e9", "0"),
            ("007.70", "7.7"),
        ];
        for (a, b) in same {
            assert!(amount(a).same_value(&amount(b)) && amount(b).same_value(&amount(a)), "{a} {b}");
        }
        let different =
            [("1.5", "-1.5"), ("1", "10"), ("0.1", "0.01"), ("0", "1"), ("12", "1.2"), ("101", "11")];
        for (a, b) in different {
            assert!(!amount(a).same_value(&amount(b)), "{a} {b}");
        }
    }
}
