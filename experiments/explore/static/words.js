// Numbers as people read them, and a short way to make elements.

export const number = (value, digits = 3) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "not known";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("-", "−");
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 4 }).replace("-", "−");
};
export const signed = (value) => (value > 0 ? "+" : "") + number(value);
export const percent = (share) => {
  const value = 100 * share;
  return `${value >= 99.95 || value < 0.05 ? Number(value.toPrecision(2)) : value.toFixed(1)} %`;
};
export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

// element("button", { class: "quiet", onclick: f }, "text", child)
export const element = (tag, properties = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};
export const cell = (tag, text, kind = "") => element(tag, kind ? { class: kind } : {}, text);
