#!/bin/sh
# Builds the release before this one, and this one, and plays upgrades between them on private servers (tests/tests/faults/upgrade.rs).
#
#   UPGRADE_FROM=v0.1.0    another tag or commit than the one in tests/upgrade/previous
#   UPGRADE_RATE=5000      mutations per second of the rolling restart, over UPGRADE_TENANTS=40 tenants
#   UPGRADE_LAG_P99=1      longest p99 of the lag over the rolling restart, in seconds; empty: it is printed and not judged
#   UPGRADE_ONLY=rolling   only the tests with this in their names
#
# The sources of the earlier release stand in target/upgrade/source, a work tree of git, and are built in target/upgrade/build.
set -eu
cd "$(dirname "$0")/../.."
CARGO=${CARGO:-cargo}
from=${UPGRADE_FROM:-$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' tests/upgrade/previous)}
commit=$(git rev-parse --verify --quiet "$from^{commit}") || { echo "$0: this repository has no $from" >&2; exit 1; }
source=target/upgrade/source
build=$PWD/target/upgrade/build
mkdir -p target/upgrade
if ! git -C "$source" rev-parse --git-dir >/dev/null 2>&1 || [ "$(git -C "$source" rev-parse --show-toplevel)" = "$PWD" ]; then
  rm -rf "$source"
  git worktree prune
  git worktree add --quiet --detach "$source" "$commit"
fi
git -C "$source" checkout --quiet --detach "$commit"
(cd "$source" && BALANCE_SYNC_COMMIT=$(git rev-parse --short=12 HEAD) CARGO_TARGET_DIR=$build \
  $CARGO build --release --locked --package balance-sync-cli)

# Builds of one version by different commits are different versions to a fleet.
commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD || commit=$commit-dirty
BALANCE_SYNC_COMMIT=$commit $CARGO build --release --locked --package balance-sync-cli
export UPGRADE_LAG_P99="${UPGRADE_LAG_P99-1}"
export BALANCE_SYNC_PREVIOUS_BIN="$build/release/balance-sync" BALANCE_SYNC_BIN="$PWD/target/release/balance-sync"
exec $CARGO test --locked --package balance-sync-tests --test faults "upgrade::${UPGRADE_ONLY:-}" -- --include-ignored --nocapture --test-threads 1
