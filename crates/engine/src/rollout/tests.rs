use proptest::{collection::vec, prelude::*};

use super::*;

const DASHED: &str = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50";
const SIMPLE: &str = "0190b5f27c1a7e3b9d4f2a6c8e1b3d50";

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).expect("a pattern")
}

fn selection(include: &[&str], exclude: &[&str], parts: u16) -> Selection {
    let list = |texts: &[&str]| texts.iter().map(|text| pattern(text)).collect();
    let share = Share::of_ten_thousand(parts).expect("a share");
    Selection::new(list(include), list(exclude), share).expect("a selection")
}

#[test]
fn shares_are_percentages_with_two_decimals() {
    for (text, parts, shown) in [
        ("5%", 500, "5%"),
        ("12.5%", 1250, "12.5%"),
        ("0.25 %", 25, "0.25%"),
        (" 0.01%", 1, "0.01%"),
        ("100%", 10_000, "100%"),
        ("0%", 0, "0%"),
        ("3.05%", 305, "3.05%"),
    ] {
        let share = Share::parse(text).expect(text);
        assert_eq!((share.ten_thousandths(), share.to_string().as_str()), (parts, shown), "{text}");
        assert_eq!(Share::parse(shown), Ok(share));
    }
    for text in
        ["", "5", "%", "-1%", "100.01%", "101%", "1.234%", "5.%", ".5%", "1e1%", "+5%", "99999%", "٣%"]
    {
        assert!(Share::parse(text).is_err(), "{text:?} was taken");
    }
}

#[test]
fn an_exclusion_wins_over_an_inclusion_and_that_over_the_share() {
    let all = selection(&["acme"], &["acme", "beta"], 10_000);
    assert_eq!(
        (all.cause("acme"), all.cause("beta"), all.cause("gamma")),
        (Cause::Excluded, Cause::Excluded, Cause::InShare)
    );
    let none = selection(&["acme"], &[], 0);
    assert_eq!((none.cause("acme"), none.cause("beta")), (Cause::Included, Cause::OutsideShare));
    assert!(Selection::default().is_everything() && Selection::default().selects("anything"));
}

#[test]
fn both_forms_of_a_uuid_are_one_tenant() {
    let upper = DASHED.to_ascii_uppercase();
    for named in [DASHED, SIMPLE, &upper] {
        let by_name = selection(&[named], &[], 0);
        for asked in [DASHED, SIMPLE, &upper] {
            assert_eq!(by_name.cause(asked), Cause::Included, "{named} {asked}");
            assert_eq!(place(asked), place(DASHED));
        }
    }
    for glob in ["0190b5f2-7c1a-*", "0190b5f27c1a7*", "*3d50"] {
        let by_glob = selection(&[], &[glob], 10_000);
        assert!(!by_glob.selects(DASHED) && !by_glob.selects(SIMPLE), "{glob}");
    }
    // Other ids are compared as text.
    assert!(!selection(&["Acme"], &[], 0).selects("acme"));
}

#[test]
fn globs_stand_for_texts_and_are_bounded() {
    for (glob, fits, not) in [
        ("acme-*", vec!["acme-", "acme-1", "acme-prod-eu"], vec!["acme", "xacme-1"]),
        ("*-eu", vec!["a-eu", "-eu"], vec!["a-eu1"]),
        ("a?c", vec!["abc"], vec!["ac", "abbc"]),
        ("*a*b*", vec!["ab", "xaxbx", "aab"], vec!["ba"]),
        ("*", vec!["x", SIMPLE], vec![]),
    ] {
        let glob = pattern(glob);
        fits.iter().for_each(|text| assert!(glob.matches(text), "{glob} {text}"));
        not.iter().for_each(|text| assert!(!glob.matches(text), "{glob} {text}"));
    }
    for refused in ["", "a:b", "a b", "{a}", "ação", "*********", &"a".repeat(257), "a\n", "[a]"] {
        assert!(Pattern::parse(refused).is_err(), "{refused:?} was taken");
    }
    let many = |globs: usize, ids: usize| {
        let globs = (0..globs).map(|n| pattern(&format!("g{n}-*")));
        globs.chain((0..ids).map(|n| pattern(&format!("t{n}")))).collect()
    };
    assert!(Selection::new(many(50, 950), BTreeSet::new(), Share::NONE).is_ok());
    assert!(Selection::new(many(51, 0), BTreeSet::new(), Share::NONE).is_err());
    assert!(Selection::new(BTreeSet::new(), many(0, 1_001), Share::NONE).is_err());
}

#[test]
fn places_never_change() {
    // A worker of another release must come to the same tenants.
    assert_eq!(["acme", "single", SIMPLE, DASHED].map(place), [7_574, 291, 1_661, 1_661]);
}

