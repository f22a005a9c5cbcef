// What a reason means and what helps: the table of docs/operations.md for the one who has no time to look it up.
// `action` is what is offered first.

/** @type {Record<string, [string, string, string | null]>} */
const TENANT = {
  postgres_connection: ["Its Postgres refuses or resets connections.", "Look at the server. Writing goes on by itself within 2 s of its return.", "flush"],
  postgres_dns: ["No name service knows the host of its Postgres.", "Check the host in the tenant service's entry and the workers' name service.", "refresh_credentials"],
  postgres_row_locked: ["Another session has locked rows of it. The other balances are written.", "The detail names the process and its application: end its transaction, or wait. Those balances are tried every two seconds.", null],
  postgres_too_many_connections: ["Server, role or database give no more connections.", "Raise their limit, or lower postgres.connections_per_server.", "flush"],
  postgres_timeout: ["Its Postgres does not answer in time.", "Look at network, locks and disk of the server.", "flush"],
  postgres_read_only: ["Its Postgres is a standby or was just demoted.", "Point the tenant service at the primary, then re-read credentials.", "refresh_credentials"],
  postgres_contention: ["Deadlocks that repeated tries did not solve.", "Find out who else writes these rows.", "flush"],
  postgres_credentials: ["Postgres refuses user or password.", "Mend the tenant service's entry, then re-read credentials.", "refresh_credentials"],
  postgres_database_missing: ["There is no such database, or it admits no connections.", "Mend the tenant service's entry, then re-read credentials.", "refresh_credentials"],
  postgres_not_provisioned: ["Table, column or schema are missing.", "Has the ledger migrated this tenant? Afterwards: flush now.", "flush"],
  postgres_permission: ["The role may not use the schema or update the table.", "The detail says which: GRANT USAGE on the schema, SELECT and UPDATE on balance. Afterwards: flush now.", "flush"],
  postgres_row_security: ["Row security applies to the role, which rows it sees can't be told.", "ALTER ROLE … BYPASSRLS, or take row security off the table. Afterwards: flush now.", "flush"],
  postgres_no_visible_rows: ["The balance table has no row of this tenant: an empty, freshly restored or wrong database.", "Restore it, or mend the tenant service's entry and re-read credentials. Nothing leaves the schedule meanwhile.", "refresh_credentials"],
  postgres_refuses_every_row: ["A trigger or constraint refuses every update, or the table is in no state to be updated.", "The detail has its words. Mend it; afterwards: flush now.", "flush"],
  postgres_resources: ["Disk or memory of its Postgres are full.", "Free some. Afterwards: flush now.", "flush"],
  postgres_tls: ["No TLS with its Postgres: a certificate that isn't trusted, or TLS that the server doesn't offer.", "The detail says which: check sslmode, the certificate files, and the name in the server's certificate.", "refresh_credentials"],
  postgres_configuration: ["Its connection settings can't work.", "The detail names the setting: mend it in the tenant service's entry.", "refresh_credentials"],
  postgres_pooler_unsafe: ["Something between the workers and its Postgres can't be relied upon: session settings that have no effect, or a connection that leads to another database. Nothing was written.", "The detail says what. Check the pooler's database entries, or point the tenant service past it, then re-read credentials.", "refresh_credentials"],
  postgres_internal: ["Postgres fails in a way that has no name here.", "The detail and the worker's log have the SQLSTATE.", "flush"],
  redis_unavailable: ["Redis gives no answer.", "Look at Redis. Claims lapse by themselves; nothing is lost.", null],
  redis_loading: ["Redis is starting and loads its data.", "Wait; it goes on by itself.", null],
  redis_read_only: ["Redis is a replica or fails over.", "Wait for the failover; check which node the workers are told.", null],
  redis_out_of_memory: ["Redis is full.", "Give it memory: values that wait must not be evicted.", null],
  redis_busy: ["Somebody's script holds Redis.", "SCRIPT KILL, and find out who runs it.", null],
  redis_no_replicas: ["Fewer replicas are in step than min-replicas-to-write demands.", "Bring the replicas back. Nothing leaves the schedule meanwhile.", null],
  redis_misconf: ["The last snapshot of Redis failed, and it takes no writes.", "Look at the disk and the rights of Redis's folder (INFO persistence).", null],
  redis_cluster: ["A slot of the Redis Cluster moves or has moved, or the cluster is down.", "End the migration; nothing leaves the schedule meanwhile.", null],
  redis_permission: ["Redis's user may not use a command or a key.", "ACL LOG names both; grant it with ACL SETUSER. It is tried again by itself.", "flush"],
  redis_undeclared_keys: ["This server lets scripts use only keys that they declare (Dragonfly).", "Start it with --default_lua_flags=allow-undeclared-keys, or use Redis or Valkey.", "flush"],
  redis_credentials: ["Redis refuses user or password.", "Check redis.url and redis.password of the workers.", null],
  redis_wrong_type: ["A key of ours holds something else.", "Look at who else writes to this Redis.", null],
  redis_unexpected: ["Redis gave an answer nobody expects.", "Look at the worker's log.", null],
  value_unknown_format: ["Some balances are in a format of a later release of the ledger. They stay scheduled and alive; the others are written.", "Update balance-sync. Nothing is to be done by hand after that.", null],
  tenant_not_found: ["The tenant service does not know it.", "Nothing, unless it should be there.", "refresh_credentials"],
  tenant_suspended: ["The tenant service has suspended it.", "Nothing, or reactivate it there.", "refresh_credentials"],
  tenant_purged: ["The tenant service has purged it.", "Nothing.", null],
  tenant_forbidden: ["The tenant service says that it must not be served.", "Nothing, or reactivate it there.", "refresh_credentials"],
  tenant_config_malformed: ["Its database settings can't be used.", "The detail names the field; mend it in the tenant service.", "refresh_credentials"],
  tenant_service_unavailable: ["Its settings are not known yet and the tenant service can't be asked.", "Look at the tenant service.", "refresh_credentials"],
  tenant_service_unauthorized: ["The tenant service refuses the API key.", "Check tenants.service.api_key.", "refresh_credentials"],
  stopping: ["The worker is stopping; other workers go on with the tenant.", "Nothing.", null],
  collector_crashed: ["Its collector panicked; it starts again after a growing delay.", "Report the worker's log line.", "flush"],
};

