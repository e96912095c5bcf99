// An answer: its probabilities as bars beside the planner's, its texts and its times.

import { element, fillList, find } from "./dom.js";

/** Shows the bars of the teacher and the planner; `answer` and `planned` may be null. */
export function showBars(actions, answer, planned) {
  const teacher = answer?.probabilities ?? {};
  const planner = planned?.probabilities ?? {};
  const bars = find("bars");
  if (bars.dataset.actions !== actions.join()) {
    bars.dataset.actions = actions.join();
    bars.replaceChildren(...actions.map(emptyBar));
  }
  for (const bar of bars.children) {
    const action = bar.dataset.action;
    bar.classList.toggle("best", answer?.action === action);
    bar.setAttribute("aria-label", `${action}: teacher ${number(teacher[action])}, planner ${number(planner[action])}`);
    for (const [source, value] of [["teacher", teacher[action]], ["planner", planner[action]]]) {
      bar.querySelector(`.track.${source} .fill`).style.width = `${100 * (value ?? 0)}%`;
      bar.querySelector(`.number.${source}`).textContent = number(value);
    }
  }
  find("agreement").textContent = answer?.action && planned ? agreement(answer.action, planner) : "";
}

function emptyBar(action) {
  const bar = element("div", { className: "bar" }, element("span", { className: "name" }, action));
  bar.dataset.action = action;
  bar.setAttribute("role", "listitem");
  for (const source of ["teacher", "planner"]) {
    bar.append(
      element("span", { className: `track ${source}` }, element("span", { className: "fill" })),
      element("span", { className: `number ${source}` }),
    );
  }
  return bar;
}

/** Says whether the teacher's best action is one of the planner's best. */
function agreement(action, planner) {
  const most = Math.max(...Object.values(planner));
  const best = Object.keys(planner).filter((name) => planner[name] > most - 1e-6);
  return best.includes(action) ? `✓ ${action} is optimal` : `✗ ${action}; optimal: ${best.join(" or ")}`;
}

/** Shows the texts and times of an answer; null clears them. */
export function showWords(answer) {
  const { analysis: first, action: second } = answer?.stages ?? {};
  find("analysis").replaceChildren(...(answer ? inWords(answer.analysis) : []));
  find("raw-analysis").textContent = first?.text ?? "";
  find("raw-action").textContent = second?.text ?? "";
  const times = Object.entries(answer?.milliseconds ?? {}).map(([part, ms]) => [part, milliseconds(ms)]);
  for (const [stage, report] of [["analysis", first], ["action", second]]) {
    if (!report) continue;
    times.push([answer.stored ? `${stage} then` : stage, milliseconds(report.milliseconds)]);
  }
  if (first?.tokens) times.push(["tokens", second ? `${first.tokens} + ${second.tokens}` : first.tokens]);
  if (answer?.confidence != null) times.push(["confidence", answer.confidence.toFixed(3)]);
  if (second?.label_mass != null) times.push(["label mass", second.label_mass.toPrecision(3)]);
  fillList(find("times"), times, true);
}

/** Formats JSON as a table and leaves other text unchanged. */
function inWords(text) {
  let said;
  try {
    said = JSON.parse(text);
  } catch {
    return [element("p", {}, text)];
  }
  if (said === null || typeof said !== "object" || Array.isArray(said)) return [element("p", {}, text)];
  const list = element("dl", { className: "facts" });
  fillList(list, Object.entries(said).map(([name, value]) => [name, brief(value)]));
  return [list];
}

function brief(value) {
  if (Array.isArray(value)) return value.length ? value.map((part) => JSON.stringify(part)).join(" ") : "none";
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, part]) => `${name} ${part}`).join(", ");
}

const number = (value) => (value === undefined ? "–" : value.toFixed(3));
const milliseconds = (value) => (value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value).toLocaleString("en")} ms`);
