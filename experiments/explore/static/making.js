// "Make it so": the search for the picture, its progress, and what came out beside a real picture.
import { get, post, remove } from "./api.js";
import { element, number, percent, plural } from "./words.js";

export class Making {
  constructor(column, place, { info, question }) {
    Object.assign(this, { column, place, info, question });
    this.part = column.part;
    this.part("start").addEventListener("click", () => this.start());
    this.part("cancel").addEventListener("click", () => this.cancel());
  }
  // A new question: what was made was the answer to another one.
  update(answer) {
    const asked = JSON.stringify(this.question());
    this.part("start").disabled = answer.status !== "SOLVED" || Boolean(this.job);
    if (asked === this.asked) return;
    if (this.job) this.cancel();
    this.asked = asked;
    this.made = null;
    this.part("made").textContent = "";
    this.part("shots").replaceChildren();
    const rules = this.question();
    const ruled = rules.locked.length || Object.keys(rules.held).length || Object.keys(rules.ranges).length || rules.at_most || rules.observed;
    this.part("aim").value = ruled ? "attributes" : "class";
    clearTimeout(this.later);
    if (answer.status === "SOLVED" && answer.changes.length) this.later = setTimeout(() => this.real(asked), 600);
  }
  async real(asked) {
    try {
      const { real } = await post("api/nearest-real", { question: this.question(), model: this.place });
      if (asked !== this.asked || !real) return;
      this.realShot = this.shot(`training/${real.number}.png?v=${this.info.key}`,
        `A real ${this.info.classes[this.column.answer.target]}: the training picture whose attributes are nearest to the answer, distance ${number(real.distance)}`);
      this.part("shots").append(this.realShot);
    } catch (error) {
      if (asked === this.asked) this.part("made").textContent = error.message;
    }
  }
  shot(source, caption) {
    return element("figure", {}, element("img", { src: source, alt: caption }), element("figcaption", {}, caption));
  }
  async start() {
    const asked = this.asked;
    this.part("start").disabled = true;
    this.part("made").textContent = "";
    this.show("Starting", null);
    try {
      const { job } = await post("api/make", { question: this.question(), model: this.place, aim: this.part("aim").value });
      this.job = job;
      this.part("cancel").hidden = false;
      let now = await get(`api/make/${job}`);
      while (now.state === "running") {
        this.show(`${plural(now.steps, "step")} of at most ${now.most_steps}`, now.steps / now.most_steps);
        if (now.images.includes("now")) this.shots([[`api/make/${job}?image=now&step=${now.steps}`, "So far"]]);
        await new Promise((done) => setTimeout(done, 200));
        now = await get(`api/make/${job}`);
      }
      if (asked === this.asked) this.done(job, now);
    } catch (error) {
      if (asked === this.asked) this.part("made").textContent = error.message;
    } finally {
      this.job = null;
      this.part("cancel").hidden = true;
      this.part("progress-line").hidden = true;
      this.part("start").disabled = this.column.answer?.status !== "SOLVED";
    }
  }
  show(words, share) {
    this.part("progress-line").hidden = false;
    const bar = this.part("progress-line").querySelector("progress");
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
    this.part("progress-words").textContent = words;
  }
  async cancel() {
    if (this.job) await remove(`api/make/${this.job}`).catch(() => null);
  }
  shots(list) {
    this.part("shots").replaceChildren(...list.map(([source, caption]) => this.shot(source, caption)), ...(this.realShot?.isConnected || this.realShot ? [this.realShot] : []));
  }
  done(job, now) {
    if (now.state === "cancelled") { this.shots([]); this.part("made").textContent = "Cancelled."; return; }
    if (now.state === "failed") { this.shots([]); this.part("made").textContent = `It failed: ${now.reason}`; return; }
    const { report } = now, name = (k) => this.info.classes[k];
    this.made = { ...report, reason: now.reason };
    this.shots([
      [`api/make/${job}?image=original`, "The original"],
      [`api/make/${job}?image=result`, `The result: classified as ${name(report.class)}`],
      [`api/make/${job}?image=difference`, `The difference, amplified ${number(report.factor)} times; grey means no change`],
    ]);
    const verdict = report.reached ? `The picture is now classified as ${name(report.class)}` : `The search ended without reaching ${name(report.target)} (${now.reason}); the picture is classified as ${name(report.class)}`;
    this.part("made").textContent = `${verdict}, after ${plural(report.steps, "step")}. Probability of ${name(report.target)}: ` +
      `${percent(report.probability_before)} before, ${percent(report.probability_after)} now. Pixels typically moved by ${number(report.levels_typical)} of 255 levels, ` +
      `${report.levels_largest} at most.`;
  }
}
