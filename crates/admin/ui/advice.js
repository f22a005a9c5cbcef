// What a reason or a state means and what helps, for the one who has no time to look it up.

import { words } from "./format.js";
import { REASONS, STATES } from "./tables.js";

/** @typedef {"quiet" | "working" | "changing" | "paused" | "failing"} Condition */
/** @type {Record<Condition, string>} */
const LEVELS = { quiet: "good", working: "good", changing: "good", paused: "note", failing: "bad" };
/** @type {Map<string, Condition>} */
const CONDITIONS = new Map(STATES.map(({ name, condition }) => [name, condition]));

/** The names of all states, the worst first. */
export const STATE_NAMES = STATES.map(({ name }) => name);
/** All words that a tenant may be shown under, the worst first: its states, and `behind` before those that need no action. */
export const WORDS = [...STATE_NAMES];
WORDS.splice(STATES.filter(({ condition }) => condition === "failing").length, 0, "behind");

/** The level at which a state is shown: bad, note or good. */
export function levelOf(/** @type {string} */ state) {
  // What a state of another release means is not known: it is worth a look.
  return LEVELS[CONDITIONS.get(state) ?? "paused"];
}

/** @type {Record<string, string>} */
const QUARANTINE = {
  missing_row: "No row with that id under that organization and ledger. Restore the row and retry.",
  value_expired: "The value had expired in Redis before a worker looked: its last mutation is lost unless the ledger has it.",
  forked: "The row is ahead of Redis, or has other amounts at the same version: one of the two lost mutations that the other was computed from. The entry lists both sides, and stays until it is dropped. Compare both with the ledger's operations, mend the wrong one, then drop it.",
  value_lost: "The value is gone from Redis, and the row lacks what the ledger's trail has, or that can't be determined: the detail says which. It stays here until an operator drops it, whatever is written later. Mend the row from the ledger's operations, then drop it; where a grant is missing, give it and retry.",
  value_unreadable: "Its key in Redis is of another type, or outside the slot of the ledger's keys; the detail says which. Find out who else writes to this Redis; the balance's next good mutation clears it.",
  value_too_large: "The value has more than 1 MiB and was not read; one of the ledger has about 1 KiB. Find out who wrote it; the balance's next good mutation clears the entry.",
  member_too_long: "The member of the schedule has more than 8 KiB; one of the ledger has a few hundred bytes. Find out who else writes to this Redis, then drop the entry: it can't be retried.",
  unreadable_entry: "The entry in Redis is in a format that this release can't read: the detail says why. Ask a worker of the release that wrote it.",
  value_duplicate_name: "A name stands twice in the value, and which of the two counts is unknown. Report its writer; the balance's next good mutation clears it.",
  value_field_null: "A field that counts is null in UpperCamel, or in the only spelling there is. Report its writer; the balance's next good mutation clears it.",
  value_not_canonical: "A lowerCamel number is not in the one form that ledgers from 4.1 on write. Report its writer; the balance's next good mutation clears it.",
  refused_by_postgres: "A check or an overflow: the detail has the SQLSTATE. Mend the row or the schema and retry.",
};

/**
 * What a tenant's reason means, what helps, and which action is offered first.
 * @param {string | null | undefined} reason
 */
export function adviceFor(reason) {
  return REASONS[reason ?? ""] ?? { means: "", help: "", action: "flush" };
}

/** What a reason of quarantine means. */
export function quarantineMeaning(reason) {
  if (QUARANTINE[reason]) return QUARANTINE[reason];
  if (String(reason).startsWith("member_")) return "The member can't be read, or carries another tenant's prefix. Drop it when its writer is mended.";
  if (/^(value|amount)_/.test(String(reason))) return "The value can't be decoded; the detail names field, value and what is allowed. The balance's next good mutation clears it.";
  return "";
}

/** How bad a verdict is, as the server orders tenants. */
export const VERDICTS = ["healthy", "attention", "behind", "unknown", "degraded"];
/** @type {Record<string, string>} */
const VERDICT_LEVELS = { attention: "warn", behind: "warn", degraded: "bad", unknown: "note" };

/**
 * How a tenant is, for people: `level` is bad, warn, note or good. The verdict is the server's, the same that the terminal shows; only
 * its word is chosen here.
 * @param {Pick<Api.TenantRow, "state" | "paused"> & { verdict?: Api.TenantRow["verdict"] }} row
 */
export function assess(row) {
  const level = VERDICT_LEVELS[row.verdict ?? ""] ?? levelOf(row.state);
  if (levelOf(row.state) === "bad") return { level, word: row.state };
  // Another worker writes it: whether it is late is not this fleet's to say.
  if (row.state === "not_in_rollout") return { level, word: words(row.state) };
  if (row.paused || row.state === "paused") return { level: level === "good" ? "note" : level, word: "paused" };
  if (row.verdict === "behind") return { level, word: "behind" };
  return { level, word: row.state };
}

/** Whether a tenant belongs among those to be looked at: by its verdict, or because somebody has paused it. */
export function isOfNote(/** @type {Api.TenantRow} */ row) {
  return row.verdict !== "healthy" || row.paused !== null;
}

/**
 * The action that helps first, or null.
 * @param {Api.TenantRow} row
 */
export function firstAid(row) {
  const { word } = assess(row);
  if (word === "paused") return "resume";
  if (word === "degraded") return adviceFor(row.reason).action;
  return word === "behind" ? "flush" : null;
}
