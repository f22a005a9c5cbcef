//! What reading costs: a member, a value, and the aggregation of a full batch.
//!
//! Run with `cargo bench -p balance-sync-domain`. Reading one entry (member and value) should stay near one
//! microsecond: at that price a core reads far more than Redis and Postgres can move.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use balance_sync_domain::{BalanceRef, BalanceValue, Candidate, KeySpace, TenantId, Uuid, aggregate};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const WIRE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/");

fn samples(file: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(format!("{WIRE}{file}")).unwrap()).unwrap()
}

fn text(sample: &serde_json::Value, name: &str) -> String {
    sample[name].as_str().unwrap().to_owned()
}

/// Values as live ledgers wrote them, by shape.
fn values() -> Vec<(&'static str, Vec<String>)> {
    let upper = samples("producer_samples.json").iter().map(|sample| text(sample, "value")).collect();
    let all = samples("value_samples.json");
    let of = |writer: &str| -> Vec<String> {
        all.iter()
            .filter(|sample| text(sample, "writer").contains(writer) && sample["expect"]["id"].is_string())
            .map(|sample| text(sample, "value"))
            .collect()
    };
    let oldest = all.iter().filter(|sample| text(sample, "case").contains("oldest writers"));
    vec![
        ("upper", upper),
        ("dual", of("engine script")),
        ("dual in any order", of("script over a dual value")),
        ("new-only", of("new-only")),
        ("oldest", oldest.map(|sample| text(sample, "value")).collect()),
    ]
}

fn reading(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    let members: Vec<String> = samples("producer_samples.json")
        .iter()
        .filter(|sample| sample["tenant"].is_string())
        .map(|sample| text(sample, "member"))
        .collect();
    let space = KeySpace::tenant(&TenantId::parse("acme-prod_01").unwrap());
    group.throughput(Throughput::Elements(members.len() as u64));
    group.bench_function("members", |b| {
        b.iter(|| {
            for member in &members {
                black_box(BalanceRef::parse(&space, black_box(member.as_bytes())).unwrap());
            }
        });
    });
    group.finish();

    // Per byte, as the shapes differ in length.
    let mut group = c.benchmark_group("values");
    for (shape, values) in values() {
        assert!(!values.is_empty(), "no sample of {shape}");
        let bytes: usize = values.iter().map(String::len).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(shape), &values, |b, values| {
            b.iter(|| {
                for value in values {
                    black_box(BalanceValue::decode(black_box(value.as_bytes())).unwrap());
                }
            });
        });
    }
    // What a hostile writer could send: many names that don't matter, to be distinguished.
    let mut many =
        r#"{"ID":"fb8a88b1-6f54-5836-9a3f-c5a4f86b4b4a","Available":"1","OnHold":"0","Version":2"#.to_owned();
    many.extend((0..20_000).map(|number| format!(",\"a-long-n{number:05}ame-indeed\":1")));
    many.push('}');
    group.throughput(Throughput::Bytes(many.len() as u64));
    group.bench_function("20,000 names", |b| {
        b.iter(|| black_box(BalanceValue::decode(black_box(many.as_bytes())).unwrap()));
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
