#!/bin/sh
# Installs what tests and demo start themselves: redis-server and PostgreSQL's server programs. Does nothing when both
# are there. Needs root or sudo for apt; says exactly what to install otherwise.
#
# Arguments name programs that only some tests and checks use. Tests fail without pgbouncer. Without promtool, chromium,
# chromedriver or npm some are skipped with a message, so that it is no error when these can't be installed.
set -eu

has_redis() { command -v redis-server >/dev/null 2>&1; }
has_postgres() {
  command -v initdb >/dev/null 2>&1 && command -v postgres >/dev/null 2>&1 && return 0
  for folder in /usr/lib/postgresql/*/bin; do
    [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && return 0
  done
  return 1
}
has_pgbouncer() { command -v pgbouncer >/dev/null 2>&1 || [ -x /usr/sbin/pgbouncer ]; }
has_linker() { command -v cc >/dev/null 2>&1; }

missing=""
has_redis || missing="$missing redis-server"
has_postgres || missing="$missing postgresql"
has_linker || missing="$missing build-essential"

wished=""
for program in "$@"; do
  case "$program" in
    pgbouncer) has_pgbouncer || missing="$missing pgbouncer"; continue ;;
    debootstrap|buildah) command -v "$program" >/dev/null 2>&1 || missing="$missing $program"; continue ;;
    systemd-nspawn) command -v systemd-nspawn >/dev/null 2>&1 || missing="$missing systemd-container"; continue ;;
    venv) python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"; continue ;;
    promtool) package=prometheus ;;
    chromium) package=chromium ;;
    chromedriver) package=chromium-driver ;;
    npm) package=npm ;;
    *) echo "$0: unknown program $program" >&2; exit 2 ;;
  esac
  command -v "$program" >/dev/null 2>&1 || wished="$wished $package"
done
[ -z "$missing$wished" ] && exit 0

# Without what is only wished for it goes on.
give_up() {
  echo "missing:$missing$wished. $1" >&2
  [ -n "$missing" ] && exit 1
  echo "going on without$wished: what needs it is skipped" >&2
  exit 0
}

if ! command -v apt-get >/dev/null 2>&1; then
  give_up "Install redis-server (7.0 or later, built with TLS) and PostgreSQL's server programs (15 or later), for all tests and checks PgBouncer, Prometheus, Chromium with its driver and npm as well, and try again."
fi
if [ "$(id -u)" = 0 ]; then
  as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
  as_root="sudo"
else
  give_up "Run as root: apt-get update && apt-get install --yes$missing$wished"
fi
# RUNLEVEL=1 keeps the packages from starting services of their own: tests and demo start private ones.
install() {
  $as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -q "$@"
}
echo "installing$missing$wished" >&2
$as_root apt-get update -q
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086 # a list of names
  install $missing
fi
for package in $wished; do
  install "$package" || echo "going on without $package: what needs it is skipped" >&2
done
