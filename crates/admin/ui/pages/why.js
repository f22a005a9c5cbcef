// One balance: is its row as new as Redis, and if not, why not and what happens next. The answer first, then the facts.

import { quarantineMeaning } from "../advice.js";
import { get } from "../api.js";
import { h, icon, visible } from "../dom.js";
import { count, moment, span, words } from "../format.js";
import { now } from "../live.js";
import { foreign, failed, heading, link, loading, nothing, readerNote, scrollable, stateBadge, reasonOf, tenantHref, timeOfDay } from "../parts.js";

const FIELDS = ["member", "tenant", "alias", "key", "organization", "ledger"];
/** @type {Record<string, [string, string, string]>} */
const VERDICTS = {
  in_sync: ["good", "ok", "In step: the row is as new as Redis."],
  on_its_way: ["note", "sync", "On its way: it is scheduled and will be written."],
  behind: ["warn", "clock", "Behind: Redis is newer than the row."],
  quarantined: ["bad", "alert", "In quarantine: it was set aside and is not written."],
  unscheduled_and_behind: ["bad", "alert", "Behind and not scheduled: no worker will write it until it changes again."],
  ahead: ["warn", "question", "The row is newer than Redis."],
  unknown: ["note", "question", "Can't tell."],
};

/** The same question about another alias. */
function aliasHref(alias) {
  return `/why?${new URLSearchParams({ ...Object.fromEntries(new URLSearchParams(location.search)), alias })}`;
}

export function whyPage({ query, navigate }) {
  const values = Object.fromEntries(FIELDS.map((name) => [name, query.get(name) ?? ""]));
  /** @type {Record<string, HTMLInputElement>} */
  const inputs = {};
  const field = (name, label, options = {}) => {
    inputs[name] = h("input", { id: `why-${name}`, value: values[name], autocomplete: "off", spellcheck: "false", autocapitalize: "off", ...options });
    return h("label.field", { for: `why-${name}` }, label, inputs[name]);
  };
  const byMember = h("div.fields", field("member", "Member: the whole key in Redis", { "data-search": "", placeholder: "tenant:acme:balance:{transactions}:…:@alice#default" }));
  const byName = h("div.fields.three", field("tenant", "Tenant"), field("alias", "Alias", { placeholder: "@alice" }), field("key", "Key", { placeholder: "default" }));
  const narrower = h("details", h("summary", "Organization and ledger"), h("div.fields.two-up", field("organization", "Organization", { placeholder: "any" }), field("ledger", "Ledger", { placeholder: "any" })));
  if (values.organization || values.ledger) narrower.open = true;
  const submit = h("button.button.primary", { type: "submit" }, icon("search"), h("span", "Ask"));
  const error = h("p.field-error", { role: "alert", hidden: true });
  const form = h("form.card.why-form", { role: "search" }, byMember, h("p.or", h("span", "or")), byName, narrower, error, submit);
  const answer = h("div.why-answer", { "aria-live": "polite" });
  const node = h("div.page", heading("Why"), form, answer);
  const controller = new AbortController();

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const asked = Object.fromEntries(FIELDS.map((name) => [name, inputs[name].value.trim()]));
    if (!asked.member && !(asked.tenant && asked.alias)) {
      error.textContent = "Give a member, or a tenant and an alias.";
      error.hidden = false;
      (asked.tenant ? inputs.alias : inputs.member).focus();
      return;
    }
    error.hidden = true;
    // A member says all by itself.
    const params = new URLSearchParams(Object.entries(asked).filter(([name, value]) => value && (!asked.member || name === "member")));
    navigate(`/why?${params}`, { silent: true });
    ask();
  });

  async function ask() {
    const params = new URLSearchParams(location.search);
    answer.replaceChildren(h("section.card", loading(5)));
    try {
      const found = await get(["why"], Object.fromEntries(FIELDS.map((name) => [name, params.get(name)])), controller.signal);
      show(found);
    } catch (problem) {
      if (problem.name !== "AbortError") answer.replaceChildren(failed(problem, ask));
    }
  }

  /** @param {Api.Why} found */
  function show({ matches, amounts_hidden: hidden, unasked, meant }) {
    const other = meant ? h("p", "There is ", h("a", { href: aliasHref(meant) }, visible(meant)), ".") : null;
    if (matches.length === 0) {
      const missing = unasked
        ? nothing("Can't tell", `Redis knows no such balance, and the tenant's Postgres can't be asked: ${visible(unasked)}`)
        : nothing("Nothing is known of this balance", "Neither Redis nor Postgres has it. Is the alias spelled as the ledger does?");
      answer.replaceChildren(...[missing, other].filter(Boolean));
      return;
    }
    const several = matches.length > 1 ? h("p.quiet", `${matches.length} balances match: the alias exists in more than one ledger.`) : null;
    answer.replaceChildren(...[hidden ? readerNote() : null, several, ...matches.map((match) => card(match, hidden, ask)), unasked ? h("p.quiet", `There may be more: the tenant's Postgres can't be asked for the alias: ${visible(unasked)}`) : null].filter(Boolean));
  }

  if (FIELDS.some((name) => values[name])) ask();
  else answer.append(nothing("Ask about one balance", "Is its row as new as Redis? Is it scheduled, held, set aside, about to expire? What happens next?"));
  return { node, stop: () => controller.abort() };
}

