#!/bin/sh
# Sends made-up requests to the admin API of a worker on private servers, by schemathesis, and judges the answers by the OpenAPI
# document. Skipped with a message where schemathesis can't be installed. SCHEMATHESIS_EXAMPLES = requests per operation (50).
set -eu

VERSION=4.32.5
CARGO="${CARGO:-cargo}"
venv="${CARGO_TARGET_DIR:-target}/schemathesis"
if ! [ -x "$venv/bin/schemathesis" ]; then
  if ! python3 -m venv "$venv" 2>/dev/null || ! "$venv/bin/pip" install --quiet "schemathesis==$VERSION" 2>/dev/null; then
    echo "schemathesis $VERSION can't be installed (python3 with venv and a package index are needed): skipped"
    exit 0
  fi
fi
$CARGO build --quiet --locked --package balance-sync-cli --package balance-sync-lab

folder=$(mktemp -d)
chmod 1777 "$folder"
programs=""
# The sandbox ends its servers when it is interrupted.
trap 'for pid in $programs; do kill -INT "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done; rm -rf "$folder"' EXIT
bin="${CARGO_TARGET_DIR:-target}/debug"

# Waits until the file has this text; prints the rest of its first line from there on.
wait_for() {
  for _ in $(seq 600); do
    if found=$(sed -n "s/.*$2//p" "$1" 2>/dev/null | head -n 1) && [ -n "$found" ]; then echo "$found"; return; fi
    sleep 0.1
  done
  echo "no $2 in $1:" >&2; cat "$1" >&2; exit 1
}

TMPDIR="$folder" "$bin/balance-sync-lab" sandbox --tenants 3 --balances 5 --json >"$folder/sandbox.json" &
programs="$!"
config=$(wait_for "$folder/sandbox.json" '"config":"' | cut -d '"' -f 1)
BALANCE_SYNC__LOG__FORMAT=json "$bin/balance-sync" run --config "$config" 2>"$folder/worker.log" &
programs="$! $programs"
address=$(wait_for "$folder/worker.log" 'admin interface listens","address":"' | cut -d '"' -f 1)

# The stream of events has no end, and a drain would end the worker. What schemathesis keeps goes with the folder.
root=$(pwd)
venv=$(cd "$venv" && pwd)
cd "$folder"
NO_PROXY=127.0.0.1 "$venv/bin/schemathesis" --config-file "$root/tests/schemathesis.toml" run "$root/crates/admin/src/api/openapi.json" \
  --url "http://$address" --header 'X-Balance-Sync: 1' --exclude-path /api/v1/events \
  --exclude-path '/api/v1/workers/{name}/actions' --max-examples "${SCHEMATHESIS_EXAMPLES:-50}" --workers 1 --request-timeout 10
