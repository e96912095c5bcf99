// The page: the moment of an episode, the question about it, and the keys that step through the episode.

import * as answers from "./answer.js";
import { call } from "./api.js";
import { element, find } from "./dom.js";
import { watch } from "./header.js";
import * as pictures from "./picture.js";
import * as prompts from "./prompts.js";

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "forward", p: "pickup", d: "done", o: "toggle" };
const HINTS = { left: "←", right: "→", forward: "↑", pickup: "P", done: "D", toggle: "O" };
const ENDS = { success: "Success", failure: "Failure", time_out: "Out of time" };
const PACE_MS = 250;

let tasks = {};
let ready = false;
let playing = 0; // the number of the running playback; 0: none is running
let loading = 0; // scenes that are being loaded; only the last one is shown
let moment = null; // {env_id, seed, actions}; null for the user's own picture
let scene = null;
let image = null;
let answer = null;
let planned = null;
let turn = 0; // the number of the picture; replies about earlier pictures are dropped
let scenes = 0;
let plays = 0;
let comparing = Promise.resolve();
let inFlight = null; // the AbortController of the question in flight

const task = () => tasks[find("task").value];
const question = () => ({ image, mission: find("mission").value, task: find("task").value, actions: task().actions });
const mode = () => document.querySelector("input[name=mode]:checked").value;
const isOver = () => Boolean(scene?.end);
const isOwn = () => Boolean(image) && !moment;

async function onTeacher() {
  tasks = await call("playground/tasks");
  const before = find("task").value;
  find("task").replaceChildren(...Object.keys(tasks).map((key) => element("option", { value: key }, key)));
  if (before in tasks) find("task").value = before;
  await prompts.load(onTemplates);
  if (moment && before in tasks) await present();
  else await onTask();
}

async function onTask() {
  const { env_ids: ids, untrained, first, objective } = task();
  const note = (id) => (untrained.includes(id) ? " · not trained on" : "");
  const shorter = (id) => id.replace(/^MiniGrid-/, "").replace(/-v0$/, "") + note(id);
  find("objective").textContent = objective ?? "";
  find("env").replaceChildren(...ids.map((id) => element("option", { value: id }, shorter(id))));
  find("env").value = first;
  if (isOwn()) {
    proposeMission();
    await present();
  } else await begin();
}

/** Fills in the mission of the user's own picture if the task has only one; keeps what the user wrote. */
function proposeMission(replaced) {
  const field = find("mission");
  const proposed = Object.values(tasks).map(({ mission }) => mission);
  if (["", replaced, ...proposed].includes(field.value)) field.value = task()?.mission ?? "";
}

async function begin() {
  playing = 0;
  const seed = find("seed");
  if (!seed.reportValidity() || seed.value === "") return;
  await go({ env_id: find("env").value, seed: Number(seed.value), actions: [] });
}

/** Goes to a moment of an episode; stays at the present one if there is no such moment. */
async function go(to) {
  const mine = ++scenes;
  loading += 1;
  try {
    const found = await call("playground/scene", to);
    if (mine !== scenes) return;
    moment = to;
    scene = found;
    image = found.image;
    find("mission").value = found.mission;
    find("scene-error").textContent = "";
  } catch (failure) {
    playing = 0;
    find("scene-error").textContent = failure.words ?? String(failure);
    return;
  } finally {
    loading -= 1;
  }
  await present();
}

/** Shows the picture as the teacher sees it and the planner's answer; asks the teacher if the box is checked. */
async function present() {
  const mine = ++turn;
  // Only the user knows the mission of their own picture: they ask by the button
  const asks = find("auto").checked && ready && !isOver() && !isOwn();
  inFlight?.abort();
  answer = planned = null;
  find("answer-error").textContent = find("planner-error").textContent = find("progress").textContent = "";
  // The previous answer stays, dimmed, until the next one, so that the layout does not jump
  find("said").classList.toggle("stale", asks);
  showEpisode();
  const seen = prepare(mine);
  comparing = isOver() || isOwn() ? Promise.resolve() : compare(mine);
  if (asks) await ask();
  else comparing.then(() => mine === turn && showAnswer());
  await seen;
}

async function prepare(mine) {
  let prepared = null;
  let wrong = "";
  try {
    prepared = await call("playground/prepared", { image });
  } catch (failure) {
    wrong = failure.words ?? String(failure);
  }
  if (mine !== turn) return;
  find("scene-error").textContent = wrong;
  pictures.show({ drawn: image, prepared });
}

async function compare(mine) {
  let found = null;
  let wrong = "";
  try {
    found = await call("playground/planner", question());
  } catch (failure) {
    wrong = `No answer of the planner: ${failure.words ?? failure}`;
  }
  if (mine !== turn) return;
  planned = found;
  find("planner-error").textContent = wrong;
}

async function ask() {
  inFlight?.abort();
  const mine = (inFlight = new AbortController());
  const edited = mode() === "edited";
  const began = performance.now();
  const clock = () => (find("progress").textContent = `asking… ${((performance.now() - began) / 1000).toFixed(1)} s`);
  const ticking = setInterval(clock, 100);
  find("answer-error").textContent = "";
  prompts.blame(null);
  if (isOwn()) comparing = compare(turn);
  clock();
  let words = "";
  try {
    const about = edited ? { ...question(), templates: prompts.edits() } : question();
    answer = await call(edited ? "playground/ask" : "policy", about, mine.signal);
    words = edited ? `edited templates, not stored · ${answer.teacher}` : answer.stored ? "from the store" : "new answer";
    await comparing;
    if (!mine.signal.aborted) showAnswer();
  } catch (failure) {
    if (mine.signal.aborted) return;
    playing = 0;
    answer = null;
    const beside = prompts.blame(failure);
    await comparing;
    find("answer-error").textContent = beside ? `${failure.field} is not valid: see below.` : failure.words ?? failure;
    showAnswer(failure.raw);
  } finally {
    clearInterval(ticking);
    if (inFlight === mine) find("progress").textContent = words;
  }
}

