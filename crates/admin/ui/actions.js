// What an operator can do: asked for with a confirmation that says what will happen, then followed to its outcome, since
// "accepted" is not "done".

import { get, post } from "./api.js";
import { visible } from "./dom.js";
import { confirmAction, toast } from "./dialog.js";
import { count, plural } from "./format.js";
import { live, subscribe } from "./live.js";

/** How long an outcome is waited for before the toast says that none has come. */
const OUTCOME_WITHIN = 12_000;
/** The log is looked at this often while an outcome is awaited, beside the events that tell of it. */
const LOOK_EVERY = 1_000;

/**
 * Names, pictures and consequences of what can be done to a tenant.
 * @type {Record<string, { label: string, picture: string, title: (id: string) => string, text: string, facts: string[], doing: string, done: string }>}
 */
export const TENANT_ACTIONS = {
  pause: {
    label: "Pause",
    picture: "pause",
    title: (id) => `Pause ${id}?`,
    text: "All workers stop claiming its balances within a second and finish what is in flight.",
    facts: ["Values that wait are kept from expiring.", "It stays paused, also across restarts, until an operator resumes it."],
    doing: "Pausing",
    done: "paused",
  },
  resume: {
    label: "Resume",
    picture: "play",
    title: (id) => `Resume ${id}?`,
    text: "Workers claim its balances again, beginning with the oldest.",
    facts: [],
    doing: "Resuming",
    done: "resumed",
  },
  flush: {
    label: "Flush now",
    picture: "bolt",
    title: (id) => `Flush ${id} now?`,
    text: "Its collector stops waiting, be it for more balances or after a failure, and writes at once what is due.",
    facts: [],
    doing: "Flushing",
    done: "flushed",
  },
  refresh_credentials: {
    label: "Re-read credentials",
    picture: "key",
    title: (id) => `Re-read the credentials of ${id}?`,
    text: "Its database settings are fetched afresh from the tenant service, and a waiting collector tries again at once.",
    facts: ["Connections under the old settings end when their work is done."],
    doing: "Re-reading credentials of",
    done: "asked for afresh",
  },
  acknowledge: {
    label: "Acknowledge",
    picture: "ok",
    title: (id) => `Acknowledge what is in quarantine or lost of ${id}?`,
    text: "It is accepted with your note, and the fleet may be healthy again. Entries stay listed, and nothing is written.",
    facts: ["What comes into quarantine or is lost later is reported again.", "What Redis has lost and was not accounted for is not looked for any more."],
    doing: "Acknowledging the entries of",
    done: "acknowledged",
  },
};

/**
 * Names of everything that stands in the log.
 * @type {Record<string, string>}
 */
export const ACTION_NAMES = {
  pause: "Pause",
  resume: "Resume",
  flush: "Flush now",
  refresh_credentials: "Re-read credentials",
  acknowledge: "Acknowledge entries",
  drain: "Drain worker",
  quarantine_retry: "Retry from quarantine",
  quarantine_drop: "Drop from quarantine",
  recover: "Recover lost balances",
  rollout: "Change the rollout",
  retire: "Give back to the ledger's own worker",
};

/** Asks, does, and follows an action on a tenant. */
export async function actOnTenant(id, what) {
  const action = TENANT_ACTIONS[what];
  const shown = visible(id);
  const answer = await confirmAction({
    title: action.title(shown),
    text: action.text,
    facts: action.facts,
    confirm: action.label,
    danger: what === "pause",
    note: what === "acknowledge" ? "needed" : true,
  });
  if (!answer) return;
  const message = toast(`${action.doing} ${shown}…`);
  await follow(message, `${action.label}: ${shown}`, id, () =>
    post(["tenants", id, "actions"], { action: what, note: answer.note }),
  );
}

/** Asks for and follows the drain of a worker. */
export async function drainWorker(worker, workers) {
  const others = workers.filter((other) => other.name !== worker.name && !other.draining).length;
  const facts = [
    others === 0
      ? "It is the only one: nothing will be synced until another worker starts."
      : `${plural(others, "other worker")} will take over its ${plural(worker.tenants_owned, "tenant")}.`,
  ];
  if (worker.self) facts.push("It serves this page: the dashboard will lose its connection.");
  const shown = visible(worker.name);
  const answer = await confirmAction({
    title: `Drain ${shown}?`,
    text: "It stops claiming, writes or gives back what it holds, and ends, as after SIGTERM.",
    facts,
    confirm: "Drain",
    danger: true,
  });
  if (!answer) return;
  const message = toast(`Draining ${shown}…`);
  await follow(message, `Drain: ${shown}`, null, () =>
    post(["workers", worker.name, "actions"], { action: "drain", note: answer.note }),
  );
}

