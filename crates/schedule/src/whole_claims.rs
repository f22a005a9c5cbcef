//! Which claims are settled as a whole: then Redis needs no names, only the lease and where it begins and ends.

use std::{collections::HashMap, sync::Arc};

use crate::claimed::Claimed;

/// Smaller claims are settled by name: it costs the same, and takes one call also when a member has changed.
const FEWEST: usize = 4;

/// All members of one claim, in the order of their bytes, which is that of a sorted set among equal scores.
#[derive(Debug)]
pub(crate) struct WholeClaim<'a>(Vec<&'a Claimed>);

impl<'a> WholeClaim<'a> {
    pub(crate) fn lease(&self) -> &'a str {
        &self.0[0].lease
    }

    pub(crate) fn members(&self) -> &[&'a Claimed] {
        &self.0
    }

    pub(crate) fn into_members(self) -> Vec<&'a Claimed> {
        self.0
    }

    pub(crate) fn first(&self) -> &'a [u8] {
        &self.0[0].member
    }

    pub(crate) fn last(&self) -> &'a [u8] {
        &self.0[self.0.len() - 1].member
    }
}

/// Splits members into whole claims and those of which the claim had more, or too few to matter.
pub(crate) fn split<'a>(members: &[&'a Claimed]) -> (Vec<WholeClaim<'a>>, Vec<&'a Claimed>) {
    let mut groups: Vec<Vec<&'a Claimed>> = Vec::new();
    let mut group_of = HashMap::new();
    for &claimed in members {
        // One claim shares one text.
        let at = *group_of.entry(Arc::as_ptr(&claimed.lease).cast::<u8>()).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[at].push(claimed);
    }
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for mut group in groups {
        if group.len() < FEWEST || group.len() != group[0].leased {
            parts.append(&mut group);
            continue;
        }
        group.sort_unstable_by(|a, b| a.member.cmp(&b.member));
        // If one is named twice, another is left out.
        if group.is_sorted_by(|a, b| a.member < b.member) {
            whole.push(WholeClaim(group));
        } else {
            parts.append(&mut group);
        }
    }
    (whole, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(lease: &str, members: &[&str]) -> Vec<Claimed> {
        let lease: Arc<str> = Arc::from(lease);
        let claimed = |member: &&str| Claimed {
            member: member.as_bytes().to_vec(),
            lease: Arc::clone(&lease),
            leased: members.len(),
            schedule: 0,
            former: "1".to_owned(),
            value: None,
            unreadable: None,
        };
        members.iter().map(claimed).collect()
    }

    fn names<'a>(members: &[&'a Claimed]) -> Vec<&'a [u8]> {
        members.iter().map(|claimed| claimed.member.as_slice()).collect()
    }

    #[test]
    fn a_claim_is_whole_when_each_of_its_members_is_there_once() {
        let one = claim("1.5", &["d", "b", "a", "c"]);
        let two = claim("2.5", &["h", "e", "g", "f"]);
        let mixed: Vec<&Claimed> = one.iter().zip(&two).flat_map(|(a, b)| [a, b]).collect();
        let (whole, parts) = split(&mixed);
        assert!(parts.is_empty());
        let ends: Vec<_> = whole.iter().map(|claim| (claim.lease(), claim.first(), claim.last())).collect();
        assert_eq!(ends, [("1.5", &b"a"[..], &b"d"[..]), ("2.5", b"e", b"h")]);

        let (whole, parts) = split(&mixed[1..]);
        assert_eq!(whole.iter().map(WholeClaim::lease).collect::<Vec<_>>(), ["2.5"]);
        assert_eq!(names(&parts), [b"b", b"a", b"c"], "one is missing");
        let (whole, parts) = split(&[&one[0], &one[1], &one[2], &one[2]]);
        assert!(whole.is_empty(), "one is named twice");
        assert_eq!(names(&parts), [b"a", b"a", b"b", b"d"]);
        let small = claim("3.5", &["a", "b", "c"]);
        assert!(split(&small.iter().collect::<Vec<_>>()).0.is_empty());
        assert!(split(&[]).0.is_empty());
    }
}
