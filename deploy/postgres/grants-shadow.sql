-- What the role of a shadow (worker.mode = "shadow") needs in one tenant's database or schema: what grants.sql has without the right to
-- write. Run as that file; the reasons are there. With a role of its own a shadow couldn't change a row if it tried.
--
--   psql -v ON_ERROR_STOP=1 -v role=balance_sync_shadow -v schema=public -d ledger_acme -f grants-shadow.sql

GRANT CONNECT ON DATABASE :"DBNAME" TO :"role";
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT (id, organization_id, ledger_id, version, deleted_at) ON :"schema".balance TO :"role";
GRANT SELECT (available, on_hold, overdraft_used) ON :"schema".balance TO :"role";
GRANT SELECT (xmax) ON :"schema".balance TO :"role";
GRANT SELECT (alias, key, account_id, updated_at) ON :"schema".balance TO :"role";
GRANT SELECT (account_type, allow_receiving, allow_sending, asset_code, direction, settings) ON :"schema".balance TO :"role";
GRANT SELECT ON :"schema".operation TO :"role";

-- Ledgers of 4.x, as in grants.sql.
-- GRANT SELECT (quarantined_at) ON :"schema".transaction_backup_quarantine TO :"role";
