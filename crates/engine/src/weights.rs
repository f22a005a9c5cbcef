//! The weight of each tenant where connections are short, by id or glob (`tenants.weights`).

use crate::fair::Weight;
use crate::rollout::Pattern;

/// The most entries.
const MOST_ENTRIES: usize = 1_000;

/// The most globs among them: each is compared with a tenant.
const MOST_GLOBS: usize = 50;

/// Weights by tenant; the default is 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights(Vec<(Pattern, Weight)>);

impl Weights {
    /// Reads entries `TENANT=WEIGHT`.
    ///
    /// # Errors
    /// The first entry that can't be used, and what is allowed.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Weights, (String, String)> {
        let mut weights: Vec<(Pattern, Weight)> = Vec::new();
        for entry in entries {
            let entry = entry.as_ref();
            let refuse = |allowed: String| (entry.to_owned(), allowed);
            let Some((tenant, weight)) = entry.split_once('=') else {
                return Err(refuse(format!(
                    "allowed: TENANT=WEIGHT, as \"acme=4\", with a weight from 1 to {}",
                    Weight::MOST
                )));
            };
            let pattern = Pattern::parse(tenant.trim())
                .map_err(|allowed| refuse(format!("for the tenant, {allowed}")))?;
            let weight = weight.trim().parse().ok().and_then(Weight::new).ok_or_else(|| {
                refuse(format!("for the weight, allowed: a whole number from 1 to {}", Weight::MOST))
            })?;
            if weights.iter().any(|(known, _)| *known == pattern) {
                return Err(refuse(format!("allowed: one weight for {pattern}")));
            }
            weights.push((pattern, weight));
        }
        let globs = weights.iter().filter(|(pattern, _)| pattern.is_glob()).count();
        if weights.len() > MOST_ENTRIES || globs > MOST_GLOBS {
            return Err((
                format!("{} entries, {globs} of them globs", weights.len()),
                format!("allowed: at most {MOST_ENTRIES} entries, {MOST_GLOBS} globs among them"),
            ));
        }
        Ok(Weights(weights))
    }

    /// The weight of a tenant: by its id if an entry names it, else by the first glob that stands for it.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Weight {
        let named = |globs: bool| {
            let mut entries = self.0.iter().filter(|(pattern, _)| pattern.is_glob() == globs);
            entries.find(|(pattern, _)| pattern.matches(tenant)).map(|(_, weight)| *weight)
        };
        named(false).or_else(|| named(true)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_tenant_has_the_weight_of_its_id_or_of_the_first_glob() {
        let uuid = "0198c3a2-5f6b-7cc1-9c4e-0a1b2c3d4e5f";
        let weights = Weights::parse(&["big-*=4", "b*=3", "big-but-calm = 1", &format!("{uuid}=7")]).unwrap();
        for (tenant, weight) in [
            ("big-one", 4),
            ("bank", 3),
            ("big-but-calm", 1),
            ("other", 1),
            (uuid, 7),
            (&uuid.replace('-', ""), 7),
        ] {
            assert_eq!(weights.of(tenant).get(), weight, "{tenant}");
        }
        assert_eq!(Weights::default().of("acme"), Weight::ONE);
    }

    #[test]
    fn what_is_no_weight_is_refused_with_what_is_allowed() {
        for (entries, entry, allowed) in [
            (vec!["acme"], "acme", "TENANT=WEIGHT"),
            (vec!["acme:4"], "acme:4", "TENANT=WEIGHT"),
            (vec!["ok=1", "acme=0"], "acme=0", "a whole number from 1 to 100"),
            (vec!["acme=101"], "acme=101", "a whole number from 1 to 100"),
            (vec!["acme=2.5"], "acme=2.5", "a whole number from 1 to 100"),
            (vec!["acme="], "acme=", "a whole number from 1 to 100"),
            (vec!["=4"], "=4", "for the tenant, allowed: 1 to"),
            (vec!["ac me=4"], "ac me=4", "for the tenant, allowed: 1 to"),
            (vec!["acme=4", "acme=5"], "acme=5", "one weight for acme"),
        ] {
            let (found, text) = Weights::parse(&entries).unwrap_err();
            assert!(found == entry && text.contains(allowed), "{found}: {text}");
        }
        let many: Vec<String> = (0..=MOST_ENTRIES).map(|number| format!("t{number}=2")).collect();
        assert!(Weights::parse(&many).unwrap_err().1.contains("at most 1000 entries"));
        let globs: Vec<String> = (0..=MOST_GLOBS).map(|number| format!("t{number}*=2")).collect();
        assert!(Weights::parse(&globs).unwrap_err().0.contains("51 of them globs"));
    }
}
