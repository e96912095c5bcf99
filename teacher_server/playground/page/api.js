// Calls to the service, with the API key if there is one.

import { find } from "./dom.js";

const STORED = "teacher-key";
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

/** Sends GET, or POST if there is a body. Throws a Failure, or an AbortError when `signal` aborts the call. */
export async function call(path, body, signal) {
  const key = sessionStorage.getItem(STORED);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply, content;
  try {
    reply = await fetch(path, { ...options, headers, signal });
    content = await reply.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, { reason: "the teacher cannot be reached at this address; check that it is running" });
  }
  if (reply.status === 401) {
    await askForKey(key);
    return call(path, body, signal);
  }
  let parsed = null;
  try {
    parsed = JSON.parse(content);
  } catch {
    throw new Failure(reply.status, { reason: "the response is not a teacher's" });
  }
  if (!reply.ok) throw new Failure(reply.status, parsed.error ?? { reason: content.slice(0, 300) });
  return parsed;
}

/** Asks the user for a key other than `tried`. All waiting calls share one dialog. */
function askForKey(tried) {
  if (sessionStorage.getItem(STORED) !== tried) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const dialog = find("key-dialog");
    const text = find("key-text");
    find("key-error").textContent = tried ? "The teacher does not accept this key." : "";
    text.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      sessionStorage.setItem(STORED, text.value.trim());
      text.value = "";
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}
