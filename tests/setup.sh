#!/bin/sh
# Installs what tests and demo start themselves: redis-server and PostgreSQL's server programs. Does nothing when both
# are there. Needs root or sudo for apt; says exactly what to install otherwise.
set -eu

has_redis() { command -v redis-server >/dev/null 2>&1; }
has_postgres() {
  command -v initdb >/dev/null 2>&1 && command -v postgres >/dev/null 2>&1 && return 0
  for folder in /usr/lib/postgresql/*/bin; do
    [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && return 0
  done
  return 1
}
has_linker() { command -v cc >/dev/null 2>&1; }

missing=""
has_redis || missing="$missing redis-server"
has_postgres || missing="$missing postgresql"
has_linker || missing="$missing build-essential"
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
  echo "missing:$missing. Install redis-server (7 or later) and PostgreSQL's server programs (14 or later) and try again." >&2
  exit 1
fi
if [ "$(id -u)" = 0 ]; then
  as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
  as_root="sudo"
else
  echo "missing:$missing. Run as root: apt-get update && apt-get install --yes$missing" >&2
  exit 1
fi
echo "installing$missing" >&2
$as_root apt-get update -q
# RUNLEVEL=1 keeps the packages from starting services of their own: tests and demo start private ones.
$as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -q $missing
