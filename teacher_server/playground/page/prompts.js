// The prompt templates: shown, edited, put back.

import { call } from "./api.js";
import { element, find } from "./dom.js";

let editors = [];

/** Loads the templates of the teacher that answers; `onChange` is called after each edit. */
export async function load(onChange) {
  const { name, templates } = await call("look/prompts");
  editors = templates.map((template) => editor(template, onChange));
  find("set").textContent = name ?? "";
  find("templates").replaceChildren(...editors.map(({ box }) => box));
  find("templates-hint").textContent = templates.length
    ? "Jinja templates. Edit one and ask again: the answer is not stored, and the files of the set stay as they are."
    : "This teacher reads the picture by itself and has no prompt templates.";
  find("ask-edited").hidden = templates.length === 0;
  find("mode").hidden = templates.length === 0;
  onChange();
}

/** Those that are not as loaded: {name: text}. */
export function edits() {
  return Object.fromEntries(editors.filter(isEdited).map(({ name, area }) => [name, area.value]));
}

/** Shows what is wrong beside the template that a Failure names; false if it names none. */
export function blame(failure) {
  for (const { name, box, error } of editors) {
    const guilty = failure?.field === name;
    box.classList.toggle("bad", guilty);
    error.textContent = guilty ? failure.message.replace(`${name}: `, "") : "";
  }
  return editors.some(({ name }) => failure?.field === name);
}

const isEdited = ({ area, source }) => area.value !== source;

function editor({ name, source, variables }, onChange) {
  const area = element("textarea", { value: source, spellcheck: false, maxLength: 32768 });
  area.setAttribute("aria-label", `Template ${name}`);
  const reset = element("button", { type: "button", disabled: true }, "Put back");
  reset.setAttribute("aria-label", `Put ${name} back as loaded`);
  const error = element("p", { className: "error" });
  error.setAttribute("role", "alert");
  const title = element("div", { className: "title" }, element("h3", {}, name), reset);
  const hint = element("p", { className: "hint" }, `knows ${variables.join(", ")}`);
  const box = element("div", { className: "template" }, title, area, error, hint);
  const made = { name, source, area, box, error };
  area.oninput = () => {
    box.classList.toggle("edited", isEdited(made));
    reset.disabled = !isEdited(made);
    onChange();
  };
  reset.onclick = () => {
    area.value = source;
    area.oninput();
    blame(null);
  };
  return made;
}
