// The frame around the pages: who is signed in, the tabs, the state of the connection, the keys; and which page is shown.

import { get, Problem, remove, whenSignedOut } from "./api.js";
import { at, here, isOurs } from "./base.js";
import { h, icon, setAttr, setIcon, setShown, setText, visible } from "./dom.js";
import { showDialog, toast } from "./dialog.js";
import { clock, span, switchZone, zoneName } from "./format.js";
import { connect, disconnect, live, load, retryNow, subscribe } from "./live.js";
import { button, failed, heading, link, nothing } from "./parts.js";
import { actionsPage } from "./pages/actions.js";
import { overviewPage } from "./pages/overview.js";
import { quarantinePage } from "./pages/quarantine.js";
import { signInPage } from "./pages/sign-in.js";
import { tenantPage } from "./pages/tenant.js";
import { tenantsPage } from "./pages/tenants.js";
import { whyPage } from "./pages/why.js";

/** @type {[string, string, string][]} */
const TABS = [
  ["/", "Overview", "o"],
  ["/tenants", "Tenants", "t"],
  ["/quarantine", "Quarantine", "q"],
  ["/why", "Why", "w"],
  ["/actions", "Actions", "a"],
];

/** @type {[RegExp, (options: any) => Page, string | null][]} */
const ROUTES = [
  [/^\/$/, overviewPage, "Overview"],
  [/^\/tenants\/?$/, tenantsPage, "Tenants"],
  [/^\/tenants\/([^/]+)\/?$/, tenantPage, null],
  [/^\/quarantine\/?$/, quarantinePage, "Quarantine"],
  [/^\/why\/?$/, whyPage, "Why"],
  [/^\/actions\/?$/, actionsPage, "Actions"],
];

const main = /** @type {HTMLElement} */ (document.querySelector("#main"));
// In the document it is relative to the page that was loaded, and other pages are a level deeper.
setAttr(document.querySelector(".brand"), "href", "/");
/** @typedef {{ node: HTMLElement, stop?: () => void, shown?: () => void, tick?: () => void }} Page */
/** @type {Page | null} */
let page = null;
let title = "Overview";

// --- pages ------------------------------------------------------------------------------------------------------------

/** Goes to a page of ours. `replace`: without an entry in the history, for what is only a filter. */
export function navigate(href, { replace = false, silent = false } = {}) {
  const url = new URL(href.startsWith("/") ? at(href) : href, location.href);
  if (url.href !== location.href) history[replace ? "replaceState" : "pushState"](null, "", url);
  if (!silent) show();
}

