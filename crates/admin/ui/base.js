// Where the dashboard is below its host. Behind a proxy that may be under any prefix, which the proxy takes off, so that only
// the browser knows it: this module is at `<prefix>/assets/base.js`. Everywhere else paths begin at the dashboard's own root.

/** The prefix, without a slash at its end; empty where there is none. */
const PREFIX = new URL("..", import.meta.url).pathname.replace(/\/+$/, "");

/** A path of the dashboard as the browser needs it. */
export function at(path) {
  return PREFIX + path;
}

/** The path that is shown, from the dashboard's root. */
export function here() {
  return location.pathname.slice(PREFIX.length) || "/";
}

/** Whether a path of this host belongs to the dashboard. */
export function isOurs(pathname) {
  return pathname.startsWith(`${PREFIX}/`);
}
