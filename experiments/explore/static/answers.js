// One column per model: the answer in a sentence, what changes, probabilities, and what is near.
import { cell, element, number, percent, plural, signed } from "./words.js";

const SHOWN = 12;

export class Column {
  constructor(info, place, { show, target, making }) {
    this.info = info;
    this.show = show;
    this.target = target;
    this.root = document.getElementById("answer").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.root.querySelector(`.${name}`);
    this.part("model").textContent = info.models[place];
    this.part("model").hidden = info.models.length < 2;
    this.root.setAttribute("aria-label", `Answer of ${info.models[place]}`);
    this.making = making(this, place);
    this.whole = false;
    this.part("more").addEventListener("click", () => { this.whole = !this.whole; this.changes(); });
  }
  busy(is) {
    this.root.setAttribute("aria-busy", is);
    this.root.classList.toggle("busy", is);
  }
  failed(reason) {
    this.busy(false);
    const verdict = this.part("verdict");
    verdict.classList.add("error");
    verdict.textContent = reason;
  }
  update(answer, state) {
    this.busy(false);
    this.answer = answer;
    this.held = Object.keys(state.held).length;
    this.part("verdict").classList.remove("error");
    this.part("verdict").textContent = this.verdict();
    this.part("why").textContent = this.remark(state);
    this.part("measure").textContent = this.measure();
    this.changes();
    this.probabilities();
    this.near();
    this.making.update(answer);
  }
  name(k) { return this.info.classes[k]; }
  verdict() {
    const { answer, held } = this, word = this.name(answer.target), now = answer.start.top[0].class;
    if (answer.status === "INFEASIBLE") return `Within your rules it cannot become ${word}.`;
    if (answer.status !== "SOLVED") return answer.settled ? `It is not known whether it can become ${word} within your rules.` : `Looking for a way to ${word} …`;
    if (!answer.changes.length) return `${held ? "As you set it, it" : "It"} is already classified as ${word}.`;
    const besides = held ? `Besides the ${held === 1 ? "one" : held} you set, ` : "";
    const count = `${plural(answer.changes.length, "attribute")} would have to change`;
    return `${besides || ""}${count} to make it ${word} instead of ${this.name(now)}.`;
  }
  remark(state) {
    const { changes, ignored } = this.answer;
    if (ignored.length) return `Not known to this model and ignored: ${ignored.join(", ")}.`;
    return changes.length > SHOWN && state.most === null ? "Most of them change only a little. Set “Changing at most” for a short list." : "";
  }
  measure() {
    const { answer } = this;
    if (answer.status !== "SOLVED") return "";
    const rival = answer.end.top.find((each) => each.class !== answer.target);
    const proof = answer.proven ? "the smallest change there is" : answer.settled ? `no change is smaller than ${number(answer.lower_bound)}` : "still looking for a smaller one";
    const first = answer.changes.length ? `Distance ${number(answer.distance)} in attribute values, ${proof}. ` : "";
    return `${first}${rival ? `Its nearest competitor is then ${this.name(rival.class)}, ${number(answer.end.lead)} logits behind.` : ""}`;
  }
  changes() {
    const { answer } = this, table = this.part("changes"), more = this.part("more");
    table.hidden = !answer.changes.length;
    more.hidden = answer.changes.length <= SHOWN;
    more.textContent = this.whole ? "Show only the strongest" : `Show all ${answer.changes.length}`;
    const shown = this.whole ? answer.changes : answer.changes.slice(0, SHOWN);
    const largest = Math.max(...answer.changes.map((each) => Math.abs(each.spreads ?? 0)), 1e-9);
    table.tBodies[0].replaceChildren(...shown.map((each) => {
      const place = this.info.attributes.findIndex((attribute) => attribute.name === each.name);
      const words = place < 0 ? each.name : this.info.attributes[place].words;
      const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
      const share = 50 * Math.abs(each.spreads ?? 0) / largest;
      bar.firstChild.style.cssText = `left:${each.spreads < 0 ? 50 - share : 50}%;width:${share}%`;
      const name = place < 0 ? words : element("button", { class: "quiet", type: "button", onclick: () => this.show(place) }, words);
      return element("tr", {}, element("td", {}, name), cell("td", number(each.before), "number"), cell("td", number(each.after), "number"),
        element("td", { class: "number" }, bar, each.spreads === null ? "–" : signed(each.spreads)));
    }));
  }
  probabilities() {
    const { answer } = this;
    const classes = [...new Set([answer.start.top[0].class, answer.target, ...answer.start.top.map((each) => each.class), ...(answer.end?.top ?? []).map((each) => each.class)])].slice(0, 6);
    const find = (side, k) => side.top.find((each) => each.class === k);
    const meter = (side, k) => {
      const each = find(side, k);
      if (!each) return [`below ${percent(side.top.at(-1).probability)}`];
      const bar = element("span", { class: "meter", "aria-hidden": "true" }, element("i"));
      bar.firstChild.style.width = `${100 * each.probability}%`;
      return [bar, `${percent(each.probability)} (${number(each.logit)})`];
    };
    const head = element("tr", {}, cell("th", "Class"), cell("th", "Now"), answer.end ? cell("th", "Then") : null);
    const rows = classes.map((k) => element("tr", {}, cell("td", this.name(k)), element("td", {}, ...meter(answer.start, k)),
      answer.end ? element("td", {}, ...meter(answer.end, k)) : null));
    this.part("probabilities").replaceChildren(element("h4", {}, "Probability of a class (logit)"),
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }
  near() {
    const items = this.answer.near.map((each) => element("li", {},
      element("button", { class: "quiet", type: "button", onclick: () => this.target(each.class) }, this.name(each.class)), ` at distance ${number(each.distance)}`));
    this.part("near").replaceChildren(element("h4", {}, "Nearest classes, with your locks as the only rules"),
      items.length ? element("ol", {}, ...items) : element("p", { class: "muted" }, "No other class can be reached."));
  }
}