function show({ focus = true } = {}) {
  page?.stop?.();
  page = null;
  /** @type {Page} */
  let next;
  if (!live.session || (live.session.role === "none" && live.session.auth_required)) {
    title = "Sign in";
    next = signInPage({ signedIn: begin });
  } else {
    const route = ROUTES.find(([pattern]) => pattern.test(here()));
    if (route) {
      const [pattern, make, name] = route;
      const part = here().match(pattern)?.[1];
      const argument = part === undefined ? null : decode(part);
      title = name ?? visible(argument);
      if (make !== tenantPage) connect(null);
      next = make({ argument, query: new URLSearchParams(location.search), navigate });
    } else {
      title = "Not found";
      next = { node: h("div.page", heading("Nothing is here"), nothing("No such page", null, link("/", "Go to the overview"))) };
    }
  }
  page = next;
  main.replaceChildren(next.node);
  next.shown?.();
  showTabs();
  showTitle();
  if (focus) {
    scrollTo(0, 0);
    /** @type {HTMLElement | null} */ (main.querySelector("[data-first]") ?? main.querySelector("h1"))?.focus({ preventScroll: true });
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

document.addEventListener("click", (event) => {
  const anchor = /** @type {HTMLAnchorElement | null} */ (/** @type {Element} */ (event.target).closest("a[href]"));
  if (!anchor || event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (anchor.origin !== location.origin || !isOurs(anchor.pathname) || anchor.target || anchor.getAttribute("href")?.startsWith("#")) return;
  event.preventDefault();
  navigate(anchor.href);
});
addEventListener("popstate", () => show());

// --- the top ----------------------------------------------------------------------------------------------------------

const tabs = TABS.map(([href, name]) => {
  const number = h("span.tab-count", { hidden: true });
  return { href, number, node: h("a.tab", { href }, name, number) };
});
document.querySelector(".tabs")?.append(...tabs.map((tab) => tab.node));

const lamp = h("span.lamp", { "aria-hidden": "true" });
const lampText = h("span");
const connection = h("span.connection", lamp, lampText);
const themeIcon = icon("auto");
const themeButton = h("button.icon-button.theme", { type: "button", on: { click: nextTheme } }, themeIcon);
const zoneButton = h("button.button.small.zone", { type: "button", on: { click: nextZone } });
const helpButton = h("button.icon-button.help", { type: "button", "aria-label": "Keys (?)", title: "Keys (?)", on: { click: showKeys } }, icon("question"));
const who = h("span.who");
const signOut = button("Sign out", null, async () => {
  try {
    await remove(["session"]);
  } catch (problem) {
    // The session goes on; a page that looks signed out would hide that.
    toast("").update("bad", problem.message);
    return;
  }
  await begin();
}, "button.button.small");
document.querySelector(".top-end")?.append(connection, who, signOut, zoneButton, helpButton, themeButton);

function showTabs() {
  const session = live.session;
  const signedIn = session && !(session.role === "none" && session.auth_required);
  setShown(document.querySelector(".tabs"), signedIn);
  setShown(connection, signedIn);
  setShown(helpButton, signedIn);
  for (const tab of tabs) {
    const current = tab.href === "/" ? here() === "/" : here().startsWith(tab.href);
    setAttr(tab.node, "aria-current", current ? "page" : null);
  }
  const named = signedIn && session.auth_required;
  setShown(who, named);
  setShown(signOut, named);
  if (named) setText(who, `${visible(session.name)} · ${session.role}`);
}

function showCounts() {
  const overview = live.overview;
  const counts = [null, unwell(overview), overview ? (overview.quarantined ?? 0) - overview.acknowledged : 0, null, null];
  tabs.forEach((tab, index) => {
    setShown(tab.number, counts[index] > 0);
    if (counts[index] > 0) {
      setText(tab.number, String(counts[index]));
      setAttr(tab.number, "title", index === 1 ? "degraded, paused or unserved" : "entries");
    }
  });
}

function unwell(overview) {
  if (!overview) return 0;
  const states = overview.tenants.by_state;
  return (states.degraded ?? 0) + (states.paused ?? 0) + (overview.tenants.unserved ?? 0);
}

/** A hidden tab without news for longer says no verdict any more, in milliseconds. */
const STALE = 60_000;
/** The browser has said that it stops this page: until it is seen again nothing here can be true. */
let frozen = false;

/** Whether what this tab knows may be old, as browsers slow down and stop those that are not seen. */
function isAsleep() {
  return frozen || (document.hidden && live.lastData !== null && Date.now() - live.lastData > STALE);
}

function wake() {
  if (document.hidden) return;
  const slept = isAsleep() || (live.lastData !== null && Date.now() - live.lastData > STALE);
  frozen = false;
  showTitle();
  if (!slept || !live.session) return;
  retryNow();
  load().catch(() => {});
}

// The last moment at which the title can be changed before the page is stopped.
document.addEventListener("freeze", () => {
  frozen = true;
  showTitle();
});
document.addEventListener("resume", wake);
document.addEventListener("visibilitychange", wake);

/** The tab of the browser tells the verdict too: it is what one sees when another page is in front. */
function showTitle() {
  const overview = live.overview;
  const lost = live.state === "lost" && live.lastData !== null;
  if (isAsleep()) {
    document.title = `asleep · ${title} · balance-sync`;
    setAttr(document.querySelector("link[rel=icon]"), "href", "/assets/icon.svg");
    return;
  }
  const bad = !lost && overview && ["attention", "behind", "degraded"].includes(overview.verdict);
  const sign = lost || overview?.verdict === "unknown" ? "? " : bad ? "! " : "";
  // A hidden tab looks rarely: what it shows was true within the last minute, or it says that it is asleep.
  document.title = `${sign}${title} · balance-sync`;
  setAttr(document.querySelector("link[rel=icon]"), "href", bad || lost ? "/assets/icon-alert.svg" : "/assets/icon.svg");
}

const THEMES = ["auto", "dark", "light"];
const THEME_ICONS = { auto: "auto", dark: "moon", light: "sun" };

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // It holds for this page then.
  }
  showTheme();
}

/** Shows all times in the other zone: the page is built anew. */
function nextZone() {
  switchZone();
  showZone();
  show();
}

function showZone() {
  setText(zoneButton, zoneName());
  setAttr(zoneButton, "aria-label", `Times are in ${zoneName()}: show the other zone`);
  setAttr(zoneButton, "title", `Times are in ${zoneName()}; UTC or this browser's zone`);
}

function showTheme() {
  const name = { auto: "as the system", dark: "dark", light: "light" }[theme()];
  setIcon(themeIcon, THEME_ICONS[theme()]);
  setAttr(themeButton, "aria-label", `Theme: ${name}`);
  setAttr(themeButton, "title", `Theme: ${name}`);
}

// --- the connection ---------------------------------------------------------------------------------------------------

const bannerText = h("span");
const banner = h("div.banner", { role: "alert", hidden: true, data: { level: "bad" } }, icon("alert"), bannerText, button("Try now", "retry", retryNow, "button.button.small"));
const redisText = h("span");
const redisBanner = h("div.banner", { role: "alert", hidden: true, data: { level: "bad" } }, icon("alert"), redisText);
const clockText = h("span");
const clockBanner = h("div.banner", { role: "status", hidden: true, data: { level: "warn" } }, icon("alert"), clockText);
document.querySelector(".banners")?.append(banner, redisBanner, clockBanner);

function showConnection() {
  const states = { connecting: "Connecting", open: "Live", lost: "Not live" };
  setAttr(connection, "data-state", live.state);
  setText(lampText, states[live.state]);
  const lost = live.state === "lost" && live.lostSince !== null;
  setShown(banner, lost && live.session);
  document.body.classList.toggle("is-stale", Boolean(lost));
  if (live.lostSince === null || !lost) return;
  const since = `Connection lost at ${clock(live.lostSince)}, ${span(Math.max(1, Math.round((Date.now() - live.lostSince) / 1000)))} ago.`;
  const data = live.lastData === null ? "No data have come yet." : `What you see is from ${clock(live.lastData)}.`;
  setText(bannerText, `${since} ${data} Trying again…`);
}

function showRedis(overview) {
  const refuses = overview.redis === "refuses_writes";
  const ill = refuses || overview.redis === "unavailable";
  setShown(redisBanner, ill);
  if (ill) {
    const detail = overview.detail ? ` (${visible(overview.detail)})` : "";
    if (refuses) setText(redisText, `Redis refuses writes${detail}. Nothing is being synced and nothing is lost; other workers can't report: they are shown as last reported.`);
    else setText(redisText, `Redis can't be reached${detail}. Nothing is being synced and nothing is lost: the numbers below are the last known.`);
  }
}

/** A worker's clock may be off by so many seconds before its page says so. */
const CLOCK_TOLERANCE = 1;

function showClock(/** @type {Api.Overview} */ overview) {
  const offset = overview.clock_offset_seconds ?? 0;
  const wrong = Math.abs(offset) > CLOCK_TOLERANCE;
  setShown(clockBanner, wrong);
  if (wrong) setText(clockText, `The clock of the worker that serves this page is ${span(Math.abs(offset))} ${offset > 0 ? "ahead of" : "behind"} Redis's: times and ages here are wrong by as much.`);
}

let lastVerdict = null;

/** Says a changed verdict to a screen reader; not every update. */
function announce(overview) {
  const reasons = overview.reasons.length ? `: ${overview.reasons[0]}` : "";
  if (lastVerdict !== null && lastVerdict !== overview.verdict) setText(document.querySelector("#announce"), visible(`Now ${overview.verdict}${reasons}`));
  lastVerdict = overview.verdict;
}

subscribe("connection", () => {
  showConnection();
  showTitle();
});
subscribe("overview", (overview) => {
  showRedis(overview);
  showClock(overview);
  showCounts();
  showTitle();
  announce(overview);
});
setInterval(() => {
  if (live.state === "lost") showConnection();
  if (isAsleep()) showTitle();
  page?.tick?.();
}, 1000);

// --- keys -------------------------------------------------------------------------------------------------------------

let leader = 0;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = /** @type {HTMLElement} */ (event.target);
  if (target.closest("input, select")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (!live.session || main.querySelector(".sign-in")) return;
  const afterG = Date.now() - leader < 1500;
  leader = event.key === "g" ? Date.now() : 0;
  const tab = afterG ? TABS.find(([, , key]) => key === event.key) : null;
  if (tab) {
    event.preventDefault();
    navigate(tab[0]);
  } else if (event.key === "/") {
    const search = searchField();
    event.preventDefault();
    if (search) search.focus();
    else navigate("/tenants");
    if (!search) searchField()?.focus();
  } else if (event.key === "?") {
    showKeys();
  }
});

