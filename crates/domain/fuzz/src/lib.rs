//! What must hold for any bytes that Redis may hold. The fuzz targets call these checks with what the fuzzer
//! makes up, and `tests/it/corpus.rs` with the corpus that is checked in, so both check the same. They panic when
//! something does not hold.

pub mod naive;

use std::sync::LazyLock;

use balance_sync_domain::{
    Amount, BalanceRef, BalanceValue, DEFAULT_KEY, KeySpace, TenantId, ValueError, effective_key,
};
use serde_json::json;

/// Most bytes of an error's text: it goes to a log line and to quarantine. Two excerpts of 160 characters, of which
/// each may be escaped to ten bytes, and the words around them.
const MAX_ERROR_LEN: usize = 4_096;

/// A ledger without tenants, a tenant with a name, and one whose id is the UUID that could be mistaken for an
/// organization. The producer's samples have members of the first two.
static SPACES: LazyLock<[KeySpace; 3]> = LazyLock::new(|| {
    let tenant = |id| KeySpace::tenant(&TenantId::parse(id).expect("a valid id"));
    [KeySpace::single(), tenant("acme-prod_01"), tenant("11111111-2222-3333-4444-555555555555")]
});

/// Reads `bytes` as a member of each kind of schedule: as they are, and under the prefix of its balances, so that
/// the fuzzer need not find the prefix first.
pub fn member(bytes: &[u8]) {
    readable(bytes);
    for space in SPACES.iter() {
        for prefix in [space.prefix(), space.balance_prefix().as_str()] {
            member_in(space, &[prefix.as_bytes(), bytes].concat());
        }
    }
}

/// Whether `bytes` are a member of one of the schedules; they must never be one of two.
pub fn readable(bytes: &[u8]) -> bool {
    let spaces = SPACES.iter().filter(|space| member_in(space, bytes)).count();
    assert!(spaces <= 1, "{spaces} tenants can read the same member");
    spaces == 1
}

/// Whether `bytes` can be read as a member of `space`; if so, all of it must have been kept.
fn member_in(space: &KeySpace, bytes: &[u8]) -> bool {
    let parsed = match BalanceRef::parse(space, bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            refusal(&error.to_string(), error.reason().as_str());
            return false;
        }
    };
    let text = std::str::from_utf8(bytes).expect("members that are not UTF-8 are refused");
    let BalanceRef { organization, ledger, alias, key } = parsed;
    assert!(text.starts_with(space.prefix()));
    assert!(!key.trim().is_empty() && !key.contains('#'), "a key names one balance");

    // What follows the ledger is alias and key, whole: nothing is trimmed, folded or left out. A member that ends
    // without a key, or with a blank one, has the default key.
    let whole = format!(":{alias}#{key}");
    let before_alias = |text: &str| text.strip_suffix(alias).is_some_and(|before| before.ends_with(':'));
    let without_key = before_alias(text) || text.rsplit_once('#').is_some_and(|(text, _)| before_alias(text));
    assert!(
        text.ends_with(&whole) || key == DEFAULT_KEY && without_key,
        "{text:?} does not end as it was read: {parsed:?}"
    );

    // The balance's own key in Redis says the same again, and is the member, where that is the key's usual form.
    let own = space.balance(organization, ledger, alias, key);
    assert_eq!(BalanceRef::parse(space, own.as_bytes()), Ok(parsed));
    let usual = format!("{}{organization}:{ledger}:", space.balance_prefix());
    if text.starts_with(&usual) && text.ends_with(&whole) {
        assert_eq!(own, text);
    }
    for other in SPACES.iter().filter(|other| *other != space) {
        assert!(BalanceRef::parse(other, own.as_bytes()).is_err(), "{own:?} is readable in {other:?}");
    }
    true
}

/// Reads `bytes` as the value of a balance; what is read must be what stands there.
pub fn value(bytes: &[u8]) {
    let decoded = BalanceValue::decode(bytes);
    compare(bytes, &decoded);
    let value = match decoded {
        Ok(value) => value,
        Err(error) => return refusal(&error.to_string(), error.reason().as_str()),
    };
    assert!(value.version >= 0);
    for amount in [&value.available, &value.on_hold, &value.overdraft_used] {
        let text = amount.as_str();
        assert!(!text.starts_with('+') && text.is_ascii());
        assert_eq!(Amount::parse(text).as_ref(), Ok(amount), "an amount must be accepted again, unchanged");
        assert!(amount.same_value(amount));
        assert!(text.starts_with('-') || !amount.is_negative());
        // Digit for digit: the text stands in the value as it is, unless it is written with escapes.
        let stands = bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(
            stands || bytes.contains(&b'\\') || std::ptr::eq(amount, &value.overdraft_used) && text == "0",
            "{text:?} does not stand in the value"
        );
    }

    // Written again, it is read as the same.
    let again = json!({
        "ID": value.id.to_string(), "Available": value.available.as_str(), "OnHold": value.on_hold.as_str(),
        "OverdraftUsed": value.overdraft_used.as_str(), "Version": value.version,
        "AssetCode": value.asset_code, "Key": value.key,
    });
    assert_eq!(BalanceValue::decode(again.to_string().as_bytes()).as_ref(), Ok(&value));

    let member = BalanceRef { organization: value.id, ledger: value.id, alias: "@a", key: "default" };
    assert!(!effective_key(&member, &value).trim().is_empty(), "each balance has a key");
}

/// What the decoder read is what the naive reading of the same bytes gives, and what it refused is refused for the same
/// reason.
pub fn compare(bytes: &[u8], decoded: &Result<BalanceValue, ValueError>) {
    let Some(expected) = naive::read(bytes) else { return };
    let found = match decoded {
        Ok(value) => Ok([
            value.id.to_string(),
            value.available.to_string(),
            value.on_hold.to_string(),
            value.overdraft_used.to_string(),
            value.version.to_string(),
            value.asset_code.clone(),
            value.key.clone(),
        ]),
        Err(error) => Err(error.reason().as_str()),
    };
    assert_eq!(found, expected, "of {:?}", String::from_utf8_lossy(bytes));
}

/// An error's text is one log line, however odd the bytes, and its reason is a label.
fn refusal(text: &str, reason: &str) {
    assert!(text.len() <= MAX_ERROR_LEN, "{} bytes: {text}", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(
        !reason.is_empty()
            && reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    );
}
