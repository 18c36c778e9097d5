// Pictures in a grid: only those in view exist, so ten thousand scroll like ten.
import { element, plural } from "./words.js";

const SMALLEST = 84; // pixels

export class Grid {
  constructor(info, pick) {
    this.info = info;
    this.pick = pick;
    this.box = document.getElementById("grid");
    this.inner = document.getElementById("grid-inner");
    this.count = document.getElementById("grid-count");
    this.cells = new Map();
    this.active = 0;
    this.selected = 0;
    const draw = () => requestAnimationFrame(() => this.draw());
    this.box.addEventListener("scroll", draw, { passive: true });
    new ResizeObserver(draw).observe(this.box);
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.filter(null, false);
  }
  filter(wanted, wrong) {
    const { labels, predicted } = this.info;
    this.shown = [...labels.keys()].filter((k) => (wanted === null || labels[k] === wanted) && (!wrong || labels[k] !== predicted[k]));
    this.count.textContent = this.shown.length ? plural(this.shown.length, "picture") : "There is no such picture.";
    this.box.scrollTop = 0;
    this.active = Math.max(0, this.shown.indexOf(this.selected));
    this.clear();
    this.draw();
    this.reveal();
  }
  clear() {
    this.cells.forEach((cell) => cell.remove());
    this.cells.clear();
  }
  select(picture) {
    if (picture === this.selected && this.cells.size) return;
    this.selected = picture;
    const place = this.shown.indexOf(picture);
    if (place >= 0) { this.active = place; this.reveal(); }
    this.draw();
  }
  reveal() {
    if (!this.size) return;
    const top = Math.floor(this.active / this.columns) * this.size;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + this.size > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + this.size - this.box.clientHeight;
  }
  draw() {
    const width = this.box.clientWidth;
    if (!width) return;
    const columns = Math.max(2, Math.floor(width / SMALLEST)), size = width / columns;
    if (columns !== this.columns || size !== this.size) { this.clear(); this.columns = columns; this.size = size; }
    this.inner.style.height = `${Math.ceil(this.shown.length / columns) * size}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / size) - 1) * columns;
    const last = Math.min(this.shown.length, (Math.ceil((this.box.scrollTop + this.box.clientHeight) / size) + 1) * columns);
    for (const [place, cell] of this.cells) {
      if (place < first || place >= last) { cell.remove(); this.cells.delete(place); }
    }
    for (let place = first; place < last; place++) {
      if (!this.cells.has(place)) this.cells.set(place, this.cell(place));
      const cell = this.cells.get(place);
      cell.setAttribute("aria-selected", this.shown[place] === this.selected);
      cell.classList.toggle("active", place === this.active);
    }
    this.box.setAttribute("aria-activedescendant", this.cells.has(this.active) ? `cell-${this.active}` : "");
  }
  cell(place) {
    const picture = this.shown[place], { labels, predicted, classes, key } = this.info;
    const words = `Picture ${picture}: ${classes[labels[picture]]}` +
      (labels[picture] === predicted[picture] ? "" : `, mistaken for ${classes[predicted[picture]]}`);
    const cell = element("div", {
      class: "cell", role: "option", id: `cell-${place}`, "aria-label": words, title: words,
      "aria-setsize": this.shown.length, "aria-posinset": place + 1, onclick: () => this.choose(place),
    }, element("img", { src: `thumbnails/${picture}.jpg?v=${key}`, alt: "", draggable: "false" }));
    cell.style.cssText = `width:${this.size}px;height:${this.size}px;left:${(place % this.columns) * this.size}px;` +
      `top:${Math.floor(place / this.columns) * this.size}px`;
    this.inner.append(cell);
    return cell;
  }
  choose(place) {
    this.active = place;
    this.pick(this.shown[place]);
  }
  key(event) {
    const page = this.columns * Math.max(1, Math.floor(this.box.clientHeight / this.size));
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page,
      Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      this.active = Math.min(this.shown.length - 1, Math.max(0, this.active + moves[event.key]));
      this.reveal();
      this.draw();
    } else if ((event.key === "Enter" || event.key === " ") && this.shown.length) this.choose(this.active);
    else return;
    event.preventDefault();
  }
}
