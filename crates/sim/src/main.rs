//! `make sim`: plays seeds for a while, finds the planted bugs, and prints what came of it.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use balance_sync_sim::{
    bugs::Bug,
    plan::{Fault, Plan, SECOND},
    search,
    silence::{Losses, Unwitnessed},
    truth::Unseen,
    world::{Outcome, World},
};

/// Seeds in which each planted bug must be found: less than a minute.
const BUG_SEEDS: u64 = 6_000;
/// Lines of a trace that are shown.
const SHOWN: usize = 60;

fn main() -> ExitCode {
    let minutes: f64 = variable("SIM_MINUTES").unwrap_or(1.0);
    let first = variable("SIM_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("SIM_SEED={first} SIM_MINUTES={minutes}");
    if let Some(entries) = variable("SIM_ENTRIES") {
        return if play_entries(first, entries) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if !play(first, Duration::from_secs_f64(minutes * 60.0)) || !find_bugs(first) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A number from the environment. One that can't be read ends the program.
fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => {
            println!("{name}: {text:?} is not allowed; allowed: a number");
            std::process::exit(2);
        }
    }
}

/// Plays the fleets of so many Redis servers, with two and with four workers each; false = one of them breaks a guarantee.
fn play_entries(first: u64, entries: u64) -> bool {
    for workers in [2, 4] {
        let begun = Instant::now();
        let (mut mutations, mut written, mut steps) = (0, 0, 0);
        let mut losses = Losses::default();
        let mut faults = [0; Fault::KINDS.len()];
        for seed in first..first + entries {
            let plan = Plan::entry(seed, workers);
            let outcome = World::run(&plan, None, false);
            mutations += outcome.mutations;
            written += outcome.written;
            steps += outcome.steps;
            losses.add(&outcome.losses);
            faults.iter_mut().zip(outcome.faults).for_each(|(sum, count)| *sum += count);
            if let Some(violation) = outcome.violation {
                println!(
                    "the entry of seed {seed} with {workers} workers breaks {}: {}",
                    violation.guarantee, violation.what
                );
                show(&plan, None);
                return false;
            }
        }
        let faults: Vec<String> = Fault::KINDS
            .iter()
            .zip(faults)
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        println!(
            "{entries} entries of {workers} workers and 20 tenants, 10 minutes each: {mutations} mutations, {written} rows written, {steps} \
             steps in {:.1} s, no guarantee broken",
            begun.elapsed().as_secs_f64()
        );
        println!("  faults: {}", faults.join(", "));
        let Losses { made, written, listed, overtaken, open, longest, .. } = losses;
        println!(
            "  lost by failovers of Redis {}: {written} written after all, {listed} listed, {overtaken} reported and overtaken, {open} \
             reported at the end; longest silence {} s",
            made.iter().sum::<u64>(),
            longest / SECOND
        );
    }
    true
}

/// Plays seeds until the time is over; false = one of them breaks a guarantee.
fn play(first: u64, within: Duration) -> bool {
    let begun = Instant::now();
    let mut sum = Outcome::default();
    let mut runs = 0;
    for seed in first.. {
        let plan = Plan::of(seed);
        let outcome = World::run(&plan, None, false);
        runs += 1;
        sum.steps += outcome.steps;
        sum.simulated += outcome.simulated;
        sum.mutations += outcome.mutations;
        sum.written += outcome.written;
        sum.values_lost += outcome.values_lost;
        for (sum, count) in sum.recorded.iter_mut().zip(outcome.recorded) {
            *sum += count;
        }
        for (sum, count) in sum.unseen.iter_mut().zip(outcome.unseen) {
            *sum += count;
        }
        sum.losses.add(&outcome.losses);
        for (sum, count) in sum.faults.iter_mut().zip(outcome.faults) {
            *sum += count;
        }
        if outcome.violation.is_some() {
            println!("seed {seed} breaks a guarantee; again: make sim SIM_SEED={seed}");
            show(&plan, None);
            return false;
        }
        if begun.elapsed() >= within {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{runs} runs, {} steps ({:.0} per second), {:.1} hours simulated ({:.0} x real time)",
        sum.steps,
        sum.steps as f64 / seconds,
        sum.simulated as f64 / SECOND as f64 / 3600.0,
        sum.simulated as f64 / SECOND as f64 / seconds
    );
    println!("{} mutations, {} rows written, no guarantee broken", sum.mutations, sum.written);
    let faults: Vec<String> =
        Fault::KINDS.iter().zip(sum.faults).map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("faults: {}", faults.join(", "));
    let [certain, uncertain] = sum.recorded;
    println!(
        "{} values lost before they were written; recorded as lost: {certain} for certain, {uncertain} where it can't be determined",
        sum.values_lost
    );
    let unseen: Vec<String> =
        Unseen::NAMES.iter().zip(sum.unseen).map(|(name, count)| format!("{name} {count}")).collect();
    println!("lost without a trace in the schedule: {}", unseen.join(", "));
    let Losses { made, written, listed, overtaken, open, unwitnessed, longest } = sum.losses;
    println!(
        "of {} such losses: {written} written after all, {listed} listed, {overtaken} reported and overtaken, {open} reported at the \
         end; longest silence {} s",
        made.iter().sum::<u64>(),
        longest / SECOND
    );
    let without: Vec<String> =
        Unwitnessed::NAMES.iter().zip(unwitnessed).map(|(name, count)| format!("{name} {count}")).collect();
    println!("no witness left: {}", without.join(", "));

    let begun = Instant::now();
    let fleet = World::run(&Plan::fleet(first), None, false);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "3 workers, 20 tenants: {:.0} steps per second, {:.0} x real time",
        fleet.steps as f64 / seconds,
        fleet.simulated as f64 / SECOND as f64 / seconds
    );
    true
}

/// Finds the planted bugs; false = one was not found.
fn find_bugs(first: u64) -> bool {
    let mut all = true;
    println!("planted bugs:");
    for &bug in Bug::ALL {
        let begun = Instant::now();
        match search::find(Some(bug), first..first + BUG_SEEDS) {
            Some(found) => {
                let seconds = begun.elapsed().as_secs_f64();
                let (small, _) = search::shrink(&found.plan, Some(bug));
                let violation =
                    found.outcome.violation.unwrap_or_else(|| unreachable!("it was found by one"));
                println!(
                    "  {bug}: {} after {seconds:.2} s, {} runs, {} steps; shrunk to {} faults: {}",
                    violation.guarantee,
                    found.runs,
                    found.steps,
                    small.faults.len(),
                    violation.what
                );
            }
            None => {
                println!("  {bug}: NOT FOUND in {BUG_SEEDS} seeds ({})", bug.describe());
                all = false;
            }
        }
    }
    all
}

/// Shrinks a run and prints it.
fn show(plan: &Plan, bug: Option<Bug>) {
    let (small, outcome) = search::shrink(plan, bug);
    println!(
        "{} workers, {} tenants, {} balances, batch {}, ledger's worker: {}, {}, mode: {}",
        small.workers,
        small.tenants,
        small.balances,
        small.batch,
        small.ledger,
        if small.supervised { "tenants from the service" } else { "tenants as given" },
        match (small.lock, small.auto) {
            (false, _) => "lease",
            (true, false) => "lock",
            (true, true) => "auto",
        }
    );
    for (at, fault) in &small.faults {
        println!("fault at {:.6} s: {fault:?}", *at as f64 / SECOND as f64);
    }
    let shown = variable("SIM_TRACE").unwrap_or(SHOWN);
    let skipped = outcome.trace.len().saturating_sub(shown);
    println!("… {skipped} lines before");
    for line in &outcome.trace[skipped..] {
        println!("{line}");
    }
}
