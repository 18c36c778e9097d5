// What is on screen as files: a page that needs no network, and the data.
import { element } from "./words.js";

const save = (name, type, content) => {
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

const inlined = async (image) => {
  const blob = await (await fetch(image.src)).blob();
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
};

export const saveJson = (name, data) => save(`${name}.json`, "application/json", JSON.stringify(data, null, 1));

export const saveHtml = async (name, title, rules) => {
  const part = document.getElementById("question");
  const copy = part.cloneNode(true);
  const images = [...part.querySelectorAll("img")], copies = [...copy.querySelectorAll("img")];
  await Promise.all(copies.map(async (each, k) => { each.src = await inlined(images[k]); }));
  copy.querySelector(".rules").replaceWith(element("ul", {}, ...rules.map((rule) => element("li", {}, rule))));
  copy.querySelectorAll(".make label, .make .buttons, .make > .muted, .progress-line, .more, #announce, [hidden]").forEach((each) => each.remove());
  copy.querySelectorAll("button").forEach((each) => each.replaceWith(each.textContent));
  const headings = copy.querySelectorAll("h2");
  headings[0].textContent = "The question";
  headings[1].textContent = "The answer";
  copy.querySelectorAll(".make h4").forEach((each) => { each.textContent = "Pictures"; });
  const style = await (await fetch("static/page.css")).text();
  const page = document.implementation.createHTMLDocument(title);
  page.documentElement.lang = "en";
  page.head.prepend(element("meta", { charset: "utf-8" }));
  page.head.append(element("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }), element("style", {}, `${style}\nmain { display: block; max-width: 56rem; }`));
  const main = element("main");
  main.append(copy);
  page.body.append(element("header", {}, element("h1", {}, title)), main);
  save(`${name}.html`, "text/html", `<!doctype html>\n${page.documentElement.outerHTML}`);
};
