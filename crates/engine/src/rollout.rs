//! Which tenants this fleet serves while it takes over from another worker, and whether to widen that.
//!
//! A [`Selection`] is two lists of patterns and a share. Every worker comes to the same answer from the same selection, without
//! asking another, and for either form of a tenant's UUID. [`advise`] says from the figures of a stage whether to widen the
//! rollout, to wait, or to stop. How a selection is stored and followed is `balance_sync_fleet::lifecycle::rollout`'s.

use std::{borrow::Cow, collections::BTreeSet, fmt, time::Duration};

use crate::names;

/// Most patterns in one of the lists.
pub const MOST_PATTERNS: usize = 1_000;
/// Most of them that are globs: each is tried on each tenant.
pub const MOST_GLOBS: usize = 50;
/// Longest pattern, in bytes: that of a tenant id.
const LONGEST_PATTERN: usize = 256;
/// Most wildcards in a pattern.
const MOST_WILDCARDS: usize = 8;
/// What a share is counted in.
const WHOLE: u16 = 10_000;

/// A share of all tenants, in ten-thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u16);

impl Share {
    /// No tenant.
    pub const NONE: Self = Self(0);
    /// All tenants.
    pub const ALL: Self = Self(WHOLE);

    /// So many ten-thousandths; `None` above the whole.
    #[must_use]
    pub const fn of_ten_thousand(parts: u16) -> Option<Self> {
        if parts <= WHOLE { Some(Self(parts)) } else { None }
    }

    /// In ten-thousandths.
    #[must_use]
    pub const fn ten_thousandths(self) -> u16 {
        self.0
    }

    /// As a fraction.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// Reads a percentage as `5%` or `0.25%`.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = || "allowed: a percentage from 0% to 100%, with at most two decimals".to_owned();
        let number = text.trim().strip_suffix('%').ok_or_else(allowed)?.trim_end();
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(decimals) || whole.len() > 3 || decimals.len() > 2 {
            return Err(allowed());
        }
        let hundredths: u16 = format!("{decimals:0<2}").parse().map_err(|_| allowed())?;
        let whole: u16 = whole.parse().map_err(|_| allowed())?;
        Self::of_ten_thousand(whole * 100 + hundredths).ok_or_else(allowed)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, tenths) if tenths.is_multiple_of(10) => write!(f, "{whole}.{}%", tenths / 10),
            (whole, hundredths) => write!(f, "{whole}.{hundredths:02}%"),
        }
    }
}

