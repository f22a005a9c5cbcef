#!/bin/sh
# Line coverage over unit and whole-system tests. The sandbox is left out: only tests and the demo use it.
#
# Worker processes count too: they are built with the same instrumentation, and where to write their counts is
# passed on to them (LLVM_PROFILE_FILE). One that is killed can't write any, so the figures are lower bounds.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

llvm_tools() {
	[ -x "${LLVM_PROFDATA:-$(rustc --print target-libdir)/../bin/llvm-profdata}" ]
}

if $cargo llvm-cov --version >/dev/null 2>&1 && llvm_tools; then
	$cargo llvm-cov clean --workspace
	# The worker first, since tests don't build it: they look for it in the folders above themselves.
	$cargo llvm-cov run --no-report --locked --package balance-sync-cli -- --version
	$cargo llvm-cov test --no-report --locked --workspace --exclude balance-sync-sandbox
	$cargo llvm-cov report --ignore-filename-regex 'crates/sandbox/|/tests/'
elif $cargo tarpaulin --version >/dev/null 2>&1; then
	# Its LLVM engine reads the counts itself, so it needs no llvm-tools; but it has to be told of the worker.
	target=$PWD/target/coverage
	mkdir -p "$target"
	# Build scripts are instrumented as well, and leave their counts here.
	trap 'rm -f build_rs_cov.profraw' EXIT
	LLVM_PROFILE_FILE=/dev/null RUSTFLAGS='-Cinstrument-coverage' \
		$cargo build --locked --package balance-sync-cli --target-dir "$target/worker"
	BALANCE_SYNC_BIN=$target/worker/debug/balance-sync $cargo tarpaulin --engine llvm --locked --workspace \
		--exclude balance-sync-sandbox --exclude-files 'crates/sandbox/*' 'tests/*' 'crates/*/tests/*' 'crates/*/benches/*' \
		'crates/domain/fuzz/*' --objects "$target/worker/debug/balance-sync" --skip-clean --no-fail-fast --timeout 1200 \
		--target-dir "$target" --out Lcov --output-dir "$target"
else
	echo "to measure coverage, install cargo-llvm-cov (cargo install cargo-llvm-cov; rustup component add llvm-tools)," >&2
	echo "or, where that component can't be had, cargo-tarpaulin (cargo install cargo-tarpaulin)" >&2
	exit 1
fi