#[test]
fn changes_do_what_they_are_called() {
    let start = selection(&[], &["legacy"], 0);
    let patterns = |texts: &[&str]| texts.iter().map(|text| pattern(text)).collect::<Vec<_>>();
    let after = |from: &Selection, change: Change| from.after(&change).expect("a change");
    let added = after(&start, Change::Add(patterns(&["acme"])));
    assert!(added.selects("acme") && !added.selects("beta"));
    let five = after(&added, Change::Share(Share::parse("5%").expect("a share")));
    assert_eq!((five.include().len(), five.share().to_string().as_str()), (1, "5%"));
    let excluded = after(&five, Change::Exclude(patterns(&["acme"])));
    assert_eq!((excluded.cause("acme"), excluded.include().len()), (Cause::Excluded, 0));
    let back = after(&excluded, Change::Add(patterns(&["acme"])));
    assert_eq!((back.cause("acme"), back.exclude().len()), (Cause::Included, 1));
    // Whoever was excluded with a reason stays so.
    let all = after(&back, Change::All);
    assert!(all.selects("beta") && !all.selects("legacy") && !all.is_everything());
    let everything = after(&all, Change::Remove(patterns(&["legacy"])));
    assert!(everything.is_everything());
    let none = after(&everything, Change::None);
    assert!(!none.selects("acme") && !none.selects("beta"));
    // What could come to nothing is refused.
    assert!(start.after(&Change::Remove(patterns(&["acme"]))).is_err());
    let by_glob = selection(&[], &["ac*"], 0);
    assert!(by_glob.after(&Change::Add(patterns(&["acme"]))).is_err_and(|error| error.contains("ac*")));
    assert!(by_glob.after(&Change::Add(patterns(&["ac*"]))).is_ok());
}

proptest! {
    #[test]
    fn a_wider_share_loses_no_tenant(tenants in vec("[a-z0-9-]{1,20}", 1..50), a in 0_u16..=10_000, b in 0_u16..=10_000) {
        let (narrow, wide) = (selection(&[], &[], a.min(b)), selection(&[], &[], a.max(b)));
        for tenant in &tenants {
            prop_assert!(!narrow.selects(tenant) || wide.selects(tenant));
        }
        prop_assert!(tenants.iter().all(|tenant| selection(&[], &[], 10_000).selects(tenant)));
        prop_assert!(!tenants.iter().any(|tenant| selection(&[], &[], 0).selects(tenant)));
    }

    #[test]
    fn globs_are_as_their_definition(pattern in "[ab*?]{0,6}", text in "[ab]{0,8}") {
        fn defined(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern.split_first(), text.split_first()) {
                (None, None) => true,
                (Some((b'*', rest)), _) => defined(rest, text) || text.split_first().is_some_and(|(_, text)| defined(pattern, text)),
                (Some((b'?', rest)), Some((_, text))) => defined(rest, text),
                (Some((p, rest)), Some((t, text))) => p == t && defined(rest, text),
                _ => false,
            }
        }
        prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), defined(pattern.as_bytes(), text.as_bytes()));
    }
}

#[test]
fn a_share_is_about_as_large_as_it_says() {
    let ids: Vec<String> = (0..10_000).map(|n| format!("tenant-{n}")).collect();
    for parts in [100_u16, 500, 1_000, 5_000] {
        let selected = ids.iter().filter(|id| selection(&[], &[], parts).selects(id)).count();
        // Within four standard deviations.
        let deviation = (10_000.0 * f64::from(parts) / 1e4 * (1.0 - f64::from(parts) / 1e4)).sqrt();
        assert!((selected as f64 - f64::from(parts)).abs() < 4.0 * deviation, "{parts}: {selected}");
    }
}

const NEEDED: Threshold =
    Threshold { observed: Duration::from_secs(600), mutations: 100, lag: Duration::from_secs(10) };

fn good() -> Figures {
    Figures {
        tenants: 3,
        total: Some(20),
        failing: 0,
        unknown: 0,
        observed: Some(Duration::from_secs(601)),
        mutations: Some(1_000),
        lag_p99: Some(0.4),
        drift: Some(0),
        open_losses: 0,
        losses: Some(0),
        forks: Some(0),
        quarantined: Some(0),
    }
}

fn advice(figures: Figures) -> Advice {
    let (advice, why) = advise(&figures, &NEEDED);
    assert!(!why.is_empty());
    advice
}

#[test]
fn a_stage_is_widened_when_enough_was_seen_and_nothing_is_wrong() {
    assert_eq!(advice(good()), Advice::Widen);
    assert_eq!(advice(Figures { tenants: 20, ..good() }), Advice::Complete);
    assert_eq!(
        advice(Figures { tenants: 0, observed: None, mutations: None, lag_p99: None, ..good() }),
        Advice::Widen
    );
    assert_eq!(advice(Figures { observed: Some(Duration::from_secs(599)), ..good() }), Advice::Wait);
    assert_eq!(advice(Figures { mutations: Some(99), ..good() }), Advice::Wait);
    assert_eq!(advice(Figures { quarantined: Some(1), ..good() }), Advice::Wait);
}

#[test]
fn what_is_wrong_stops_it_however_little_was_seen() {
    let little = Figures { observed: None, mutations: None, ..good() };
    for wrong in [
        Figures { losses: Some(1), ..little },
        Figures { open_losses: 1, ..little },
        Figures { forks: Some(1), ..little },
        Figures { drift: Some(1), ..little },
        Figures { failing: 1, ..little },
        Figures { lag_p99: Some(10.1), ..little },
        Figures { losses: Some(1), total: None, ..little },
        Figures { losses: Some(1), tenants: 20, ..good() },
    ] {
        assert_eq!(advice(wrong), Advice::Stop, "{wrong:?}");
    }
}

#[test]
fn what_is_not_known_never_widens_it() {
    for unknown in [
        Figures { total: None, ..good() },
        Figures { unknown: 1, ..good() },
        Figures { observed: None, ..good() },
        Figures { mutations: None, ..good() },
        Figures { lag_p99: None, ..good() },
        Figures { drift: None, ..good() },
        Figures { losses: None, ..good() },
        Figures { forks: None, ..good() },
        Figures { losses: None, tenants: 20, ..good() },
    ] {
        assert_eq!(advice(unknown), Advice::Wait, "{unknown:?}");
    }
}
