#!/bin/sh
# Line coverage over unit and whole-system tests. The sandbox is left out: only tests and the lab use it.
#
# Worker processes count too: they are built with the same instrumentation, and where to write their counts is
# passed on to them (LLVM_PROFILE_FILE). One that is killed can't write any, so the figures are lower bounds.
#
# What is missing is installed: cargo-llvm-cov, and LLVM's own tools, as a component of the toolchain or, where that can't
# be had, as Debian's package of the same major version. Without either, cargo-tarpaulin reads the counts itself.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

# Finds llvm-profdata and llvm-cov: as configured, of the toolchain, or of the system.
llvm_tools() {
	[ -n "${LLVM_PROFDATA:-}" ] && [ -n "${LLVM_COV:-}" ] && return 0
	[ -x "$(rustc --print target-libdir)/../bin/llvm-profdata" ] && return 0
	command -v "llvm-profdata-$major" >/dev/null && command -v "llvm-cov-$major" >/dev/null || return 1
	LLVM_PROFDATA=$(command -v "llvm-profdata-$major")
	LLVM_COV=$(command -v "llvm-cov-$major")
	export LLVM_PROFDATA LLVM_COV
}

install_llvm_tools() {
	if command -v rustup >/dev/null && rustup component add llvm-tools >/dev/null 2>&1; then
		return
	fi
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		apt-get update -q >/dev/null 2>&1 || true
		apt-get install -q -y --no-install-recommends "llvm-$major" >/dev/null 2>&1 || true
	fi
}

llvm_tools || install_llvm_tools
if llvm_tools; then
	$cargo llvm-cov --version >/dev/null 2>&1 || $cargo install --locked cargo-llvm-cov
	$cargo llvm-cov clean --workspace
	# The programs first, since tests don't build them: they look for them in the folders above themselves.
	$cargo llvm-cov run --no-report --locked --package balance-sync-cli -- --version
	$cargo llvm-cov run --no-report --locked --package balance-sync-lab -- --version
	tests=0
	$cargo llvm-cov test --no-report --no-fail-fast --locked --workspace --exclude balance-sync-sandbox || tests=$?
	$cargo llvm-cov report --ignore-filename-regex 'crates/sandbox/|/tests/|/benches/'
	exit $tests
fi

$cargo tarpaulin --version >/dev/null 2>&1 || $cargo install --locked cargo-tarpaulin
# Its LLVM engine needs the paths of the programs.
target=$PWD/target/coverage
mkdir -p "$target"
# Build scripts are instrumented as well, and leave their counts here.
trap 'rm -f build_rs_cov.profraw' EXIT
LLVM_PROFILE_FILE=/dev/null RUSTFLAGS='-Cinstrument-coverage' \
	$cargo build --locked --package balance-sync-cli --package balance-sync-lab --target-dir "$target/worker"
BALANCE_SYNC_BIN=$target/worker/debug/balance-sync $cargo tarpaulin --engine llvm --locked --workspace \
	--exclude balance-sync-sandbox --exclude-files 'crates/sandbox/*' 'tests/*' 'crates/*/tests/*' 'crates/*/benches/*' \
	'crates/domain/fuzz/*' --objects "$target/worker/debug/balance-sync" \
	--objects "$target/worker/debug/balance-sync-lab" --skip-clean --no-fail-fast --timeout 1200 \
	--target-dir "$target" --out Lcov --output-dir "$target"
