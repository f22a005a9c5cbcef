// The log: who did what, when, and what each worker made of it.

import { ACTION_NAMES } from "../actions.js";
import { get } from "../api.js";
import { h, icon, keyed, setAttr, setIcon, setShown, setText, visible } from "../dom.js";
import { words } from "../format.js";
import { subscribe } from "../live.js";
import { dataTable, failed, heading, loading, nothing, pager, tenantHref, textColumn, timeAgo, whenChosen } from "../parts.js";

const PER_PAGE = 50;
const OUTCOME_ICONS = { done: "ok", failed: "alert", refused: "cross" };

export function actionsPage({ query, navigate }) {
  let page = Math.max(1, Number.parseInt(query.get("page") ?? "1", 10) || 1);
  let tenant = query.get("tenant") ?? "";
  const search = h("input", { type: "search", placeholder: "Only this tenant", "aria-label": "Only this tenant", "data-search": "", value: tenant, autocomplete: "off", spellcheck: "false" });
  const table = actionTable({
    withTenant: true,
    empty: nothing("No actions yet", "Pause, resume, flush, drain, retry and drop stand here with who did them and what came of it."),
  });
  const pages = pager((to) => go({ page: to }));
  const place = h("div", loading(6));
  const list = h("section.card", table.node, pages.node);
  const node = h("div.page", heading("Actions"), h("form.toolbar", { role: "search" }, h("label.search", icon("search"), search)), place);
  let controller = new AbortController();

  function go(changes) {
    if ("page" in changes) page = changes.page;
    if ("tenant" in changes) [tenant, page] = [changes.tenant, 1];
    const params = new URLSearchParams();
    if (tenant) params.set("tenant", tenant);
    if (page > 1) params.set("page", String(page));
    const text = params.toString();
    navigate(`/actions${text ? `?${text}` : ""}`, { replace: true, silent: true });
    load();
  }
  async function load() {
    controller.abort();
    controller = new AbortController();
    try {
      const answer = await get(["actions"], { tenant, page, per_page: PER_PAGE }, controller.signal);
      table.update(answer.actions);
      pages.update(answer);
      if (place.firstChild !== list) place.replaceChildren(list);
    } catch (problem) {
      if (problem.name !== "AbortError") place.replaceChildren(failed(problem, load));
    }
  }
  node.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  whenChosen(search, (chosen) => go({ tenant: chosen }));
  const ends = [subscribe("action", load), subscribe("connection", ({ again }) => again && load())];
  load();
  return {
    node,
    tick: table.tick,
    stop() {
      controller.abort();
      for (const end of ends) end();
    },
  };
}

/** The table of actions, also on a tenant's page. */
export function actionTable({ withTenant, empty }) {
  const tickers = new Set();
  /** @type {import("../parts.js").Column<Api.Action>[]} */
  const columns = [
    {
      label: "When",
      make(cell) {
        const time = timeAgo();
        cell.append(time.node);
        tickers.add(time.tick);
        return (action) => time.update(action.at);
      },
    },
    textColumn("What", (action) => ACTION_NAMES[action.what] ?? words(action.what)),
    {
      label: "Of",
      make(cell) {
        const anchor = h("a.id");
        const text = h("span.id");
        cell.append(anchor, text);
        return (action) => {
          setShown(anchor, Boolean(action.tenant));
          setShown(text, !action.tenant);
          if (action.tenant) setAttr(anchor, "href", tenantHref(action.tenant));
          setText(anchor, visible(action.tenant ?? ""));
          setText(text, visible(action.worker ?? action.change ?? "all tenants"));
        };
      },
    },
    textColumn("Who", (action) => visible(action.by)),
    {
      label: "Outcome",
      wide: true,
      make(cell) {
        const none = h("span.quiet", "no worker has answered");
        const list = h("ul.outcomes");
        cell.append(none, list);
        const update = keyed(list, (outcome) => `${outcome.worker} ${outcome.at}`, () => {
          const picture = icon("ok");
          const text = h("span");
          const item = h("li.outcome", picture, text);
          return {
            node: item,
            update(outcome) {
              setIcon(picture, OUTCOME_ICONS[outcome.outcome] ?? "dots");
              setAttr(item, "data-outcome", outcome.outcome);
              setText(text, `${outcome.outcome} by ${visible(outcome.worker)}${outcome.detail ? `: ${visible(outcome.detail)}` : ""}`);
            },
          };
        });
        return (action) => {
          setShown(none, action.outcomes.length === 0);
          update(action.outcomes);
        };
      },
    },
    textColumn("Note", (action) => visible(action.note ?? ""), { wide: true }),
  ];
  const table = dataTable({ label: "Actions", key: (/** @type {Api.Action} */ action) => action.id, columns: withTenant ? columns : columns.filter((column) => column.label !== "Of"), empty });
  return { node: table.node, update: table.update, tick: () => tickers.forEach((tick) => tick()) };
}
