// Making and updating elements. Whatever comes from outside (tenant ids, members, details) gets in as text only: nothing
// here, or anywhere in this folder, parses markup.

import { at } from "./base.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: h("a.button", { href, on: { click } }, "text", child). Children that are null or false are left out.
 * @param {string} spec
 * @param {...any} rest
 * @returns {any}
 */
export function h(spec, ...rest) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  return fill(node, rest);
}

/**
 * The same for SVG.
 * @param {string} spec
 * @param {...any} rest
 * @returns {any}
 */
export function s(spec, ...rest) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElementNS(SVG, tag);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  return fill(node, rest);
}

function fill(node, rest) {
  const isProps = rest[0] && typeof rest[0] === "object" && !(rest[0] instanceof Node) && !Array.isArray(rest[0]);
  if (isProps) setProps(node, rest.shift());
  node.append(...rest.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function setProps(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name === "data") {
      Object.assign(node.dataset, value);
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, where(name, value));
    }
  }
}

/** Addresses of the dashboard's own begin with a slash. */
function where(name, value) {
  return name === "href" && String(value).startsWith("/") ? at(value) : value;
}

/** Sets the text if it is another one: an unchanged node keeps the reader's selection and costs no layout. */
export function setText(node, text) {
  const wanted = text ?? "";
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Sets, or with null removes, an attribute if it differs. */
export function setAttr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(where(name, value))) {
    node.setAttribute(name, where(name, value));
  }
}

/** Shows or hides. */
export function setShown(node, shown) {
  if (node.hidden === Boolean(shown)) node.hidden = !shown;
}

/**
 * Keeps the children of `container` in step with a list, by key. A row that stays is updated in place, so focus,
 * selection and an open menu survive the update that comes every two seconds.
 * `create(item)` gives `{ node, update(item) }`.
 *
 * @template T
 * @param {HTMLElement} container
 * @param {(item: T) => unknown} keyOf
 * @param {(item: T) => { node: HTMLElement, update: (item: T) => void }} create
 */
export function keyed(container, keyOf, create) {
  let known = new Map();
  return (/** @type {T[]} */ items) => {
    const next = new Map();
    let place = container.firstChild;
    for (const item of items) {
      const key = keyOf(item);
      if (next.has(key)) continue;
      const entry = known.get(key) ?? create(item);
      entry.update(item);
      next.set(key, entry);
      if (place && entry.node === place) place = place.nextSibling;
      else container.insertBefore(entry.node, place);
    }
    for (const [key, entry] of known) if (!next.has(key)) entry.node.remove();
    known = next;
  };
}

// Characters that would hide themselves or turn the text around them: shown as what they are.
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** A foreign text in which nothing hides: control characters and marks of direction become `\u{…}`. */
export function visible(text) {
  return String(text ?? "").replace(INVISIBLE, (c) => `\\u{${c.charCodeAt(0).toString(16)}}`);
}

const ICONS = {
  ok: "M3.5 8.5l3 3 6-7",
  alert: "M8 2.5 14.5 13.5h-13zM8 6.5v3.2M8 11.5v.1",
  clock: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12zM8 5v3.3l2.2 1.4",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3.5v9l7-4.5z",
  question: "M5.8 6a2.3 2.3 0 1 1 3.3 2.1c-.8.4-1.1.8-1.1 1.7M8 12.3v.1",
  idle: "M8 11.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7z",
  sync: "M2.5 6h9M9 3.2 11.8 6 9 8.8M13.5 10h-9M7 7.2 4.2 10 7 12.8",
  dots: "M4 8v.1M8 8v.1M12 8v.1",
  stop: "M4.5 4.5h7v7h-7z",
  cross: "M4 4l8 8M12 4l-8 8",
  bolt: "M9 2 4 9h4l-1 5 5-7H8z",
  key: "M10 9.5a3.2 3.2 0 1 0-3-2L2.5 12v1.8h2.3v-1.6h1.6v-1.6L7.8 9.1M11 5.2v.1",
  sun: "M8 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM8 1.5v1.2M8 13.3v1.2M1.5 8h1.2M13.3 8h1.2M3.4 3.4l.8.8M11.8 11.8l.8.8M12.6 3.4l-.8.8M4.2 11.8l-.8.8",
  moon: "M13.5 9.5A5.8 5.8 0 0 1 6.5 2.5a5.8 5.8 0 1 0 7 7z",
  auto: "M8 2a6 6 0 1 0 0 12zM8 2a6 6 0 0 1 0 12",
  search: "M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM10.4 10.4 14 14",
  chevron: "M6 3.5 10.5 8 6 12.5",
  retry: "M13 8a5 5 0 1 1-1.7-3.7M13 2.5v2.5h-2.5",
  trash: "M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.6 9h5.8l.6-9M6.8 7v4M9.2 7v4",
  drain: "M3 3h10M5 6h6M8 8.5v5M5.8 11.3 8 13.5l2.2-2.2",
};

/** A small picture beside a word; never alone, so it is hidden from screen readers. */
export function icon(name) {
  return s("svg.icon", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" }, s("path", { d: ICONS[name] }));
}

/** Changes the picture of an icon. */
export function setIcon(node, name) {
  setAttr(node.firstChild, "d", ICONS[name]);
}
