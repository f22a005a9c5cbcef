#!/bin/sh
# Installs the Debian package into a fresh Debian and runs a worker there: as a plain process, and under systemd with the whole unit, which
# is also stopped, killed and hung. Run by `make dist-test`, after `make dist`; needs root, debootstrap and systemd-container.
# The servers are a sandbox's, on this machine's loopback.
set -eu
cd "$(dirname "$0")/../.."
bin=${BALANCE_SYNC_BIN_FOLDER:-$PWD/target/release}
work=$PWD/target/dist-test
base=$work/base root=$work/root
package=$(ls target/dist/balance-sync_*.deb)
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
sandbox="" booted=""

ok() { echo "ok: $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
cleanup() {
  [ -z "$booted" ] || { kill "$booted" 2>/dev/null && wait "$booted" 2>/dev/null || true; }
  [ -z "$sandbox" ] || { kill -s INT "$sandbox" 2>/dev/null && wait "$sandbox" 2>/dev/null || true; }
  rm -rf "$root"
}
trap cleanup EXIT
# Waits at most 60 s for a command to succeed.
eventually() {
  what=$1
  shift
  for _ in $(seq 300); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  "$@" || true
  fail "not within a minute: $what"
}
inside() { chroot "$root" "$@"; }

mkdir -p "$work"
if [ ! -e "$base.ready" ]; then
  rm -rf "$base"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,ca-certificates "$codename" "$base" >"$work/debootstrap.log" ||
    fail "debootstrap, see $work/debootstrap.log"
  touch "$base.ready"
fi
rm -rf "$root"
cp -a "$base" "$root"

cp "$package" "$root/root/balance-sync.deb"
inside dpkg --install /root/balance-sync.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "dpkg --install"; }
ok "installed: $(inside dpkg-query --show balance-sync)"
ok "as nobody: $(inside setpriv --reuid=65534 --regid=65534 --clear-groups balance-sync --version)"
said=$(inside systemd-analyze verify --man=no /lib/systemd/system/balance-sync.service 2>&1) || fail "systemd-analyze verify: $said"
[ -z "$said" ] || fail "systemd-analyze verify: $said"
inside systemd-analyze security --offline=true --threshold=20 balance-sync.service >"$work/security.log" 2>&1 ||
  { cat "$work/security.log"; fail "exposure above 2.0"; }
ok "$(tail -1 "$work/security.log" | tr -s ' ')"

"$bin/balance-sync-lab" sandbox --tenants 3 --balances 50 >"$work/sandbox.log" 2>&1 &
sandbox=$!
eventually "a sandbox" grep -q '^config' "$work/sandbox.log"
config=$(sed -n 's/^config *//p' "$work/sandbox.log" | head -1)
port=8099
cp "$config" "$root/etc/balance-sync/balance-sync.toml"
printf 'BALANCE_SYNC__ADMIN__LISTEN=127.0.0.1:%s\n' "$port" >"$root/etc/balance-sync/environment"
chmod 600 "$root/etc/balance-sync/environment"
all_written() {
  "$bin/balance-sync-lab" load --config "$config" --rate 500 --seconds 2 >"$work/load.log" 2>&1 || { cat "$work/load.log"; fail "load"; }
  "$bin/balance-sync" verify --config "$config" --wait 30 >"$work/verify.log" 2>&1 || { cat "$work/verify.log"; fail "verify"; }
}

# Without the function, so that the process is the worker itself.
chroot "$root" setpriv --reuid=65534 --regid=65534 --clear-groups env BALANCE_SYNC__ADMIN__LISTEN=127.0.0.1:$port \
  balance-sync run --config /etc/balance-sync/balance-sync.toml >"$work/worker.log" 2>&1 &
worker=$!
eventually "a ready worker" curl --fail --silent "http://127.0.0.1:$port/readyz"
all_written
kill -s TERM $worker
code=0
wait $worker || code=$?
[ "$code" = 0 ] || fail "the worker ended with $code"
ok "a worker in the chroot, as nobody: $(tail -1 "$work/verify.log")"

# Under systemd, sooner than the unit has it.
mkdir -p "$root/etc/systemd/system/balance-sync.service.d"
printf '[Service]\nWatchdogSec=3\nTimeoutStopSec=10\n' >"$root/etc/systemd/system/balance-sync.service.d/sooner.conf"
inside systemctl --quiet enable balance-sync
systemd-nspawn --quiet --directory "$root" --boot --register=no --keep-unit --console=pipe </dev/null >"$work/boot.log" 2>&1 &
booted=$!
leader() { pgrep --parent "$booted" | head -1; }
eventually "systemd in the container" leader
container() { nsenter --target "$(leader)" --mount --pid --ipc --uts -- "$@"; }
show() { container systemctl show balance-sync --property="$1" --value; }
is() { [ "$(show "$1")" = "$2" ]; }
fresh() { is SubState running && is StatusText ready && [ "$(show MainPID)" != "$1" ]; }
eventually "a unit that is ready" fresh 0
all_written
ok "under systemd: $(show ActiveState), status \"$(show StatusText)\", $(show Type), restarts $(show NRestarts); $(tail -1 "$work/verify.log")"
who=$(container stat --format=%u "/proc/$(show MainPID)")
[ "$who" != 0 ] || fail "it runs as root"
ok "it runs as user $who"
curl --fail --silent "http://127.0.0.1:$port/metrics" | grep -q '^process_resident_memory_bytes' || fail "no figures of the process"
ok "the unit's sandbox leaves the figures of the process"

container systemctl reload balance-sync
eventually "a reload in the log" sh -c "nsenter --target $(leader) --mount --pid -- journalctl --unit balance-sync --no-pager | grep -q SIGHUP"
ok "reloaded"

pid=$(show MainPID)
container kill -s KILL "$pid"
eventually "a new worker after a kill" fresh "$pid"
all_written
ok "killed: started again, $(tail -1 "$work/verify.log")"

pid=$(show MainPID)
container kill -s STOP "$pid"
eventually "a new worker after a hang" fresh "$pid"
container journalctl --unit balance-sync --no-pager | grep -q 'Watchdog timeout' || fail "not by the watchdog"
all_written
ok "hung: the watchdog had it started again, $(tail -1 "$work/verify.log")"

container systemctl stop balance-sync
is Result success || fail "stopped with $(show Result)"
ok "stopped: $(show Result), $(container journalctl --unit balance-sync --no-pager --output=cat | grep -c '"drained"') drained"
kill "$booted"
wait "$booted" 2>/dev/null || true
booted=""

inside systemctl --quiet disable balance-sync
inside dpkg --purge balance-sync >>"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "dpkg --purge"; }
rm -rf "$root/etc/systemd/system/balance-sync.service.d"
left=$(find "$root/usr" "$root/etc" "$root/lib" -name '*balance-sync*')
[ -z "$left" ] || fail "left after a purge: $left"
ok "purged, nothing is left"
echo "dist-test: good"
