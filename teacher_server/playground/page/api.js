// Calls to the teacher: with its key where it has one, and with failures in words.

import { find } from "./dom.js";

const KEPT = "teacher-key";
let asking = null;

export class Failure extends Error {
  constructor(status, { field = null, reason, raw = null }) {
    super(reason);
    Object.assign(this, { status, field, raw });
  }

  get words() {
    const about = this.field && !this.message.startsWith(this.field) ? `${this.field}: ` : "";
    return `${about}${this.message}${this.status ? ` (${this.status})` : ""}`;
  }
}

/** GET, or POST where there is a body. Throws a Failure, or an AbortError where `signal` says so. */
export async function call(path, body, signal) {
  const key = sessionStorage.getItem(KEPT);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const told = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply, content;
  try {
    reply = await fetch(path, { ...told, headers, signal });
    content = await reply.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, { reason: "the teacher cannot be reached at this address; is it still running?" });
  }
  if (reply.status === 401) {
    await askForKey(key);
    return call(path, body, signal);
  }
  let parsed = null;
  try {
    parsed = JSON.parse(content);
  } catch {
    throw new Failure(reply.status, { reason: "what came back is no answer of a teacher's" });
  }
  if (!reply.ok) throw new Failure(reply.status, parsed.error ?? { reason: content.slice(0, 300) });
  return parsed;
}

/** Returns when there is another key than `tried`; one dialog for all calls that wait for it. */
function askForKey(tried) {
  if (sessionStorage.getItem(KEPT) !== tried) return Promise.resolve();
  asking ??= new Promise((given) => {
    const dialog = find("key-dialog");
    const text = find("key-text");
    find("key-error").textContent = tried ? "The teacher does not take this key." : "";
    text.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      sessionStorage.setItem(KEPT, text.value.trim());
      text.value = "";
      asking = null;
      given();
    };
    dialog.showModal();
  });
  return asking;
}
