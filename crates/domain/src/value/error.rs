//! Why a value can't be read.

use crate::amount::AmountError;
use crate::excerpt::excerpt_bytes;
use crate::quarantine::QuarantineReason;

/// What the key of a deletion marker ends with, in ledgers that write the older form.
const MARKER_SUFFIX: &[u8] = b":deleted";

/// Longest value taken for the token of a deletion marker.
const MAX_TOKEN_LEN: usize = 256;

/// Why a value can't be read.
///
/// Most of these don't go away by themselves, and the value is quarantined. Two are exceptions, see
/// [`keeps_scheduled`](Self::keeps_scheduled).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value is not a JSON object.
    #[error("value {value} is not a JSON object: {detail}")]
    NotAnObject {
        /// The start of the value, escaped.
        value: String,
        /// What is wrong, and where.
        detail: String,
    },
    /// The value is in a format that this version doesn't know. A later version may, so the value is kept.
    #[error(
        "field SchemaVersion is {value}: known is the number 2, or no such field; a newer release may know this format"
    )]
    UnknownFormat {
        /// The start of the field's JSON, escaped.
        value: String,
    },
    /// The key holds the token of a deletion marker, which the ledger removes again.
    #[error(
        "value {value} is the token of a deletion marker, not a balance: the ledger removes it within 48 h"
    )]
    DeletionMarker {
        /// The start of the value, escaped.
        value: String,
    },
    /// A name stands twice in the object. Which of the two counts is unknown.
    #[error("field {name} stands twice: allowed is once")]
    DuplicateName {
        /// The start of the name, escaped.
        name: String,
    },
    /// A field that every balance has is absent.
    #[error("field {field} is missing: allowed is {allowed}")]
    Missing {
        /// The field, as the ledger spells it.
        field: &'static str,
        /// What it should hold.
        allowed: &'static str,
    },
    /// A field is `null`, which is neither a value nor the same as an absent field.
    #[error("field {field} is null: allowed is {allowed}")]
    Null {
        /// The field, as the ledger spells it.
        field: &'static str,
        /// What it should hold.
        allowed: &'static str,
    },
    /// The id is not a UUID, or the nil UUID.
    #[error("field {field} is {value}: allowed is a UUID in a string, not the nil one")]
    InvalidId {
        /// The field, as the ledger spells it.
        field: &'static str,
        /// The start of the field's JSON, escaped.
        value: String,
    },
    /// An amount is not a decimal number, or has more digits than Postgres can hold.
    #[error("field {field} is {value}: allowed is a decimal number: {rule}")]
    InvalidAmount {
        /// The field, as the ledger spells it.
        field: &'static str,
        /// The start of the field's JSON, escaped.
        value: String,
        /// Which rule it breaks.
        rule: AmountError,
    },
    /// A number of the formats from `SchemaVersion` 2 on isn't written in the only form allowed there.
    #[error("field {field} is {value}: allowed is {allowed}")]
    NotCanonical {
        /// The field, as the ledger spells it.
        field: &'static str,
        /// The start of the field's JSON, escaped.
        value: String,
        /// The form it should have.
        allowed: &'static str,
    },
    /// The version is not a whole number that a `BIGINT` holds.
    #[error("field {field} is {value}: allowed is a whole number from 0 to {max}", max = i64::MAX)]
    InvalidVersion {
        /// The field, as the ledger spells it.
        field: &'static str,
        /// The start of the field's JSON, escaped.
        value: String,
    },
    /// A text field is something else.
    #[error("field {field} is {value}: allowed is a string")]
    InvalidText {
        /// The field, as the ledger spells it.
        field: &'static str,
        /// The start of the field's JSON, escaped.
        value: String,
    },
}

impl ValueError {
    /// The reason, for quarantine entries and metric labels.
    #[must_use]
    pub fn reason(&self) -> QuarantineReason {
        match self {
            Self::NotAnObject { .. } => QuarantineReason::ValueNotAJsonObject,
            Self::UnknownFormat { .. } => QuarantineReason::ValueUnknownFormat,
            Self::DeletionMarker { .. } => QuarantineReason::ValueDeletionMarker,
            Self::DuplicateName { .. } => QuarantineReason::ValueDuplicateName,
            Self::Missing { .. } => QuarantineReason::ValueFieldMissing,
            Self::Null { .. } => QuarantineReason::ValueFieldNull,
            Self::InvalidId { .. } => QuarantineReason::ValueInvalidId,
            Self::InvalidAmount { .. } => QuarantineReason::ValueInvalidAmount,
            Self::NotCanonical { .. } => QuarantineReason::ValueNotCanonical,
            Self::InvalidVersion { .. } => QuarantineReason::ValueInvalidVersion,
            Self::InvalidText { .. } => QuarantineReason::ValueInvalidText,
        }
    }

    /// Whether the value's format is one of a later release: the value must be neither taken apart nor lost.
    #[must_use]
    pub fn is_unknown_format(&self) -> bool {
        matches!(self, Self::UnknownFormat { .. })
    }

    /// Whether the key holds the token of a deletion marker in place of a balance.
    #[must_use]
    pub fn is_deletion_marker(&self) -> bool {
        matches!(self, Self::DeletionMarker { .. })
    }

    /// Whether the balance stays scheduled and is tried again later: nothing is wrong with it that an operator
    /// could repair. All other errors lead to quarantine.
    #[must_use]
    pub fn keeps_scheduled(&self) -> bool {
        self.is_unknown_format() || self.is_deletion_marker()
    }

    /// The same error, seen under the member whose value it is: what is no JSON may be a deletion marker.
    ///
    /// Older ledgers mark the balance `x` as deleted under the key `x:deleted`, which is also the key of a
    /// balance that is named so, and overwrites its value.
    pub(super) fn under_member(self, member: &[u8], value: &[u8]) -> Self {
        if matches!(self, Self::NotAnObject { .. }) && member.ends_with(MARKER_SUFFIX) && is_bare_token(value)
        {
            Self::DeletionMarker { value: excerpt_bytes(value) }
        } else {
            self
        }
    }
}

/// Whether `value` can be a token: short, printable, without spaces, and not the start of a JSON text that was cut.
fn is_bare_token(value: &[u8]) -> bool {
    (1..=MAX_TOKEN_LEN).contains(&value.len())
        && value.iter().all(u8::is_ascii_graphic)
        && !matches!(value[0], b'{' | b'[' | b'"')
}