/// A tenant id, or a glob over ids: `*` stands for any text, `?` for one character.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern. A UUID is the same in both forms.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'*' | b'?');
        let wildcards = text.bytes().filter(|b| matches!(b, b'*' | b'?')).count();
        if text.is_empty() || text.len() > LONGEST_PATTERN || !text.bytes().all(is_allowed) {
            return Err(format!("allowed: 1 to {LONGEST_PATTERN} of A-Z, a-z, 0-9, '_', '-', '*' and '?'"));
        }
        if wildcards > MOST_WILDCARDS {
            return Err(format!("allowed: at most {MOST_WILDCARDS} of '*' and '?' in one pattern"));
        }
        Ok(Self(canonical(text).into_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it may stand for several tenants.
    #[must_use]
    pub fn is_glob(&self) -> bool {
        self.0.bytes().any(|b| matches!(b, b'*' | b'?'))
    }

    /// Whether it stands for this tenant, in either form of its UUID.
    #[must_use]
    pub fn matches(&self, tenant: &str) -> bool {
        if self.is_glob() { self.glob_matches(tenant) } else { self.0 == canonical(tenant) }
    }

    fn glob_matches(&self, tenant: &str) -> bool {
        let pattern = self.0.as_bytes();
        let simple = canonical(tenant);
        glob(pattern, tenant.as_bytes())
            || glob(pattern, simple.as_bytes())
            || is_simple_uuid(&simple) && glob(pattern, dashed(&simple).as_bytes())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

names! {
    /// Why a tenant is in the rollout, or not.
    pub enum Cause {
        /// A pattern excludes it.
        Excluded = "excluded",
        /// A pattern includes it.
        Included = "included",
        /// It is in the share.
        InShare = "in_share",
        /// Nothing includes it, and it is not in the share.
        OutsideShare = "outside_share",
    }
}

impl Cause {
    /// Whether the tenant is served.
    #[must_use]
    pub const fn is_selected(self) -> bool {
        matches!(self, Self::Included | Self::InShare)
    }
}

/// The tenants that this fleet serves. An exclusion wins over an inclusion, and that over the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    include: BTreeSet<Pattern>,
    exclude: BTreeSet<Pattern>,
    share: Share,
}

/// All tenants.
impl Default for Selection {
    fn default() -> Self {
        Self { include: BTreeSet::new(), exclude: BTreeSet::new(), share: Share::ALL }
    }
}

/// A change of a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Another share; the lists stay.
    Share(Share),
    /// These are included, and no longer excluded.
    Add(Vec<Pattern>),
    /// These are on no list any more.
    Remove(Vec<Pattern>),
    /// These are excluded, and no longer included.
    Exclude(Vec<Pattern>),
    /// All but the excluded ones.
    All,
    /// None.
    None,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, patterns) = match self {
            Self::Share(share) => return write!(f, "set {share}"),
            Self::All => return f.write_str("all"),
            Self::None => return f.write_str("none"),
            Self::Add(patterns) => ("add", patterns),
            Self::Remove(patterns) => ("remove", patterns),
            Self::Exclude(patterns) => ("exclude", patterns),
        };
        f.write_str(what)?;
        patterns.iter().try_for_each(|pattern| write!(f, " {pattern}"))
    }
}

impl Selection {
    /// Out of lists and a share.
    ///
    /// # Errors
    /// When a list is too long.
    pub fn new(include: BTreeSet<Pattern>, exclude: BTreeSet<Pattern>, share: Share) -> Result<Self, String> {
        for list in [&include, &exclude] {
            if list.len() > MOST_PATTERNS {
                return Err(format!("allowed: at most {MOST_PATTERNS} ids and globs on a list"));
            }
            if list.iter().filter(|pattern| pattern.is_glob()).count() > MOST_GLOBS {
                return Err(format!("allowed: at most {MOST_GLOBS} globs on a list"));
            }
        }
        Ok(Self { include, exclude, share })
    }

    /// Included whatever the share.
    #[must_use]
    pub const fn include(&self) -> &BTreeSet<Pattern> {
        &self.include
    }

    /// Excluded whatever else.
    #[must_use]
    pub const fn exclude(&self) -> &BTreeSet<Pattern> {
        &self.exclude
    }

    /// The share of the others.
    #[must_use]
    pub const fn share(&self) -> Share {
        self.share
    }

