// What a list shows as a file: CSV for a spreadsheet, JSON for a program.

import { toast } from "./dialog.js";
import { h, visible } from "./dom.js";
import { button } from "./parts.js";

/**
 * Buttons that save what `rows` gives under this name.
 * @param {string} name
 * @param {() => Promise<object[]> | object[]} rows
 */
export function exportButtons(name, rows) {
  const save = async (/** @type {"csv" | "json"} */ kind) => {
    try {
      const all = await rows();
      const text = kind === "csv" ? csv(all) : JSON.stringify(all, null, 1);
      const type = kind === "csv" ? "text/csv" : "application/json";
      const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
      h("a", { href: url, download: `${name}.${kind}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (problem) {
      toast("").update("bad", `Export: ${visible(problem.message)}`);
    }
  };
  const one = (/** @type {"csv" | "json"} */ kind, label) => {
    const node = button(label, null, () => save(kind), "button.button.small");
    node.setAttribute("aria-label", `Save ${name} as ${label}`);
    return node;
  };
  return h("div.export", one("csv", "CSV"), one("json", "JSON"));
}

/** RFC 4180: a line of titles, and one per row. What is no plain value is written as JSON. */
export function csv(/** @type {object[]} */ rows) {
  const titles = Object.keys(rows[0] ?? {});
  const lines = rows.map((row) => titles.map((title) => cell(row[title])).join(","));
  return `${[titles.join(","), ...lines].join("\r\n")}\r\n`;
}

function cell(/** @type {unknown} */ value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  const text = typeof value === "string" ? value : JSON.stringify(value);
  // A spreadsheet would take it for a formula, and run it.
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return `"${visible(safe).replaceAll('"', '""')}"`;
}