/** Shows the present answer; `raw` is the teacher's text where it could not be read. */
function showAnswer(raw = null) {
  if (!task()) return;
  answers.showBars(task().actions, answer, planned);
  answers.showWords(answer);
  if (raw) find("raw-analysis").textContent = raw;
  find("raw").open ||= Boolean(raw);
  find("raw-planner").textContent = planned?.analysis ?? "";
  find("said").classList.remove("stale");
  pictures.show({ analysis: answer?.analysis ?? null });
  enable();
}

function showEpisode() {
  const has = moment ? task().actions : [];
  const buttons = find("actions");
  if (buttons.dataset.actions !== has.join()) {
    buttons.dataset.actions = has.join();
    buttons.replaceChildren(...has.map(actionButton));
  }
  find("trail").replaceChildren(...(moment?.actions ?? []).map(stepButton));
  find("trail").scrollTop = find("trail").scrollHeight;
  const outcome = find("outcome");
  outcome.dataset.end = scene?.end ?? "";
  outcome.textContent = !moment
    ? "Your own picture: choose its task, write its mission, then ask."
    : scene.end
      ? `${ENDS[scene.end]}: return ${scene.episode_return.toFixed(3)} after ${scene.step} steps`
      : `Step ${scene.step} of at most ${scene.max_steps}`;
  enable();
}

function actionButton(action) {
  const button = element("button", { type: "button" }, HINTS[action] ? `${HINTS[action]} ${action}` : action);
  button.dataset.action = action;
  button.setAttribute("aria-label", action);
  button.onclick = () => step(action);
  return button;
}

function stepButton(action, index) {
  const words = HINTS[action] ?? action;
  const button = element("button", { type: "button", title: `${index + 1}: ${action}` }, words);
  button.setAttribute("aria-label", `Back to after step ${index + 1}, ${action}`);
  button.onclick = () => back(index + 1);
  return element("li", {}, button);
}

function enable() {
  const canGo = Boolean(moment) && !isOver();
  for (const button of find("actions").children) {
    button.disabled = !canGo || !scene.actions.includes(button.dataset.action);
  }
  find("follow").disabled = !canGo || !answer?.action;
  find("play").disabled = !canGo || !ready;
  find("play").textContent = playing ? "Stop" : "Play";
  find("undo").disabled = !moment?.actions.length;
  find("restart").disabled = moment ? !moment.actions.length : !image;
  find("ask").disabled = !image || !ready || isOver();
  find("ask-edited").disabled = find("ask").disabled || Object.keys(prompts.edits()).length === 0;
}

async function step(action) {
  if (!moment || isOver() || loading || !task().actions.includes(action)) return;
  await go({ ...moment, actions: [...moment.actions, action] });
}

async function back(steps) {
  playing = 0;
  if (moment) await go({ ...moment, actions: moment.actions.slice(0, steps) });
  else await begin();
}

async function play() {
  playing = playing ? 0 : ++plays;
  const mine = playing;
  enable();
  while (playing && playing === mine && !isOver()) {
    const pause = new Promise((resolve) => setTimeout(resolve, PACE_MS));
    if (!answer) await ask();
    await pause;
    if (playing !== mine || !answer?.action) break;
    await step(answer.action);
  }
  if (playing === mine) playing = 0;
  enable();
}

function onTemplates() {
  const any = Object.keys(prompts.edits()).length > 0;
  const [served, edited] = document.querySelectorAll("input[name=mode]");
  edited.disabled = !any;
  if (!any) served.checked = true;
  enable();
}

async function onFile(file) {
  if (!file) return;
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  playing = 0;
  scenes += 1;
  if (!isOwn()) proposeMission(scene?.mission);
  moment = scene = null;
  image = btoa(text);
  await present();
}

function onKey(event) {
  const typing = event.target.matches("textarea, select, input:not([type=checkbox])");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || find("key-dialog").open) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (name in KEYS && moment) step(KEYS[name]);
  else if (name === "t") find("follow").click();
  else if (name === "a") find("ask").click();
  else if (name === "Backspace") find("undo").click();
  else return;
  event.preventDefault();
}

function init() {
  pictures.init();
  find("task").onchange = onTask;
  find("env").onchange = begin;
  find("seed").onchange = begin;
  find("another").onclick = () => {
    find("seed").value = Math.floor(Math.random() * 100000);
    begin();
  };
  find("mission").onchange = () => image && present();
  find("ask").onclick = ask;
  find("ask-edited").onclick = () => {
    document.querySelector("input[name=mode][value=edited]").checked = true;
    ask();
  };
  find("follow").onclick = () => answer?.action && step(answer.action);
  find("play").onclick = play;
  find("undo").onclick = () => back(moment.actions.length - 1);
  find("restart").onclick = () => back(0);
  find("file").onchange = (event) => onFile(event.target.files[0]).then(() => (event.target.value = ""));
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      find("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") onFile(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("keydown", onKey);
  watch(onTeacher, (now) => {
    ready = now;
    if (ready && moment && !answer && find("auto").checked && !isOver()) ask();
    enable();
  });
}

init();
