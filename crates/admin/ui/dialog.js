// Dialogs and toasts. `<dialog>` brings the focus trap, Escape and the way back of the focus by itself.

import { h, icon, setAttr, setIcon, setText } from "./dom.js";
import { button } from "./parts.js";

/** How long a toast that tells an end stays. One that tells a failure stays until it is closed. */
const STAYS = 8_000;

/**
 * Asks before something is done. Resolves to `{ note }`, or to null when it was called off.
 * `typed`: a text that has to be typed first, for what can't be undone in bulk.
 *
 * @param {{ title: string, text: string, facts?: string[], confirm: string, danger?: boolean, note?: boolean | "needed", typed?: string | number | null }} options
 * @returns {Promise<{ note: string | null } | null>}
 */
export function confirmAction({ title, text, facts = [], confirm, danger = false, note = true, typed = null }) {
  return new Promise((resolve) => {
    const needed = note === "needed";
    const noteField = h("input", { id: "note", maxlength: "500", required: needed, pattern: needed ? ".*\\S.*" : null, autocomplete: "off", placeholder: "Why? It will stand in the log." });
    const typedField = h("input", { id: "typed", autocomplete: "off", spellcheck: "false" });
    const yes = h(danger ? "button.button.danger" : "button.button.primary", { type: "submit" }, confirm);
    if (typed !== null) {
      yes.disabled = true;
      typedField.addEventListener("input", () => {
        yes.disabled = typedField.value.trim() !== String(typed);
      });
    }
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "dialog-title" }, title),
      h("p", { id: "dialog-text" }, text),
      facts.length ? h("ul.facts", facts.map((fact) => h("li", fact))) : null,
      typed !== null ? h("label", { for: "typed" }, "Type ", h("code", typed), " to go on", typedField) : null,
      note ? h("label", { for: "note" }, needed ? "Note" : "Note (optional)", noteField) : null,
      h("div.dialog-buttons", button("Cancel", null, () => dialog.close()), yes),
    );
    const dialog = h("dialog.dialog", { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" }, form);
    /** @type {{ note: string | null } | null} */
    let answer = null;
    form.addEventListener("submit", () => {
      answer = { note: noteField.value.trim() || null };
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    // A click beside it closes it, as people expect; but not a drag that began inside.
    let downOutside = false;
    dialog.addEventListener("pointerdown", (event) => (downOutside = event.target === dialog));
    dialog.addEventListener("click", (event) => {
      if (downOutside && event.target === dialog) dialog.close();
    });
    document.body.append(dialog);
    dialog.showModal();
    (typed !== null ? typedField : note ? noteField : yes).focus();
  });
}

/** Shows content in a dialog that is only read. */
export function showDialog(title, ...content) {
  const close = button("Close", null, () => dialog.close());
  const dialog = h(
    "dialog.dialog.wide",
    { "aria-labelledby": "dialog-title" },
    h("h2", { id: "dialog-title" }, title),
    ...content,
    h("div.dialog-buttons", close),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
  return dialog;
}

/**
 * A message in the corner that can change: `update(level, text)`. Levels: wait, good, bad. With `stop` it has a button for that
 * until it is over.
 * @param {string} text
 * @param {(() => void) | null} [stop]
 */
export function toast(text, stop = null) {
  const picture = icon("dots");
  const words = h("span.toast-text", text);
  const close = h("button.toast-close", { type: "button", "aria-label": "Close message" }, icon("cross"));
  const stopButton = stop ? button("Stop", null, stop, "button.button.small") : null;
  const node = h("div.toast", { data: { level: "wait" } }, picture, words, stopButton, close);
  close.addEventListener("click", () => node.remove());
  document.querySelector(".toasts")?.append(node);
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  return {
    node,
    update(level, message) {
      setAttr(node, "data-level", level);
      setIcon(picture, { wait: "dots", good: "ok", bad: "alert" }[level]);
      setText(words, message);
      if (level !== "wait") stopButton?.remove();
      clearTimeout(timer);
      if (level === "good") timer = setTimeout(() => node.remove(), STAYS);
    },
  };
}