/** @returns {HTMLElement | null} */
function searchField() {
  return main.querySelector("[data-search]");
}

function showKeys() {
  /** @type {[string[], string][]} */
  const rows = [
    [["/"], "search on this page"],
    [["↑", "↓", "Enter"], "choose and open a tenant in the table"],
    [["Esc"], "close a dialog, leave a field"],
    ...TABS.map(([, name, key]) => /** @type {[string[], string]} */ ([["g", key], name])),
    [["?"], "this list"],
  ];
  showDialog("Keys", h("dl.keys", rows.flatMap(([keys, what]) => [h("dt", keys.map((key) => h("kbd", key))), h("dd", what)])));
}

// --- beginning --------------------------------------------------------------------------------------------------------

whenSignedOut(() => {
  if (live.session && live.session.role !== "none") {
    live.session = { ...live.session, role: "none", auth_required: true };
    disconnect();
    show();
  }
});

async function begin() {
  showTheme();
  showZone();
  showConnection();
  /** @type {Api.Session} */
  let session;
  try {
    session = await get(["session"]);
    live.session = session;
  } catch (problem) {
    live.session = null;
    main.replaceChildren(h("div.page", failed(problem instanceof Problem ? problem : new Problem(0, "That went wrong", String(problem)), begin)));
    return;
  }
  if (session.role === "none" && session.auth_required) {
    disconnect();
    live.overview = null;
    show();
    return;
  }
  show({ focus: document.activeElement === document.body });
  await load().catch(() => {});
}

begin();

