//! What reading costs: a member, a value, and the aggregation of a full batch.
//!
//! Run with `cargo bench -p balance-sync-domain`. Reading one entry (member and value) should stay near one
//! microsecond: at that price a core reads far more than Redis and Postgres can move.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use balance_sync_domain::{BalanceRef, BalanceValue, Candidate, KeySpace, TenantId, Uuid, aggregate};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/producer_samples.json");

/// Members and values as a real producer wrote them, those of the tenant alone.
fn samples() -> Vec<(String, String)> {
    let samples: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(SAMPLES).unwrap()).unwrap();
    let text = |sample: &serde_json::Value, name: &str| sample[name].as_str().unwrap().to_owned();
    samples
        .iter()
        .filter(|s| s["tenant"].is_string())
        .map(|s| (text(s, "member"), text(s, "value")))
        .collect()
}

fn reading(c: &mut Criterion) {
    let samples = samples();
    let space = KeySpace::tenant(&TenantId::parse("acme-prod_01").unwrap());
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(samples.len() as u64));
    group.bench_function("members", |b| {
        b.iter(|| {
            for (member, _) in &samples {
                black_box(BalanceRef::parse(&space, black_box(member.as_bytes())).unwrap());
            }
        });
    });
    group.bench_function("values", |b| {
        b.iter(|| {
            for (_, value) in &samples {
                black_box(BalanceValue::decode(black_box(value.as_bytes())).unwrap());
            }
        });
    });
    group.finish();
}

fn aggregation(c: &mut Criterion) {
    let mut group = c.benchmark_group("aggregate");
    for (name, balances) in [("all different", 1000), ("four versions each", 250)] {
        let aliases: Vec<String> =
            (0..1000_u64).map(|n| format!("@account-{:04}", n * 7919 % balances)).collect();
        let batch: Vec<Candidate<'_>> = aliases
            .iter()
            .zip(1..)
            .map(|(alias, version)| Candidate {
                organization: Uuid::from_u128(1),
                ledger: Uuid::from_u128(2),
                alias,
                asset: "BRL",
                key: "default",
                version,
            })
            .collect();
        group.throughput(Throughput::Elements(batch.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), &batch, |b, batch| {
            b.iter(|| black_box(aggregate(black_box(batch))));
        });
    }
    group.finish();
}

criterion_group!(benches, reading, aggregation);
criterion_main!(benches);
