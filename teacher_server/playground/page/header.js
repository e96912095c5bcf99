// The teacher, its state and its counts; updated every two seconds while the page is visible.

import { call } from "./api.js";
import { fillList, find, flat } from "./dom.js";

const EVERY_MS = 2000;
const COUNTS = { asked: "asked", stored: "from the store", failed: "failed", pending: "pending" };

/** Calls `onTeacher(info)` when the teacher changes, and `onReady(bool)` when its readiness changes. */
export async function watch(onTeacher, onReady) {
  let identity = null;
  let ready = null;
  for (;;) {
    if (!document.hidden || identity === null) {
      const now = await update();
      if (now?.identity && now.identity !== identity) {
        try {
          const info = await call("teacher");
          describe(info);
          await onTeacher(info);
          identity = info.identity;
        } catch (error) {
          show("away", error.words ?? String(error));
        }
      }
      if (Boolean(now?.ready) !== ready) {
        ready = Boolean(now?.ready);
        onReady(ready);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

async function update() {
  try {
    const state = await call("playground/state");
    show(state.ready ? "ready" : "loading", state.ready ? "ready" : state.failure ?? "not ready");
    const pairs = Object.entries(COUNTS).map(([name, words]) => [words, state.figures[name].toLocaleString("en")]);
    fillList(find("figures"), pairs, true);
    return state;
  } catch (error) {
    show("away", error.words ?? String(error));
    return null;
  }
}

function show(light, words) {
  find("light").dataset.state = light;
  if (find("readiness").textContent !== words) find("readiness").textContent = words;
}

function describe({ identity, kind, description, hosting }) {
  document.title = `${identity} · teacher`;
  find("kind").textContent = `${kind} teacher`;
  find("identity").textContent = identity;
  fillList(find("description"), flat(description));
  fillList(find("hosting"), flat(hosting));
}
