// Attributes in their groups: search, lock, drag, ranges. Rows exist from when their group is opened.
import { element, number, plural } from "./words.js";

const groupOf = (attribute) => (attribute.name.includes("::") ? attribute.words.split(": ")[0] : "");

export class Attributes {
  constructor(info, history) {
    this.info = info;
    this.history = history;
    this.box = document.getElementById("groups");
    this.found = document.getElementById("found");
    this.rows = new Map();
    this.groups = [];
    const members = Map.groupBy ? Map.groupBy(info.attributes.keys(), (k) => groupOf(info.attributes[k])) : this.gather();
    for (const [name, places] of members) this.groups.push(this.group(name, [...places]));
    this.box.append(...this.groups.map((group) => group.details));
    document.getElementById("search").addEventListener("input", (event) => this.search(event.target.value));
    this.search("");
  }
  gather() {
    const members = new Map();
    this.info.attributes.forEach((attribute, place) => {
      const name = groupOf(attribute);
      members.set(name, [...(members.get(name) ?? []), place]);
    });
    return members;
  }
  group(name, places) {
    const badge = element("span", { class: "badge" });
    const lock = element("button", {
      class: "lock", type: "button", "aria-pressed": "false", "aria-label": `Lock all of ${name || "the other attributes"}`,
      onclick: (event) => { event.preventDefault(); this.lock(places, lock.getAttribute("aria-pressed") !== "true"); },
    }, "Lock all");
    const body = element("div");
    const details = element("details", {}, element("summary", {}, element("span", { class: "name" }, name || "other attributes"), badge, lock), body);
    const group = { name, places, badge, lock, body, details };
    details.addEventListener("toggle", () => { if (details.open) this.fill(group); });
    return group;
  }
  fill(group) {
    if (group.body.childElementCount) return;
    group.body.append(...group.places.map((place) => this.row(place, group)));
    this.search(document.getElementById("search").value, false);
    this.update();
  }
  row(place, group) {
    const attribute = this.info.attributes[place], { words } = attribute;
    const label = group.name ? words.slice(group.name.length + 2) : words;
    const span = Math.max(attribute.high - attribute.low, 1e-6), pad = 0.75 * span;
    const set = (settle) => this.set(place, Number(slider.value), settle);
    const slider = element("input", {
      type: "range", min: attribute.low - pad, max: attribute.high + pad, step: span / 200, "aria-label": `Value of ${words}`,
      oninput: () => set(false), onchange: () => set(true),
    });
    const lock = element("button", { class: "lock", type: "button", "aria-pressed": "false", "aria-label": `Lock ${words}`,
      onclick: () => this.lock([place], lock.getAttribute("aria-pressed") !== "true") }, "Lock");
    const value = element("span", { class: "value" });
    const free = element("button", { class: "small", type: "button", hidden: true, "aria-label": `Let go of ${words}`,
      onclick: () => this.free(place) }, "Let go");
    const limit = (side) => element("input", { type: "number", step: "any", "aria-label": `${side} value of ${words}`,
      placeholder: "none", onchange: () => this.range(place, low.value, high.value) });
    const low = limit("Lowest"), high = limit("Highest");
    const ends = element("details", {}, element("summary", { class: "badge" }, "range"),
      element("div", { class: "ends" }, "from", low, "to", high));
    const row = element("div", { class: "row", "data-place": place },
      element("div", { class: "line" }, element("span", { class: "name" }, label), lock),
      slider, element("div", { class: "line" }, value, free), ends);
    this.rows.set(place, { row, slider, lock, value, free, low, high, ends });
    return row;
  }
  set(place, value, settle) {
    const { locked, held } = this.history.state;
    this.history.set({ held: { ...held, [place]: Number(value.toFixed(4)) }, locked: locked.filter((k) => k !== place) }, { settle });
  }
  free(place) {
    const held = { ...this.history.state.held };
    delete held[place];
    this.history.set({ held });
  }
  lock(places, locked) {
    const others = this.history.state.locked.filter((k) => !places.includes(k)), held = { ...this.history.state.held };
    if (locked) places.forEach((k) => delete held[k]);
    this.history.set({ locked: locked ? [...others, ...places].sort((a, b) => a - b) : others, held });
  }
  range(place, low, high) {
    const end = (text) => (text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text));
    const ranges = { ...this.history.state.ranges };
    if (end(low) === null && end(high) === null) delete ranges[place];
    else ranges[place] = [end(low), end(high)];
    this.history.set({ ranges });
  }
  search(text, open = true) {
    const wanted = text.toLowerCase().replaceAll("::", " ").replaceAll("_", " ").split(/[\s:]+/).filter(Boolean);
    let count = 0;
    for (const group of this.groups) {
      const hits = new Set(group.places.filter((k) => {
        const words = `${this.info.attributes[k].words} ${this.info.attributes[k].name}`.toLowerCase();
        return wanted.every((word) => words.includes(word));
      }));
      count += hits.size;
      group.details.hidden = !hits.size;
      if (open && wanted.length) group.details.open = hits.size > 0 && hits.size <= 40;
      for (const k of group.places) if (this.rows.has(k)) this.rows.get(k).row.hidden = !hits.has(k);
    }
    this.found.textContent = wanted.length ? `${plural(count, "attribute")} found` :
      `${plural(this.info.attributes.length, "attribute")} in ${plural(this.groups.length, "group")}`;
  }
  // Opens the group of an attribute and shows its row.
  show(place) {
    const search = document.getElementById("search");
    if (search.value) { search.value = ""; this.search(""); }
    const group = this.groups.find((each) => each.places.includes(place));
    group.details.open = true;
    this.fill(group);
    const { row, slider } = this.rows.get(place);
    row.scrollIntoView({ block: "center" });
    slider.focus({ preventScroll: true });
  }
  update(answer = this.answer) {
    this.answer = answer;
    const { locked, held, ranges } = this.history.state, isLocked = new Set(locked);
    const after = new Map((answer?.changes ?? []).map((change) => [change.name, change.after]));
    for (const group of this.groups) {
      const count = group.places.filter((k) => isLocked.has(k)).length, changed = group.places.filter((k) => after.has(this.info.attributes[k].name)).length;
      const set = group.places.filter((k) => k in held).length;
      group.badge.textContent = [set && `${set} set`, changed && `${changed} change`, count && `${count} locked`].filter(Boolean).join(", ") || `${group.places.length}`;
      group.lock.setAttribute("aria-pressed", count === group.places.length);
      group.lock.textContent = count === group.places.length ? "Locked" : "Lock all";
    }
    for (const [place, parts] of this.rows) {
      const attribute = this.info.attributes[place], now = held[place] ?? answer?.values?.[place];
      if (now === undefined) continue;
      const then = after.get(attribute.name), [low, high] = ranges[place] ?? [null, null];
      const shown = [now, then, place in held, isLocked.has(place), low, high].join();
      if (parts.shown === shown) continue;
      parts.shown = shown;
      if (document.activeElement !== parts.slider || place in held === false || Number(parts.slider.value) !== now) parts.slider.value = now;
      parts.slider.setAttribute("aria-valuetext", number(now));
      parts.value.textContent = place in held ? `set to ${number(now)}` : then === undefined ? number(now) : `${number(now)} → ${number(then)} in the answer`;
      parts.row.classList.toggle("changed", then !== undefined);
      parts.free.hidden = !(place in held);
      parts.lock.setAttribute("aria-pressed", isLocked.has(place));
      parts.lock.textContent = isLocked.has(place) ? "Locked" : "Lock";
      if (document.activeElement !== parts.low) parts.low.value = low ?? "";
      if (document.activeElement !== parts.high) parts.high.value = high ?? "";
      if (place in ranges) parts.ends.open = true;
    }
  }
}
