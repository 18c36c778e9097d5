// What is asked, its history, and its place in the address.

const EMPTY = { picture: 0, target: null, locked: [], held: {}, ranges: {}, most: null, observed: false, lead: 0.5 };

// Attributes are numbers in the address, runs of them "3-9": hundreds of locks stay short.
const packed = (numbers) => {
  const parts = [];
  for (const each of [...numbers].sort((a, b) => a - b)) {
    const last = parts.at(-1);
    if (last && last[1] === each - 1) last[1] = each;
    else parts.push([each, each]);
  }
  return parts.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(",");
};
const unpacked = (text, limit) => {
  const numbers = [];
  for (const part of text.split(",")) {
    const [first, last = first] = part.split("-").map(Number);
    for (let each = first; each <= last && each < limit; each++) numbers.push(each);
  }
  return numbers.filter(Number.isInteger);
};
const triples = (text) => text.split(",").map((part) => part.split(":"));
const end = (text) => (text === "" || text === undefined || Number.isNaN(Number(text)) ? null : Number(text));

export const toFragment = (state) => {
  const parts = [`picture=${state.picture}`];
  if (state.target !== null) parts.push(`target=${state.target}`);
  if (state.locked.length) parts.push(`lock=${packed(state.locked)}`);
  const held = Object.entries(state.held), ranges = Object.entries(state.ranges);
  if (held.length) parts.push(`set=${held.map(([place, value]) => `${place}:${value}`).join(",")}`);
  if (ranges.length) parts.push(`range=${ranges.map(([place, [low, high]]) => `${place}:${low ?? ""}:${high ?? ""}`).join(",")}`);
  if (state.most !== null) parts.push(`most=${state.most}`);
  if (state.observed) parts.push("observed=1");
  if (state.lead !== EMPTY.lead) parts.push(`lead=${state.lead}`);
  return parts.join("&");
};

export const fromFragment = (fragment, info) => {
  const given = new URLSearchParams(fragment.replace(/^#/, "")), state = structuredClone(EMPTY);
  const whole = (name, low, high) => {
    const value = Number(given.get(name));
    return given.has(name) && Number.isInteger(value) && value >= low && value <= high ? value : null;
  };
  const place = (text) => (/^\d+$/.test(text) && Number(text) < info.attributes.length ? Number(text) : null);
  state.picture = whole("picture", 0, info.labels.length - 1) ?? 0;
  state.target = whole("target", 0, info.classes.length - 1);
  state.most = whole("most", 1, info.most_changes);
  state.observed = given.get("observed") === "1";
  const lead = end(given.get("lead") ?? "");
  if (lead !== null && lead >= 0) state.lead = lead;
  if (given.has("lock")) state.locked = unpacked(given.get("lock"), info.attributes.length);
  for (const [which, value] of triples(given.get("set") ?? "")) {
    if (place(which) !== null && end(value) !== null) state.held[which] = end(value);
  }
  for (const [which, low, high] of triples(given.get("range") ?? "")) {
    if (place(which) !== null) state.ranges[which] = [end(low), end(high)];
  }
  return state;
};

// The question as the server wants it: attributes by name.
export const toQuestion = (state, info) => {
  const named = (object) => Object.fromEntries(Object.entries(object).map(([k, v]) => [info.attributes[k].name, v]));
  return {
    picture: state.picture, target: state.target, locked: state.locked.map((k) => info.attributes[k].name),
    held: named(state.held), ranges: named(state.ranges), at_most: state.most, observed: state.observed, lead: state.lead,
  };
};

export class History {
  constructor(info, changed) {
    this.info = info;
    this.changed = changed;
    this.past = [];
    this.future = [];
    this.state = fromFragment(location.hash, info);
    this.settled = toFragment(this.state);
    history.replaceState(null, "", `#${this.settled}`);
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) !== toFragment(this.state)) this.set(fromFragment(location.hash, info));
    });
  }
  // A change; while something is dragged it is not settled, and undo goes back to before the dragging.
  set(changes, { settle = true } = {}) {
    this.state = { ...this.state, ...changes };
    const now = toFragment(this.state);
    if (settle && now !== this.settled) {
      this.past.push(this.settled);
      this.future = [];
      this.settled = now;
    }
    history.replaceState(null, "", `#${now}`);
    this.changed();
  }
  travel(from, to) {
    if (!from.length) return false;
    to.push(this.settled);
    this.settled = from.pop();
    this.state = fromFragment(this.settled, this.info);
    history.replaceState(null, "", `#${this.settled}`);
    this.changed();
    return true;
  }
  undo() { return this.travel(this.past, this.future); }
  redo() { return this.travel(this.future, this.past); }
}
