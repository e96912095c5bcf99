// The prompt templates, and their editors.

import { call } from "./api.js";
import { element, find } from "./dom.js";

let editors = [];

/** Loads the teacher's templates; calls `onChange` after each edit. */
export async function load(onChange) {
  const { name, templates } = await call("playground/prompts");
  editors = templates.map((template) => editor(template, onChange));
  find("set").textContent = name ?? "";
  find("templates").replaceChildren(...editors.map(({ box }) => box));
  find("templates-hint").textContent = templates.length
    ? "Jinja templates. Edit one and ask again. The answer is not stored, and the files of the prompt set do not change."
    : "This teacher has no prompt templates.";
  find("ask-edited").hidden = templates.length === 0;
  find("mode").hidden = templates.length === 0;
  onChange();
}

/** Returns the edited templates: {name: text}. */
export function edits() {
  return Object.fromEntries(editors.filter(isEdited).map(({ name, area }) => [name, area.value]));
}

/** Shows a Failure's message beside the template that it names; returns false if it names none. */
export function blame(failure) {
  for (const { name, box, error } of editors) {
    const named = failure?.field === name;
    box.classList.toggle("bad", named);
    error.textContent = named ? failure.message.replace(`${name}: `, "") : "";
  }
  return editors.some(({ name }) => failure?.field === name);
}

const isEdited = ({ area, source }) => area.value !== source;

function editor({ name, source, variables }, onChange) {
  const area = element("textarea", { value: source, spellcheck: false, maxLength: 32768 });
  area.setAttribute("aria-label", `Template ${name}`);
  const reset = element("button", { type: "button", disabled: true }, "Reset");
  reset.setAttribute("aria-label", `Reset ${name}`);
  const error = element("p", { className: "error" });
  error.setAttribute("role", "alert");
  const title = element("div", { className: "title" }, element("h3", {}, name), reset);
  const hint = element("p", { className: "hint" }, `variables: ${variables.join(", ")}`);
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
