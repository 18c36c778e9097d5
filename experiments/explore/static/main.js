// Puts the parts together: a change of the question asks the server, the newest answer counts.
import { get, on, post } from "./api.js";
import { Attributes } from "./attributes.js";
import { Column } from "./answers.js";
import { saveHtml, saveJson } from "./export.js";
import { Grid } from "./grid.js";
import { Making } from "./making.js";
import { History, toFragment, toQuestion } from "./state.js";
import { element, number, percent } from "./words.js";

const at = (id) => document.getElementById(id);
const IDLE = 450; // milliseconds without a change, after which the thorough answer is asked for

const start = (info) => {
  const history = new History(info, () => changed());
  const question = () => toQuestion(history.state, info);
  const attributes = new Attributes(info, history);
  const grid = new Grid(info, (picture) => history.set({ picture, held: {} }));
  const columns = info.models.map((_, place) => new Column(info, place, {
    show: (attribute) => attributes.show(attribute),
    target: (target) => history.set({ target }),
    making: (column) => new Making(column, place, { info, question }),
  }));
  at("answers").append(...columns.map((column) => column.root));
  at("models").textContent = info.models.length > 1 ? `${info.models.join(" beside ")}` : info.models[0];

  const options = (select, list) => select.append(...list.map(([value, words]) => element("option", { value }, words)));
  const classes = info.classes.map((name, k) => [k, name]).sort((a, b) => a[1].localeCompare(b[1]));
  options(at("filter-class"), [["", "all classes"], ...classes]);
  options(at("target"), [["", "whichever other class is nearest"], ...classes]);
  options(at("most"), [["", "any number of attributes"], ...Array.from({ length: info.most_changes }, (_, k) => [k + 1, k ? `${k + 1} attributes` : "1 attribute"])]);

  const chosen = (select) => (select.value === "" ? null : Number(select.value));
  const filter = () => grid.filter(chosen(at("filter-class")), at("filter-wrong").checked);
  at("filter-class").addEventListener("change", filter);
  at("filter-wrong").addEventListener("change", filter);
  at("target").addEventListener("change", () => history.set({ target: chosen(at("target")) }));
  at("most").addEventListener("change", () => history.set({ most: chosen(at("most")) }));
  at("observed").addEventListener("change", () => history.set({ observed: at("observed").checked }));
  at("lead").addEventListener("change", () => history.set({ lead: Math.max(0, Number(at("lead").value) || 0) }));
  at("undo").addEventListener("click", () => history.undo());
  at("redo").addEventListener("click", () => history.redo());
  addEventListener("keydown", (event) => {
    const typing = /^(text|search|number)$/.test(event.target.type ?? "");
    if (!(event.ctrlKey || event.metaKey) || typing || event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    if (event.shiftKey) history.redo();
    else history.undo();
  });

  // Rules in words, each with what takes it back.
  const rules = () => {
    const { locked, held, ranges, most, observed, lead } = history.state, list = [];
    const without = (object, place) => Object.fromEntries(Object.entries(object).filter(([k]) => k !== place));
    const isLocked = new Set(locked);
    for (const group of attributes.groups) {
      const ours = group.places.filter((k) => isLocked.has(k));
      if (!ours.length) continue;
      const words = ours.length === 1 ? info.attributes[ours[0]].words : `${group.name || "other attributes"} (${ours.length === group.places.length ? "all" : `${ours.length} of`} ${group.places.length})`;
      list.push([`locked: ${words}`, () => attributes.lock(ours, false)]);
    }
    for (const [k, value] of Object.entries(held)) list.push([`set: ${info.attributes[k].words} ${number(value)}`, () => attributes.free(k)]);
    for (const [k, [low, high]] of Object.entries(ranges)) {
      const ends = [low === null ? "" : `from ${number(low)}`, high === null ? "" : `to ${number(high)}`].filter(Boolean).join(" ");
      list.push([`range: ${info.attributes[k].words} ${ends}`, () => history.set({ ranges: without(ranges, k) })]);
    }
    if (most !== null) list.push([`at most ${most === 1 ? "1 attribute" : `${most} attributes`}`, () => history.set({ most: null })]);
    if (observed) list.push(["within the range that the pictures show", () => history.set({ observed: false })]);
    if (lead !== 0.5) list.push([`lead ${number(lead)} logits`, () => history.set({ lead: 0.5 })]);
    return list;
  };

  let pictured = null;
  const show = () => {
    const { state } = history;
    at("target").value = state.target ?? "";
    at("most").value = state.most ?? "";
    at("observed").checked = state.observed;
    if (document.activeElement !== at("lead")) at("lead").value = state.lead;
    at("undo").disabled = !history.past.length;
    at("redo").disabled = !history.future.length;
    at("rules").replaceChildren(...rules().map(([words, drop]) =>
      element("li", {}, element("button", { type: "button", title: "Drop this rule", "aria-label": `Drop the rule ${words}`, onclick: drop }, `${words}  ×`))));
    if (pictured !== state.picture) {
      pictured = state.picture;
      at("picture").src = `pictures/${pictured}.png?v=${info.key}`;
      at("picture").alt = `Picture ${pictured}, labelled ${info.classes[info.labels[pictured]]}`;
      at("labelled").textContent = `Picture ${pictured}. The data set calls it ${info.classes[info.labels[pictured]]}.`;
      grid.select(pictured);
    }
  };

  let latest = null, asking = false, idle = 0, answers = null, thorough = new AbortController();
  const ask = async () => {
    latest = question();
    if (asking) return; // the newest question is asked as soon as the present one is answered
    asking = true;
    while (latest) {
      const asked = latest;
      latest = null;
      const began = performance.now();
      try {
        const content = await post("api/answer", { question: asked, effort: "quick" });
        document.documentElement.dataset.milliseconds = (performance.now() - began).toFixed(1);
        if (isCurrent(asked)) received(content.answers, asked);
      } catch (error) {
        columns.forEach((column) => column.failed(error.message));
      }
    }
    asking = false;
  };
  const received = (list, asked) => {
    answers = list;
    list.forEach((answer, place) => columns[place].update(answer, history.state));
    attributes.update(list[0]);
    const { top } = list[0].start, held = Object.keys(history.state.held).length;
    at("is").textContent = `${held ? "As you set it, the" : "The"} model calls it ${info.classes[top[0].class]} (${percent(top[0].probability)}).`;
    document.documentElement.dataset.answered = toFragment(history.state);
    clearTimeout(idle);
    idle = setTimeout(() => settle(list, asked), IDLE);
  };
  // The thorough answer takes its time, and is dropped as soon as something changes.
  const askThoroughly = async (asked) => {
    const { signal } = (thorough = new AbortController());
    try {
      const content = await post("api/answer", { question: asked, effort: "full" }, signal);
      if (!signal.aborted) received(content.answers, asked);
    } catch (error) {
      if (!signal.aborted) columns.forEach((column) => column.failed(error.message));
    }
  };
  const isCurrent = (asked) => JSON.stringify(asked) === JSON.stringify(question());
  const settle = async (list, asked) => {
    if (!isCurrent(asked)) return;
    if (list.some((answer) => !answer.settled)) { await askThoroughly(asked); return; }
    at("announce").textContent = columns.map((column) => column.part("verdict").textContent).join(" ");
    list.forEach(async (answer, place) => {
      if (answer.status === "SOLVED") return;
      columns[place].part("why").textContent = "Finding out why …";
      const { reason } = await post("api/reason", { question: asked, model: place }).catch((error) => ({ reason: error.message }));
      if (isCurrent(asked)) columns[place].part("why").textContent = reason;
    });
  };
  const changed = () => {
    clearTimeout(idle);
    thorough.abort();
    show();
    attributes.update();
    columns.forEach((column) => column.busy(true));
    ask();
  };

  at("link").addEventListener("click", async () => {
    await navigator.clipboard?.writeText(location.href).catch(() => null);
    at("announce").textContent = "The link is copied.";
    at("link").textContent = "Copied";
    setTimeout(() => { at("link").textContent = "Copy link"; }, 1500);
  });
  const name = () => `explore-${history.state.picture}`;
  at("export-json").addEventListener("click", () => saveJson(name(), {
    models: info.models, question: question(), answers, made: columns.map((column) => column.making.made), address: toFragment(history.state),
  }));
  at("export-html").addEventListener("click", () => {
    const target = history.state.target === null ? "the nearest other class" : info.classes[history.state.target];
    saveHtml(name(), `What would have to change for picture ${history.state.picture} to be ${target}?`, [`It should be classified as: ${target}`, ...rules().map(([words]) => words)])
      .catch((error) => banner(`The page cannot be saved: ${error.message}`));
  });
  on("back", async () => {
    const now = await get("api/session").catch(() => null);
    if (!now || now.key !== info.key) { location.reload(); return; }
    banner("");
    columns.forEach((column) => { column.making.asked = null; });
    changed();
  });
  changed();
};

const banner = (words) => {
  at("banner").textContent = words;
  at("banner").hidden = !words;
};
on("away", () => banner("The server does not answer. This page continues when it is back; your question is kept in the address."));
get("api/session").then(start, (error) => banner(error.message));
