// What Redis has lost of a tenant and the ledger's operations have: shown, then written to the rows.

import { get, post, remove } from "../api.js";
import { confirmAction, toast } from "../dialog.js";
import { h, setAttr, setShown, setText, visible } from "../dom.js";
import { count, plural, words } from "../format.js";
import { button, dataTable, mayAct, nothing, numberColumn, section, textColumn, timeAgo } from "../parts.js";

/** While a recovery is at work it is looked at this often. */
const LOOK_EVERY = 1_000;

const STATES = {
  running: "at work",
  done: "done",
  failed: "failed",
  stopped: "stopped before all was looked at",
  lost: "ended with its worker",
};

/**
 * The part of a tenant's page. `seen(recovery)` is called when one has ended that was at work.
 * @param {string} id
 * @param {(() => void)[]} tickers
 * @param {AbortSignal} signal
 * @param {() => void} ended
 */
export function recoveryPart(id, tickers, signal, ended) {
  const shownId = visible(id);
  const line = h("p.recovery-line", { role: "status" });
  const when = timeAgo("started ");
  tickers.push(when.tick);
  const numbers = h("p.quiet");
  const limits = h("p.note");
  const table = dataTable({
    label: "Lost balances",
    key: (/** @type {Api.LostBalance} */ balance) => balance.member,
    columns: [
      textColumn("Balance", (balance) => visible(balance.member), { wide: true }),
      numberColumn("Row", (balance) => state(balance.row)),
      numberColumn("Written is", (balance) => state(balance.to)),
      textColumn("By the", (balance) => balance.witness ?? "–"),
      textColumn("What comes of it", (balance) => [balance.outcome ? words(balance.outcome) : balance.to ? "can be restored" : "can't be restored", visible(balance.detail)].filter(Boolean).join(": "), { wide: true }),
    ],
    empty: nothing("Nothing is lost", "Every row has what the ledger's operations have, as far as they could be read."),
  });
  const more = h("p.quiet");
  const plan = button("Look for losses", "search", () => start(false, null));
  const apply = button("Restore…", "retry", restore, "button.button.primary");
  const stop = button("Stop", "stop", cancel);
  const bar = h("div.actions", { role: "group", "aria-label": "Recovery" }, plan, apply, stop);
  const result = h("div", line, numbers, limits, table.node, more);
  const node = section("Recovery", h("p.quiet", "Finds rows that lack what Redis has lost and the ledger's operations have, and writes it. Nothing is written before you say so."), bar, result);
  node.classList.add("recovery");
  /** @type {Api.Recovery | null} */
  let last = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  /** @param {Api.Recovery | null} recovery */
  function show(recovery) {
    const wasRunning = last?.state === "running";
    last = recovery;
    const running = recovery?.state === "running";
    setShown(bar, mayAct());
    setShown(plan, !running);
    setShown(stop, running);
    setShown(apply, recovery?.state === "done" && !recovery.apply && recovery.recoverable > 0);
    setShown(result, recovery !== null);
    clearTimeout(timer);
    if (!recovery) return;
    setAttr(node, "data-state", recovery.state);
    when.update(recovery.started_at);
    const doing = recovery.apply ? "Restoring" : "Looking for losses";
    line.replaceChildren(h("strong", `${doing}: ${STATES[recovery.state]}`), ` · by ${visible(recovery.by)} on ${visible(recovery.worker)} · `, when.node);
    const of = recovery.rows_estimate > 0 ? ` of about ${count(recovery.rows_estimate)}` : "";
    const outcomes = Object.entries(recovery.outcomes).map(([name, number]) => `${count(number)} ${words(name)}`);
    setText(numbers, [`${count(recovery.rows)}${of} rows looked at`, `${count(recovery.recoverable)} can be restored`, `${count(recovery.left)} can't`, ...outcomes].join(" · "));
    const notes = [recovery.error, ...recovery.notices].filter(Boolean).map(visible);
    setText(limits, notes.join(" · "));
    setShown(limits, notes.length > 0);
    setShown(table.node, !running || recovery.balances.length > 0);
    table.update(recovery.balances);
    const rest = recovery.recoverable + recovery.left - recovery.balances.length;
    setText(more, `… and ${count(rest)} more: balance-sync recover --tenant ${shownId} --json lists all of them`);
    setShown(more, rest > 0);
    if (running) timer = setTimeout(look, LOOK_EVERY);
    else if (wasRunning) ended();
  }

  async function look() {
    try {
      show(await get(["tenants", id, "recovery"], {}, signal));
    } catch (problem) {
      if (problem.name === "AbortError") return;
      if (last?.state === "running") timer = setTimeout(look, LOOK_EVERY);
    }
  }

  async function start(/** @type {boolean} */ write, /** @type {string | null} */ note) {
    try {
      show(await post(["tenants", id, "recovery"], { apply: write, note }));
    } catch (problem) {
      toast("").update("bad", `Recovery: ${visible(problem.message)}`);
      look();
    }
  }

  async function restore() {
    if (!last) return;
    const answer = await confirmAction({
      title: `Restore ${plural(last.recoverable, "balance")} of ${shownId}?`,
      text: "The rows get the state of the newest operation, by the statement that workers use: no row that is as new or newer is touched, and nothing that is in doubt.",
      facts: [
        "Everything is looked at once more right before it is written.",
        "Balances that the ledger goes on with from the old row are left to you: stop postings to the tenant first if you can.",
        "It stands in the log of actions, with your note.",
      ],
      confirm: "Restore",
      danger: true,
      note: "needed",
    });
    if (answer) await start(true, answer.note);
  }

  async function cancel() {
    try {
      await remove(["tenants", id, "recovery"]);
      toast("").update("good", "It stops after the batch that it writes. What is written stays.");
    } catch (problem) {
      toast("").update("bad", `Recovery: ${visible(problem.message)}`);
    }
    look();
  }

  signal.addEventListener("abort", () => clearTimeout(timer));
  show(null);
  return { node, look };
}

/** A state in one line, with the amounts where they may be seen. */
function state(/** @type {Api.LostBalanceState | null} */ known) {
  if (!known) return "–";
  const amounts = known.available === null ? "" : `: ${visible(known.available)} available, ${visible(known.on_hold)} on hold, ${visible(known.overdraft_used ?? "?")} overdraft`;
  return `version ${known.version}${amounts}`;
}