    /// Whether it selects every tenant that there may be.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.share == Share::ALL && self.exclude.is_empty()
    }

    /// Whether it selects a tenant, and why.
    #[must_use]
    pub fn cause(&self, tenant: &str) -> Cause {
        if has(&self.exclude, tenant) {
            Cause::Excluded
        } else if has(&self.include, tenant) {
            Cause::Included
        } else if self.share == Share::ALL || place(tenant) < self.share.0 {
            Cause::InShare
        } else {
            Cause::OutsideShare
        }
    }

    /// Whether it selects a tenant.
    #[must_use]
    pub fn selects(&self, tenant: &str) -> bool {
        self.cause(tenant).is_selected()
    }

    /// The selection after a change.
    ///
    /// # Errors
    /// When a list would become too long, or nothing can come of the change.
    pub fn after(&self, change: &Change) -> Result<Self, String> {
        let Self { mut include, mut exclude, mut share } = self.clone();
        match change {
            Change::Share(to) => share = *to,
            Change::All => (include, share) = (BTreeSet::new(), Share::ALL),
            Change::None => (include, share) = (BTreeSet::new(), Share::NONE),
            Change::Add(patterns) => {
                exclude.retain(|pattern| !patterns.contains(pattern));
                for pattern in patterns.iter().filter(|pattern| !pattern.is_glob()) {
                    if let Some(by) = exclude.iter().find(|by| by.matches(pattern.as_str())) {
                        return Err(format!("{pattern} would stay excluded, by {by}: remove that first"));
                    }
                }
                include.extend(patterns.iter().cloned());
            }
            Change::Remove(patterns) => {
                for pattern in patterns {
                    let (included, excluded) = (include.remove(pattern), exclude.remove(pattern));
                    if !included && !excluded {
                        return Err(format!(
                            "{pattern} is neither included nor excluded by its name; `exclude` takes a tenant out of the share"
                        ));
                    }
                }
            }
            Change::Exclude(patterns) => {
                include.retain(|pattern| !patterns.contains(pattern));
                exclude.extend(patterns.iter().cloned());
            }
        }
        Self::new(include, exclude, share)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Patterns that are named.
        const NAMED: usize = 3;
        write!(f, "{} of the tenants", self.share)?;
        for (what, list) in [("included", &self.include), ("excluded", &self.exclude)] {
            if !list.is_empty() {
                let named: Vec<&str> = list.iter().take(NAMED).map(Pattern::as_str).collect();
                let more = list.len() - named.len();
                write!(f, ", {what}: {}", named.join(", "))?;
                if more > 0 {
                    write!(f, " and {more} more")?;
                }
            }
        }
        Ok(())
    }
}

fn has(list: &BTreeSet<Pattern>, tenant: &str) -> bool {
    // Thousands of tenants are asked for, and most lists are short or without globs.
    !list.is_empty() && list.contains(canonical(tenant).as_ref() as &str)
        || list.iter().filter(|pattern| pattern.is_glob()).any(|pattern| pattern.glob_matches(tenant))
}

impl std::borrow::Borrow<str> for Pattern {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A UUID without dashes and in lower case; any other id as it is.
pub(crate) fn canonical(id: &str) -> Cow<'_, str> {
    let is_dashed = id.len() == 36
        && id.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    if is_dashed {
        Cow::Owned(id.replace('-', "").to_ascii_lowercase())
    } else if is_simple_uuid(id) && id.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(id.to_ascii_lowercase())
    } else {
        Cow::Borrowed(id)
    }
}

fn is_simple_uuid(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

fn dashed(simple: &str) -> String {
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &simple[part]).join("-")
}

/// Whether a glob stands for a text.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star, should what follows it not fit.
    let mut again: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                again = Some((p + 1, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(b) if *b == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((after, from)) = again else { return false };
                again = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

/// The place of a tenant among ten thousand: FNV-1a, finished as MurmurHash3 finishes. The same in all releases for ever: a
/// tenant must not leave a share because a worker was upgraded.
fn place(tenant: &str) -> u16 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in canonical(tenant).bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((hash ^ (hash >> 33)) % u64::from(WHOLE)) as u16
}

// -- advice ------------------------------------------------------------------------------------------------------------

names! {
    /// What to do with a rollout.
    pub enum Advice {
        /// Take more tenants.
        Widen = "widen",
        /// Look again later.
        Wait = "wait",
        /// Take no more, and find out what is wrong.
        Stop = "stop",
        /// All tenants are in it, and nothing is wrong.
        Complete = "complete",
    }
}

/// What a stage must have shown before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// For how long it has been watched.
    pub observed: Duration,
    /// How many mutations it has written.
    pub mutations: u64,
    /// What the p99 from mutation to row should stay within.
    pub lag: Duration,
}

