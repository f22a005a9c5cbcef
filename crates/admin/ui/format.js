// Numbers, spans of time and moments as text. Unknown is "–", never 0.

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 12,345 */
export function count(value) {
  return isNumber(value) ? whole.format(value) : UNKNOWN;
}

/** 0 · 0.4 · 8.5 · 1,234 */
export function rate(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value > 0 && value < 0.05) return "<0.1";
  return value < 10 ? fine.format(value) : whole.format(value);
}

/** 640 µs · 12 ms · 1.2 s · 3 min 20 s · 2 h 5 min · 3 d 4 h: two units at most, as one reads it out. */
export function span(seconds) {
  if (!isNumber(seconds)) return UNKNOWN;
  if (seconds <= 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${fine.format(seconds)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const total = Math.round(seconds);
  /** @type {[number, string][]} */
  const parts = [
    [Math.floor(total / 86400), "d"],
    [Math.floor(total / 3600) % 24, "h"],
    [Math.floor(total / 60) % 60, "min"],
    [total % 60, "s"],
  ];
  const first = parts.findIndex(([amount]) => amount > 0);
  return parts
    .slice(first, first + 2)
    .filter(([amount]) => amount > 0)
    .map(([amount, unit]) => `${amount} ${unit}`)
    .join(" ");
}

/** The same in one unit, for narrow columns and for what is long ago: 640 ms · 14 s · 3 min · 5 h · 12 d. */
export function brief(seconds) {
  if (!isNumber(seconds) || seconds < 59.5) return span(seconds);
  /** @type {[number, string]} */
  const [size, unit] = seconds < 5_970 ? [60, "min"] : seconds < 171_000 ? [3600, "h"] : [86_400, "d"];
  return `${whole.format(seconds / size)} ${unit}`;
}

/** 48 MiB */
export function bytes(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value < 1024 * 1024) return `${whole.format(value / 1024)} KiB`;
  if (value < 1024 ** 3) return `${whole.format(value / 1024 ** 2)} MiB`;
  return `${fine.format(value / 1024 ** 3)} GiB`;
}

/** "1 tenant", "3 tenants" */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** A name of the API as words: `postgres_credentials` → "postgres credentials". */
export function words(name) {
  return String(name ?? "").replaceAll("_", " ");
}

/** Milliseconds since 1970 of a time of the API; null if there is none. */
export function moment(text) {
  const at = text === null || text === undefined ? NaN : Date.parse(text);
  return Number.isNaN(at) ? null : at;
}

/** Formats for one zone; `timeZone` undefined = the browser's. */
function formatsOf(/** @type {string | undefined} */ timeZone) {
  const format = (/** @type {Intl.DateTimeFormatOptions} */ options) => new Intl.DateTimeFormat("en-GB", { ...options, timeZone });
  return {
    clock: format({ hour: "2-digit", minute: "2-digit", second: "2-digit" }),
    day: format({ day: "numeric", month: "short" }),
    date: format({ dateStyle: "short" }),
    minute: format({ hour: "2-digit", minute: "2-digit" }),
    zone: format({ timeZoneName: "shortOffset" }),
  };
}

const ZONE_KEY = "zone";
let utc = storedZone() === "utc";
let formats = formatsOf(utc ? "UTC" : undefined);

function storedZone() {
  try {
    return localStorage.getItem(ZONE_KEY);
  } catch {
    return null;
  }
}

/** The zone in which times are shown: "UTC", "GMT+2". */
export function zoneName() {
  if (utc) return "UTC";
  return formats.zone.formatToParts(new Date()).find((part) => part.type === "timeZoneName")?.value ?? "local";
}

/** Shows times in UTC instead of the browser's zone, or the other way round. */
export function switchZone() {
  utc = !utc;
  formats = formatsOf(utc ? "UTC" : undefined);
  try {
    localStorage.setItem(ZONE_KEY, utc ? "utc" : "local");
  } catch {
    // It holds for this page then.
  }
}

/** 14:03:12, with the day if it is another one. In the zone that the page's head names. */
export function clock(at, now = Date.now()) {
  if (at === null || at === undefined) return UNKNOWN;
  const date = new Date(at);
  const time = formats.clock.format(date);
  return formats.date.format(date) === formats.date.format(new Date(now)) ? time : `${formats.day.format(date)} ${time}`;
}

/** 14:03 */
export function minute(at) {
  return formats.minute.format(new Date(at));
}

/** "12 s ago", "just now", "in 3 min" */
export function ago(at, now) {
  if (at === null || at === undefined) return UNKNOWN;
  const seconds = (now - at) / 1000;
  if (Math.abs(seconds) < 1.5) return "just now";
  const coarse = brief(Math.round(Math.abs(seconds)));
  return seconds > 0 ? `${coarse} ago` : `in ${coarse}`;
}
