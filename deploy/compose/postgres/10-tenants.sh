#!/bin/bash
# One database for tenant acme, one for globex and initech with a schema each. The ledger owns the table in real life;
# here it is made so that there is something to write to.
set -euo pipefail

table() { # schema owner
  cat <<SQL
CREATE TABLE "$1".balance (
  id UUID PRIMARY KEY,
  organization_id UUID NOT NULL,
  ledger_id UUID NOT NULL,
  account_id UUID NOT NULL,
  alias TEXT NOT NULL,
  key TEXT NOT NULL DEFAULT 'default',
  asset_code TEXT NOT NULL,
  available DECIMAL NOT NULL DEFAULT 0,
  on_hold DECIMAL NOT NULL DEFAULT 0,
  version BIGINT DEFAULT 0,
  account_type TEXT NOT NULL DEFAULT 'deposit',
  allow_sending BOOLEAN NOT NULL DEFAULT true,
  allow_receiving BOOLEAN NOT NULL DEFAULT true,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  deleted_at TIMESTAMPTZ,
  direction VARCHAR(16) NOT NULL DEFAULT 'credit' CHECK (direction IN ('credit', 'debit')),
  overdraft_used DECIMAL NOT NULL DEFAULT 0 CHECK (overdraft_used >= 0),
  settings JSONB
);
CREATE INDEX ON "$1".balance (organization_id, ledger_id, account_id, deleted_at, created_at);
CREATE INDEX ON "$1".balance (organization_id, ledger_id, alias, key) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX ON "$1".balance (organization_id, ledger_id, account_id, asset_code, key) WHERE deleted_at IS NULL;
GRANT USAGE ON SCHEMA "$1" TO "$2";
GRANT SELECT, UPDATE ON "$1".balance TO "$2";
SQL
}

psql() { command psql --set ON_ERROR_STOP=1 --username postgres --quiet "$@"; }

psql <<SQL
CREATE ROLE acme LOGIN PASSWORD 'compose-only-acme';
CREATE ROLE shared LOGIN PASSWORD 'compose-only-shared';
CREATE DATABASE ledger_acme;
CREATE DATABASE ledger_shared;
REVOKE CONNECT ON DATABASE ledger_acme, ledger_shared FROM PUBLIC;
GRANT CONNECT ON DATABASE ledger_acme TO acme;
GRANT CONNECT ON DATABASE ledger_shared TO shared;
SQL
table public acme | psql --dbname ledger_acme
{ echo 'CREATE SCHEMA globex; CREATE SCHEMA initech;'; table globex shared; table initech shared; } | psql --dbname ledger_shared