async function follow(message, name, tenant, ask) {
  let asked;
  try {
    asked = await ask();
  } catch (problem) {
    message.update("bad", `${name}: ${visible(problem.message)}`);
    return;
  }
  const outcomes = await outcomeOf(asked.action_id, tenant);
  if (outcomes.length === 0) {
    const why = live.state === "lost" ? "the connection was lost" : "no worker has answered yet";
    message.update("bad", `${name}: accepted, but ${why}. The outcome will stand in the log of actions.`);
    return;
  }
  const bad = outcomes.filter((outcome) => outcome.outcome !== "done");
  const shown = bad.length > 0 ? bad : outcomes;
  const workers = shown.map((outcome) => visible(outcome.worker)).join(", ");
  const details = [...new Set(shown.map((outcome) => outcome.detail).filter(Boolean))].map(visible).join("; ");
  const level = bad.length === outcomes.length ? "bad" : "good";
  message.update(level, `${name}: ${shown[0].outcome} by ${workers}${details ? ` (${details})` : ""}`);
}

/**
 * Waits until a worker has reported the outcome of an action, and a moment longer for the others; an empty list when none did
 * in time.
 */
function outcomeOf(/** @type {string} */ id, /** @type {string | null} */ tenant) {
  return new Promise((/** @type {(outcomes: Api.Action["outcomes"]) => void} */ resolve) => {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    /** @type {Api.Action["outcomes"]} */
    let received = [];
    const stop = subscribe("action", () => look());
    const end = setTimeout(() => finish(received), OUTCOME_WITHIN);
    const finish = (/** @type {Api.Action["outcomes"]} */ outcomes) => {
      stop();
      clearTimeout(timer);
      clearTimeout(end);
      resolve(outcomes);
    };
    const look = async () => {
      clearTimeout(timer);
      timer = setTimeout(look, LOOK_EVERY);
      const log = await get(["actions"], { tenant, per_page: 50 }).catch(() => null);
      const action = log?.actions.find((/** @type {Api.Action} */ each) => each.id === id);
      if (!action?.outcomes.length) return;
      if (received.length) finish(action.outcomes);
      received = action.outcomes;
    };
    look();
  });
}

/** Entries that are retried or dropped with one request: as many as a worker does well within a second. */
const AT_ONCE = 200;

/**
 * Asks for and does a retry or drop of quarantined entries, `AT_ONCE` at a time, so that one sees how far it is and can stop it.
 * Returns whether anything was done.
 *
 * @param {"retry" | "drop"} what
 * @param {Pick<Api.QuarantineEntry, "tenant" | "member">[]} entries
 * @param {string} subject
 */
export async function actOnQuarantine(what, entries, subject) {
  const drop = what === "drop";
  const number = entries.length;
  const many = number > 1;
  const answer = await confirmAction({
    title: `${drop ? "Drop" : "Retry"} ${many ? plural(number, "entry", "entries") : "this entry"}?`,
    text: drop
      ? "What was set aside is forgotten: reason and value are gone. Rows in Postgres stay as they are."
      : "It goes back into the schedule and is written at the next flush; what still can't be written comes back here.",
    facts: [subject],
    confirm: drop ? "Drop" : "Retry",
    danger: drop,
    typed: drop && many ? number : null,
  });
  if (!answer) return false;
  const doing = `${drop ? "Dropping" : "Retrying"} ${plural(number, "entry", "entries")}…`;
  let stopped = false;
  const message = toast(doing, number > AT_ONCE ? () => (stopped = true) : null);
  const sum = { done: 0, absent: 0, listed: 0 };
  let handled = 0;
  const summary = () => {
    const absent = sum.absent > 0 ? `, ${count(sum.absent)} were no longer there` : "";
    const listed = sum.listed > 0 ? `, ${count(sum.listed)} stay listed as lost until dropped` : "";
    const left = handled < number ? `; ${count(number - handled)} were left as they are` : "";
    return `${drop ? "Dropped" : "Scheduled again"}: ${plural(sum.done, "entry", "entries")}${listed}${absent}${left}`;
  };
  try {
    for (const { tenant, members } of portions(entries)) {
      if (stopped) break;
      if (handled > 0) message.update("wait", `${doing} ${count(handled)} done`);
      const done = await post(["quarantine", what], { tenant, members, reason: null, all: false, note: answer.note });
      for (const name of Object.keys(sum)) sum[name] += done[name];
      handled += members.length;
    }
    message.update("good", summary());
  } catch (problem) {
    message.update("bad", `${drop ? "Drop" : "Retry"}: ${visible(problem.message)}${handled > 0 ? `. ${summary()}` : ""}`);
  }
  return handled > 0;
}

/** By tenant, in portions that one request takes. */
function portions(/** @type {Pick<Api.QuarantineEntry, "tenant" | "member">[]} */ entries) {
  /** @type {Map<string, string[]>} */
  const byTenant = new Map();
  for (const { tenant, member } of entries) {
    const members = byTenant.get(tenant) ?? [];
    members.push(member);
    byTenant.set(tenant, members);
  }
  return [...byTenant].flatMap(([tenant, members]) =>
    Array.from({ length: Math.ceil(members.length / AT_ONCE) }, (_, at) => ({ tenant, members: members.slice(at * AT_ONCE, (at + 1) * AT_ONCE) })),
  );
}