/// What is known of a stage, since the rollout was changed last. Of the tenants in it; `None` = not known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Tenants in the rollout.
    pub tenants: u64,
    /// Tenants in all; `None` = the list isn't known.
    pub total: Option<u64>,
    /// Tenants in the rollout that can't be written, or that no worker serves.
    pub failing: u64,
    /// Tenants in the rollout of which it isn't known how they are.
    pub unknown: u64,
    /// For how long it was watched.
    pub observed: Option<Duration>,
    /// Mutations written meanwhile.
    pub mutations: Option<u64>,
    /// From mutation to row, over all of them, in seconds.
    pub lag_p99: Option<f64>,
    /// Rows that lack what should have been written by now.
    pub drift: Option<u64>,
    /// Balances that are listed as lost, and that nobody has acknowledged.
    pub open_losses: u64,
    /// Balances that were newly listed as lost.
    pub losses: Option<u64>,
    /// Times a fork was found.
    pub forks: Option<u64>,
    /// Balances that are newly in quarantine, lost ones aside.
    pub quarantined: Option<u64>,
}

/// Whether to widen a rollout, to wait or to stop, and why, in words. What isn't known never widens it.
#[must_use]
pub fn advise(figures: &Figures, needed: &Threshold) -> (Advice, String) {
    let some = |count: Option<u64>| count.filter(|count| *count > 0);
    if let Some(losses) = some(figures.losses) {
        return (Advice::Stop, format!("{losses} balances were listed as lost in this stage"));
    }
    if figures.open_losses > 0 {
        return (
            Advice::Stop,
            format!("{} balances are listed as lost, and nobody has acknowledged them", figures.open_losses),
        );
    }
    if let Some(forks) = some(figures.forks) {
        return (Advice::Stop, format!("{forks} forks were found in this stage"));
    }
    if figures.failing > 0 {
        return (Advice::Stop, format!("{} of the tenants in it can't be written", figures.failing));
    }
    if let Some(drift) = some(figures.drift) {
        return (Advice::Stop, format!("{drift} rows lack what should have been written by now"));
    }
    if let Some(lag) = figures.lag_p99.filter(|lag| *lag > needed.lag.as_secs_f64()) {
        let allowed = needed.lag.as_secs_f64();
        return (
            Advice::Stop,
            format!(
                "one mutation in a hundred took {lag:.1} s or longer to its row ({allowed} s are allowed)"
            ),
        );
    }
    if let Some(quarantined) = some(figures.quarantined) {
        return (
            Advice::Wait,
            format!("{quarantined} balances came into quarantine in this stage, look at them first"),
        );
    }
    let Some(total) = figures.total else {
        return (Advice::Wait, "the list of tenants is not known".to_owned());
    };
    if figures.tenants == 0 {
        return match total {
            0 => (Advice::Wait, "there are no tenants".to_owned()),
            _ => (Advice::Widen, "no tenant is in it yet, so begin with one".to_owned()),
        };
    }
    if figures.unknown > 0 {
        return (Advice::Wait, format!("it isn't known how {} of the tenants in it are", figures.unknown));
    }
    let known = (figures.observed, figures.mutations, figures.losses, figures.forks, figures.drift);
    let (Some(observed), Some(mutations), Some(_), Some(_), Some(_)) = known else {
        return (Advice::Wait, "nothing is known of this stage yet".to_owned());
    };
    if figures.tenants >= total {
        return (Advice::Complete, format!("all {total} tenants are in it, and nothing was lost"));
    }
    if observed < needed.observed {
        let (seconds, enough) = (observed.as_secs(), needed.observed.as_secs());
        return (Advice::Wait, format!("it has been watched for {seconds} s, and {enough} s are needed"));
    }
    if mutations < needed.mutations {
        return (
            Advice::Wait,
            format!("{mutations} mutations were written, and {} are needed to judge it", needed.mutations),
        );
    }
    let Some(lag) = figures.lag_p99 else {
        return (Advice::Wait, "it isn't known how long a mutation takes to its row".to_owned());
    };
    let seconds = observed.as_secs();
    (
        Advice::Widen,
        format!("{mutations} mutations in {seconds} s, p99 {lag:.2} s to the row, none lost, none behind"),
    )
}

#[cfg(test)]
mod tests;
