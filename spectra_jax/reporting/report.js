"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const announce = (text) => { document.getElementById("announce").textContent = text; };

  // Tables: a heading sorts its column; what is not defined stays last in either direction.
  const compare = (place, sign) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[place]);
    if (x.dataset.key === undefined) {
      return sign * x.textContent.localeCompare(y.textContent, undefined, { numeric: true });
    }
    if (x.dataset.key === "" || y.dataset.key === "") return (x.dataset.key === "") - (y.dataset.key === "");
    const [p, q] = [Number(x.dataset.key), Number(y.dataset.key)];
    return p === q ? 0 : sign * (p < q ? -1 : 1);
  };
  for (const button of all("table:not(.long) button.sort")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const body = heading.closest("table").tBodies[0];
      const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", direction);
      if (body.rows[0].cells.length === heading.parentNode.cells.length) {
        const sign = direction === "ascending" ? 1 : -1;
        body.append(...[...body.rows].sort(compare(heading.cellIndex, sign)));
      }
      announce(`Sorted by ${button.textContent.trim()}, ${direction}`);
    });
  }

  // Definitions open beside the word; without this they are links to the glossary.
  const tip = document.getElementById("tip");
  if (tip.showPopover) {
    for (const link of all("a.term")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        const entry = document.getElementById(link.hash.slice(1));
        tip.replaceChildren(...[...entry.children].map((part) => {
          const copy = document.createElement("p");
          copy.append(...[...part.cloneNode(true).childNodes]);
          return copy;
        }));
        tip.showPopover();
        const at = link.getBoundingClientRect();
        const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
        const below = at.bottom + 6 + tip.offsetHeight < window.innerHeight;
        tip.style.left = `${Math.max(8, left)}px`;
        tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
        tip.focus({ preventScroll: true });
      });
    }
    window.addEventListener("scroll", () => tip.hidePopover(), { passive: true });
  }

  // Pictures: downloads, and one large view in which the pictures of a card replace each other in place.
  for (const link of all(".picture .download")) {
    link.href = link.closest(".picture").querySelector("img").src;
    link.hidden = false;
  }
  const viewer = document.getElementById("viewer");
  const stage = viewer.querySelector(".stage");
  const choice = viewer.querySelector(".choice");
  const show = (pictures, place) => {
    const image = pictures[place].querySelector("img").cloneNode();
    stage.replaceChildren(image);
    all("button", choice).forEach((b, i) => b.setAttribute("aria-pressed", String(i === place)));
    viewer.dataset.place = place;
  };
  let shown = [];
  for (const button of all("button.zoom")) {
    button.addEventListener("click", () => {
      const card = button.closest(".card");
      shown = card ? all(".picture", card) : [button.closest(".picture")];
      const name = (picture) => picture.querySelector("figcaption").firstChild.textContent.trim();
      document.getElementById("viewer--title").textContent =
        card ? card.querySelector("h3").textContent.replace("→", "").replace(/\s+/g, " ") : name(shown[0]);
      choice.replaceChildren(...(shown.length > 1 ? shown : []).map((picture, i) => {
        const pick = document.createElement("button");
        pick.type = "button";
        pick.textContent = name(picture);
        pick.addEventListener("click", () => show(shown, i));
        return pick;
      }));
      show(shown, shown.indexOf(button.closest(".picture")));
      viewer.showModal();
    });
  }
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(shown, (Number(viewer.dataset.place) + step + shown.length) % shown.length);
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  document.getElementById("viewer--close").addEventListener("click", () => viewer.close());

  // A folded section opens when it is gone to.
  const reveal = (id) => {
    for (let place = document.getElementById(id); place; place = place.parentElement) {
      if (place.matches("details")) place.open = true;
      if (place.matches("section")) for (const fold of all(":scope > details.fold", place)) fold.open = true;
    }
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link) reveal(link.hash.slice(1));
  });
  if (location.hash) reveal(location.hash.slice(1));

  // On paper folded sections are open; cards stay the lines they are.
  window.addEventListener("beforeprint", () => { for (const d of all("details:not(.card, .card *)")) d.open = true; });
})();