/**
 * @param {Api.BalanceReport} match
 * @param {boolean} hidden
 * @param {() => void} again
 */
function card(match, hidden, again) {
  const [level, picture, sentence] = VERDICTS[match.verdict] ?? VERDICTS.unknown;
  const badge = stateBadge();
  const asRow = match.tenant_state;
  badge.update(asRow);
  const row = (name, ...content) => h("div", h("dt", name), h("dd", ...content));
  const schedule = { not_scheduled: "not scheduled", due: "due now", leased: "held by a worker", future: "scheduled for later" }[match.schedule.state] ?? words(match.schedule.state);
  const reason = reasonOf(asRow);
  const facts = [
    row("Scheduled", h("strong", schedule), ...scheduleDetail(match.schedule)),
    row("Lock", match.lock ? `held by ${match.lock.foreign ? "the ledger's own worker" : "one of ours"}, for ${span(match.lock.ttl_seconds)}` : "none"),
    row("Tenant", link(tenantHref(match.tenant), visible(match.tenant)), " ", badge.node, " ", h("span.quiet", visible(reason))),
    match.quarantine
      ? row("Quarantine", h("strong", words(match.quarantine.reason)), " ", visible(match.quarantine.detail ?? ""), h("p.quiet", quarantineMeaning(match.quarantine.reason)), link(`/quarantine?tenant=${encodeURIComponent(match.tenant)}`, "Open quarantine"))
      : row("Quarantine", "not in it"),
    match.last_error ? row("Last error", timeOfDay(match.last_error.at), ` ${words(match.last_error.reason)}: `, visible(match.last_error.detail ?? "")) : row("Last error", "none known"),
    row("Member", h("code.breaks", visible(match.member))),
  ];
  const retry = h("button.button.small", { type: "button", on: { click: again } }, icon("retry"), h("span", "Ask again"));
  return h(
    "article.card.why",
    { data: { level, verdict: match.verdict } },
    h("header.why-head", h("span.verdict-icon", icon(picture)), h("div", h("h2", foreign(match.alias || match.member), match.key ? h("span.quiet", `#${visible(match.key)}`) : null), h("p.verdict-text", sentence), h("p.next-text", visible(match.next))), retry),
    compare(match, hidden),
    h("dl.pairs", facts),
  );
}

function scheduleDetail({ score, due_at: due, leased_until: until }) {
  const parts = [];
  if (due) parts.push((moment(due) ?? 0) <= now() ? " since " : " at ", timeOfDay(due));
  if (until) parts.push(" until ", timeOfDay(until));
  if (score !== null && score !== undefined) parts.push(h("span.quiet", ` score ${score}`));
  return parts;
}

/** Redis and Postgres side by side: what differs is marked by a sign and a word, not by colour alone. */
function compare(/** @type {Api.BalanceReport} */ { redis, postgres }, /** @type {boolean} */ hidden) {
  const there = { present: "present", missing: "no such row", deleted: "deleted", unreachable: "can't be reached" }[postgres.state] ?? words(postgres.state);
  /** @type {[string, any, any][]} */
  const rows = [
    ["State", redis.present ? "present" : "not there", there],
    ["Version", redis.version === null ? "–" : count(redis.version), postgres.version === null ? "–" : count(postgres.version)],
  ];
  if (!hidden) {
    for (const [name, key] of [["Available", "available"], ["On hold", "on_hold"], ["Overdraft used", "overdraft_used"]]) {
      rows.push([name, redis[key] ?? "–", postgres[key] ?? "–"]);
    }
  }
  /** @type {[string, any, any][]} */
  const extra = [["Remaining life", span(redis.ttl_seconds), ""], ["Written", "", postgres.updated_at ? timeOfDay(postgres.updated_at) : "–"]];
  if (redis.unreadable) extra.push(["Value", `can't be read: ${visible(redis.unreadable)}`, ""]);
  if (postgres.other_balance) extra.push(["Row of", "", visible(postgres.other_balance)]);
  if (postgres.detail) extra.push(["Detail", "", visible(postgres.detail)]);
  const line = (/** @type {[string, any, any]} */ [name, left, right], /** @type {boolean} */ compared) => {
    const differs = compared && redis.present && postgres.state === "present" && left !== right;
    return h("tr", { class: differs ? "differs" : null }, h("th", { scope: "row" }, name), h("td", typeof left === "string" ? visible(left) : left), h("td", typeof right === "string" ? visible(right) : right, differs ? h("span.differs-mark", " ≠ differs") : null));
  };
  return scrollable(h(
    "div.scroll",
    h("table.compare", { "aria-label": "Redis and Postgres" }, h("thead", h("tr", h("td"), h("th", { scope: "col" }, "Redis"), h("th", { scope: "col" }, "Postgres"))), h("tbody", rows.map((row) => line(row, true)), extra.map((row) => line(row, false)))),
  ));
}
