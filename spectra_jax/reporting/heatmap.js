"use strict";
// Heat maps: the entry under the pointer or the arrow keys in words (screen readers also have the table below the map),
// and a link to the rows behind it, which a click on the entry or Enter follows.
for (const frame of document.querySelectorAll(".plot[data-names]")) {
  const image = frame.querySelector("svg image");
  const csv = frame.closest("section").querySelector("details .download[href^='data:text/csv']");
  if (!image || !csv) continue;
  const { rows, columns, rowTitle } = JSON.parse(frame.dataset.names);
  const bytes = Uint8Array.from(atob(csv.href.split(",")[1]), (c) => c.charCodeAt(0));
  const lines = new TextDecoder().decode(bytes).trimEnd().split("\n").slice(-rows.length);
  const values = lines.map((line) => line.split(",").slice(-columns.length));
  const readout = frame.closest("figure").querySelector(".readout");
  readout.hidden = false;

  let [row, column] = [0, 0];
  const read = (i, j) => {
    if (values[i]?.[j] === undefined) return false;
    [row, column] = [i, j];
    const words = { nan: "not defined", inf: "∞ (infinite)", "-inf": "−∞ (minus infinite)" };
    const value = words[values[i][j]] ?? Number(values[i][j]).toPrecision(3).replace("-", "−");
    readout.textContent = `${rows[i]} → ${columns[j]}: ${value}`;
    if (frame.dataset.opens) {
      const link = document.createElement("a");
      link.href = `#${frame.dataset.opens}`;
      link.dataset.filter = new URLSearchParams({ [rowTitle]: rows[i] });
      link.textContent = `show all ${rowTitle} ${rows[i]}`;
      readout.append("; ", link);
    }
    return true;
  };
  const readUnder = (event) => {
    const box = image.getBoundingClientRect();
    return read(
      Math.floor((event.clientY - box.top) / box.height * rows.length),
      Math.floor((event.clientX - box.left) / box.width * columns.length));
  };
  const follow = () => readout.querySelector("a")?.click();
  frame.addEventListener("pointermove", readUnder);
  frame.addEventListener("click", (event) => { if (readUnder(event)) follow(); });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      event.preventDefault();
      read(row + step[0], column + step[1]);
    } else if (event.key === "Enter") follow();
  });
}
