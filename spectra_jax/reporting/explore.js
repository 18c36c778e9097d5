"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const explorers = new Map();

  // What a field holds is one value or a list of them; what is wanted is a value or a range "low..high".
  const matches = (value, wanted) => {
    const range = wanted.split("..");
    if (range.length === 2 && !Number.isNaN(Number(value))) {
      return value !== "" && Number(range[0]) <= Number(value) && Number(value) < Number(range[1]);
    }
    return Array.isArray(value) ? value.includes(wanted) : String(value) === wanted;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b), undefined, { numeric: true }) :
      x === y ? 0 : x < y ? -1 : 1;
  };
  // Rows without a value come last in either direction.
  const ordered = (items, get, key) => {
    if (!key) return items;
    const [field, sign] = key.startsWith("-") ? [key.slice(1), -1] : [key, 1];
    return [...items].sort((a, b) => {
      const [x, y] = [get(a, field), get(b, field)];
      return x === "" || y === "" ? compare(x, y) : sign * compare(x, y);
    });
  };

  // One section of cards or rows: `wanted` maps fields to what they shall be, "sort" to the field that orders.
  const explore = (section, items, get, draw, percent = () => false) => {
    const form = section.querySelector("form.explore");
    const tally = section.querySelector(".tally");
    const plain = tally.textContent;
    let wanted = {};
    const apply = () => {
      const filters = Object.entries(wanted).filter(([field]) => field !== "sort");
      const kept = items.filter((item) => filters.every(([field, value]) => matches(get(item, field), value)));
      draw(ordered(kept, get, wanted.sort), wanted.sort);
      const words = filters.map(([field, value]) => {
        const number = (end) => (percent(field) ? `${Number((100 * end).toPrecision(3))} %` : Number(Number(end).toPrecision(3)));
        const [low, high] = value.split("..");
        if (high === undefined) return `${field}: ${value}`;
        return `${field}: ${Number(low) ? number(low) : "up"} to ${number(high)}`;
      });
      tally.textContent = words.length ? `${kept.length} of ${items.length}, ${words.join("; ")}.` : plain;
      form.querySelector("[type=reset]").disabled = !Object.keys(wanted).length;
    };
    const set = (next) => {
      wanted = next;
      for (const control of form.elements) {
        if (control.type === "range") {
          control.value = wanted[control.name] === undefined ? control.max : control.value;
          control.previousElementSibling.textContent = Number(Number(control.value).toPrecision(3));
        } else if (control.name) control.value = wanted[control.name] ?? "";
      }
      apply();
    };
    form.hidden = false;
    form.addEventListener("input", ({ target }) => {
      const full = target.type === "range" && target.value === target.max;
      // A hair more, because a range excludes its upper end.
      const value = target.type === "range" ? `0..${Number(target.value) * (1 + 1e-9)}` : target.value;
      const next = { ...wanted, [target.name]: value };
      if (full || value === "") delete next[target.name];
      set(next);
    });
    form.addEventListener("reset", (event) => { event.preventDefault(); set({}); });
    explorers.set(section.id, { set, sort: (field) => set({ ...wanted, sort: wanted.sort === field ? `-${field}` : field }) });
    set({});
  };

  for (const section of all("section.of-cards:has(form.explore)")) {
    const cards = all(".card", section);
    const data = new Map(cards.map((card) => [card, JSON.parse(card.dataset.item)]));
    const grid = section.querySelector(".grid");
    explore(section, cards, (card, field) => data.get(card)[field] ?? data.get(card).metrics[field] ?? "", (kept) => {
      const shown = new Set(kept);
      for (const card of cards) card.hidden = !shown.has(card);
      grid.append(...kept);
    });
  }

  // Listings: the first rows are in the page, others are made when they are wanted.
  for (const section of all("section.of-listing")) {
    const columns = JSON.parse(section.querySelector("script").textContent);
    const place = new Map(columns.map((column, index) => [column.name, index]));
    const body = section.querySelector("tbody");
    const made = [...body.rows];
    const first = made.length;
    const pictures = body.closest("table").tHead.rows[0].cells.length > columns.length;
    const text = (column, row) => (column.texts ? column.texts[row] : column.names[column.places[row]]);
    const make = (row) => {
      const line = document.createElement("tr");
      if (pictures) line.append(document.createElement("td"));
      columns.forEach((column, index) => {
        const cell = document.createElement(index ? "td" : "th");
        if (!index) cell.scope = "row";
        if (column.texts) cell.className = "numeric";
        if (column.opens) {
          const link = document.createElement("a");
          link.href = `#${section.id}`;
          link.dataset.filter = new URLSearchParams({ [column.name]: text(column, row) });
          link.textContent = text(column, row);
          cell.append(link);
        } else cell.textContent = text(column, row);
        line.append(cell);
      });
      return line;
    };
    const get = (row, field) => {
      const column = columns[place.get(field)];
      return column === undefined ? "" : column.keys ? column.keys[row] : text(column, row);
    };
    const more = section.querySelector(".more");
    let [limit, kept] = [first, []];
    const fill = () => {
      body.replaceChildren(...kept.slice(0, limit).map((row) => (made[row] ??= make(row))));
      more.hidden = kept.length <= limit;
      more.textContent = `Show more (${kept.length - limit} left)`;
    };
    more.addEventListener("click", () => { limit += 100; fill(); });
    const form = section.querySelector("form.explore");
    for (const column of columns.filter((c) => c.opens).reverse()) {
      const label = document.createElement("label");
      const select = document.createElement("select");
      select.name = column.name;
      select.append(new Option("all", ""), ...[...column.names].sort().map((name) => new Option(name)));
      label.append(`${column.name} `, select);
      form.prepend(label);
    }
    const headings = all("button.sort", section);
    const count = (columns[0]?.keys ?? columns[0]?.places ?? []).length;
    explore(section, [...Array(count).keys()], get, (rows, sort) => {
      [limit, kept] = [first, rows];
      fill();
      headings.forEach((button, index) => {
        const direction = { [columns[index].name]: "ascending", [`-${columns[index].name}`]: "descending" }[sort];
        if (direction) button.closest("th").setAttribute("aria-sort", direction);
        else button.closest("th").removeAttribute("aria-sort");
      });
    }, (field) => columns[place.get(field)]?.percent);
    headings.forEach((button, index) => {
      button.addEventListener("click", () => explorers.get(section.id).sort(columns[index].name));
    });
  }

  // A link, a bar or an entry of a heat map shows what it counts.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-filter]");
    if (!link) return;
    event.preventDefault();
    const section = document.getElementById(link.hash.slice(1));
    explorers.get(section.id)?.set(Object.fromEntries(new URLSearchParams(link.dataset.filter)));
    section.scrollIntoView();
    const heading = section.querySelector("h2");
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  });
})();
