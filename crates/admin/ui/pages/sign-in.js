// Asking for a token. It goes into a cookie that no script can read; nothing is kept here.

import { post } from "../api.js";
import { h, icon, setShown, setText } from "../dom.js";
import { live } from "../live.js";

export function signInPage({ signedIn }) {
  const field = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true, "data-first": "", spellcheck: "false" });
  const message = h("p.field-error", { role: "alert", hidden: true });
  const submit = h("button.button.primary", { type: "submit" }, "Sign in");
  const form = h(
    "form.card.sign-in",
    h("div.sign-in-head", icon("key"), h("h1", { tabindex: "-1" }, "Sign in")),
    h("p", "This worker wants a token: the reader's to look, the operator's to act and to see amounts. They stand in its configuration, ", h("code", "[admin]"), "."),
    h("label", { for: "token" }, "Token", field),
    message,
    submit,
    live.session?.worker ? h("p.quiet", `Worker ${live.session.worker}, version ${live.session.version}`) : null,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    setShown(message, false);
    try {
      await post(["session"], { token: field.value });
      field.value = "";
      await signedIn();
    } catch (problem) {
      setText(message, problem.status === 401 || problem.status === 403 ? "That token is not known here." : problem.message);
      setShown(message, true);
      field.select();
      field.focus();
    } finally {
      submit.disabled = false;
    }
  });
  return { node: h("div.page.narrow", form) };
}