/** @type {Record<string, string>} */
const QUARANTINE = {
  missing_row: "No row with that id under that organization and ledger. Restore the row and retry.",
  value_expired: "The value had expired in Redis before anybody looked: its last mutation is lost unless the ledger has it.",
  value_lost: "The value is gone from Redis, and the row lacks what the ledger's trail has, or that can't be told: the detail says which. It stays here until somebody drops it, whatever is written later. Mend the row from the ledger's operations, then drop it; where a grant is missing, give it and retry.",
  value_unreadable: "Its key in Redis is of another type, or outside the slot of the ledger's keys; the detail says which. Find out who else writes to this Redis; the balance's next good mutation clears it.",
  value_duplicate_name: "A name stands twice in the value, and which of the two counts is unknown. Report its writer; the balance's next good mutation clears it.",
  value_field_null: "A field that counts is null in UpperCamel, or in the only spelling there is. Report its writer; the balance's next good mutation clears it.",
  value_not_canonical: "A lowerCamel number is not in the one form that ledgers from 4.1 on write. Report its writer; the balance's next good mutation clears it.",
  refused_by_postgres: "A check or an overflow: the detail has the SQLSTATE. Mend the row or the schema and retry.",
};

/**
 * `{ means, todo, action }` of a tenant's reason.
 * @param {string | null | undefined} reason
 */
export function adviceFor(reason) {
  const [means, todo, action] = TENANT[reason ?? ""] ?? ["", "", "flush"];
  return { means, todo, action };
}

/** What a reason of quarantine means. */
export function quarantineMeaning(reason) {
  if (QUARANTINE[reason]) return QUARANTINE[reason];
  if (String(reason).startsWith("member_")) return "The member can't be read, or carries another tenant's prefix. Drop it when its writer is mended.";
  if (/^(value|amount)_/.test(String(reason))) return "The value can't be decoded; the detail names field, value and what is allowed. The balance's next good mutation clears it.";
  return "";
}

/**
 * How a tenant is, for people: `level` is bad, warn, note or good.
 * @param {Pick<Api.TenantRow, "state" | "paused"> & { oldest_due_age_seconds: number | null }} row
 * @param {number} objective
 */
export function assess(row, objective) {
  const late = typeof row.oldest_due_age_seconds === "number" && row.oldest_due_age_seconds > objective;
  if (row.state === "unserved") return { level: "bad", word: "unserved" };
  if (row.state === "degraded") return { level: "bad", word: "degraded" };
  if (row.paused || row.state === "paused") return { level: "note", word: "paused" };
  if (late) return { level: "warn", word: "behind" };
  return { level: "good", word: row.state };
}

/**
 * The action that helps first, or null.
 * @param {Api.TenantRow} row
 * @param {number} objective
 */
export function firstAid(row, objective) {
  const { word } = assess(row, objective);
  if (word === "paused") return "resume";
  if (word === "degraded") return adviceFor(row.reason).action;
  return word === "behind" ? "flush" : null;
}
