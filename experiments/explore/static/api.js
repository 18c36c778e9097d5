// Talks to the server: says when it is away, and when it is back.

const listeners = { away: [], back: [] };
export const on = (what, listener) => listeners[what].push(listener);
const tell = (what) => listeners[what].forEach((listener) => listener());
let away = false;

export class Refused extends Error {}

const watch = async () => {
  if (away) return;
  away = true;
  tell("away");
  while (away) {
    await new Promise((done) => setTimeout(done, 1000));
    try {
      const answer = await fetch("api/session", { cache: "no-store" });
      if (answer.ok || answer.status === 403) { away = false; tell("back"); }
    } catch { /* still away */ }
  }
};

const request = async (path, options = {}) => {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    watch();
    throw new Refused("The server does not answer.");
  }
  const content = await answer.json().catch(() => ({ error: `The server answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Refused(content.error || `The server answered with status ${answer.status}.`);
  return content;
};

export const get = (path) => request(path, { cache: "no-store" });
export const remove = (path) => request(path, { method: "DELETE" });
export const post = (path, body, signal) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
