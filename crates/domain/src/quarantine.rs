//! Why a balance is set aside.

use crate::{Reported, names};

names! {
    /// Why a balance can't be synced and is listed, or why its value can't be read.
    pub enum QuarantineReason {
        /// No row has its id under its organization and ledger.
        MissingRow = "missing_row",
        /// Row and value in Redis have different histories.
        Forked = "forked",
        /// Its value is gone from Redis, and the row lacks what the ledger's trail has, or whether it does is unknown.
        ValueLost = "value_lost",
        /// Its value had expired before it was read. Written by former releases.
        ValueExpired = "value_expired",
        /// The key of its value has another type, or can't be reached.
        ValueUnreadable = "value_unreadable",
        /// Its value is larger than any that is read.
        ValueTooLarge = "value_too_large",
        /// Postgres refuses the row.
        RefusedByPostgres = "refused_by_postgres",
        /// The entry in Redis can't be read.
        UnreadableEntry = "unreadable_entry",
        /// The member is longer than any that is claimed. Its entry stands under its beginning and its length.
        MemberTooLong = "member_too_long",
        /// The member is no UTF-8.
        MemberNotUtf8 = "member_not_utf8",
        /// The member has the prefix of another tenant.
        MemberForeignTenant = "member_foreign_tenant",
        /// The member lacks its tenant's prefix.
        MemberWithoutTenantPrefix = "member_without_tenant_prefix",
        /// The member has its tenant's prefix twice.
        MemberRepeatedTenantPrefix = "member_repeated_tenant_prefix",
        /// The member names no organization.
        MemberWithoutOrganization = "member_without_organization",
        /// The member names no ledger.
        MemberWithoutLedger = "member_without_ledger",
        /// The member names no balance.
        MemberWithoutAlias = "member_without_alias",
        /// The value is no JSON object.
        ValueNotAJsonObject = "value_not_a_json_object",
        /// The value is in a format of a later release: the balance stays scheduled.
        ValueUnknownFormat = "value_unknown_format",
        /// A deletion marker stands in the value's place: the balance stays scheduled.
        ValueDeletionMarker = "value_deletion_marker",
        /// A name stands twice in the value.
        ValueDuplicateName = "value_duplicate_name",
        /// A field that every balance has is absent.
        ValueFieldMissing = "value_field_missing",
        /// A field is `null`.
        ValueFieldNull = "value_field_null",
        /// The id is no UUID.
        ValueInvalidId = "value_invalid_id",
        /// An amount is no decimal number.
        ValueInvalidAmount = "value_invalid_amount",
        /// A number isn't in the one form that is allowed.
        ValueNotCanonical = "value_not_canonical",
        /// The version is no whole number.
        ValueInvalidVersion = "value_invalid_version",
        /// A text field is something else.
        ValueInvalidText = "value_invalid_text",
    }
}

impl QuarantineReason {
    /// Whether the words that go with it may quote the value: those of values that can't be read, and of Postgres.
    #[must_use]
    pub const fn may_quote(self) -> bool {
        match self {
            Self::RefusedByPostgres
            | Self::UnreadableEntry
            | Self::ValueNotAJsonObject
            | Self::ValueUnknownFormat
            | Self::ValueDeletionMarker
            | Self::ValueDuplicateName
            | Self::ValueFieldNull
            | Self::ValueInvalidId
            | Self::ValueInvalidAmount
            | Self::ValueNotCanonical
            | Self::ValueInvalidVersion
            | Self::ValueInvalidText => true,
            Self::MissingRow
            | Self::Forked
            | Self::ValueLost
            | Self::ValueExpired
            | Self::ValueUnreadable
            | Self::ValueTooLarge
            | Self::MemberTooLong
            | Self::ValueFieldMissing
            | Self::MemberNotUtf8
            | Self::MemberForeignTenant
            | Self::MemberWithoutTenantPrefix
            | Self::MemberRepeatedTenantPrefix
            | Self::MemberWithoutOrganization
            | Self::MemberWithoutLedger
            | Self::MemberWithoutAlias => false,
        }
    }
}

impl Reported<QuarantineReason> {
    /// Whether the words that go with it may quote the value. Those of a reason that this release doesn't know may.
    #[must_use]
    pub fn may_quote(&self) -> bool {
        self.known().is_none_or(QuarantineReason::may_quote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_say_what_a_key_holds_quote_no_value() {
        use QuarantineReason::{
            MissingRow, RefusedByPostgres, ValueExpired, ValueFieldMissing, ValueLost, ValueNotAJsonObject,
            ValueUnreadable,
        };
        assert!([ValueNotAJsonObject, RefusedByPostgres].into_iter().all(QuarantineReason::may_quote));
        let plain = [ValueExpired, ValueLost, ValueUnreadable, ValueFieldMissing, MissingRow];
        assert!(!plain.into_iter().any(QuarantineReason::may_quote));
    }

    #[test]
    fn words_of_an_unknown_reason_are_taken_for_quotes() {
        assert!(Reported::<QuarantineReason>::from("value_in_klingon").may_quote());
        assert!(Reported::<QuarantineReason>::from("teleported").may_quote());
        assert!(!Reported::from(QuarantineReason::MissingRow).may_quote());
    }
}
