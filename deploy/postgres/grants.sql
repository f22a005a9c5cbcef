-- What balance-sync's role needs in one tenant's database or schema, and nothing else. Run by the owner of the tables, once for
-- each tenant; running it again changes nothing. What is missing of it is named in the state of the tenant.
--
--   a database per tenant:    psql -v ON_ERROR_STOP=1 -v role=balance_sync -v schema=public -d ledger_acme  -f grants.sql
--   a schema in a shared one: psql -v ON_ERROR_STOP=1 -v role=globex_sync  -v schema=globex -d ledger_shared -f grants.sql
--
-- The role must exist (CREATE ROLE balance_sync LOGIN PASSWORD '…'). It creates and alters nothing: no DDL, no INSERT, no
-- DELETE, no sequence. Tenants that share a database keep apart by roles of their own.

-- To log in. Databases admit everybody by default; where that was revoked this is needed.
GRANT CONNECT ON DATABASE :"DBNAME" TO :"role";

-- To name tables of the schema at all.
GRANT USAGE ON SCHEMA :"schema" TO :"role";

-- The write. These five columns are all that is ever changed; locking the rows (FOR UPDATE) needs UPDATE as well.
GRANT UPDATE (available, on_hold, overdraft_used, version, updated_at) ON :"schema".balance TO :"role";

-- What the write looks at: the row's identity, the version that guards it, whether it is deleted.
GRANT SELECT (id, organization_id, ledger_id, version, deleted_at) ON :"schema".balance TO :"role";

-- The amounts, for `verify`, and to check after each write that they were stored as they were sent. Without it everything is
-- written all the same, and the log says once that this isn't checked.
GRANT SELECT (available, on_hold, overdraft_used) ON :"schema".balance TO :"role";

-- Who has locked a row that can't be written: the number of its transaction.
GRANT SELECT (xmax) ON :"schema".balance TO :"role";

-- Looking rows up by what people know of them (`why`, the dashboard), and telling a closed account from a lost balance.
GRANT SELECT (alias, key, account_id, updated_at) ON :"schema".balance TO :"role";

-- What else makes a balance what it is, for the digest of `handover`. Without it the statement leaves these columns out and says so.
GRANT SELECT (account_type, allow_receiving, allow_sending, asset_code, direction, settings) ON :"schema".balance TO :"role";

-- The ledger's trail: whether a value that is gone from Redis took a change with it. Without it such a balance is listed as an
-- unconfirmed loss, which names this grant.
GRANT SELECT ON :"schema".operation TO :"role";

-- Ledgers of 4.x: how many records the ledger has given up replaying. Without it their number is unknown. Older ledgers have no
-- such table.
-- GRANT SELECT (quarantined_at) ON :"schema".transaction_backup_quarantine TO :"role";

-- Not needed: since when the transaction is open that has locked a row. It shows the queries of all databases of the server, with
-- the amounts in them.
-- GRANT pg_read_all_stats TO :"role";
