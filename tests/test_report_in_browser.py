"""The report in a browser: no error, no request, no sideways scrolling, and what its buttons do."""

import html as html_module
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_reporting import full_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=8000",
    "--dump-dom",
]
# Two frames of the report, at phone and desktop width; what they do is collected as JSON in the outer page.
HARNESS = """<!doctype html><pre id="out"></pre>
<script type="application/json" id="report">%s</script>
<script>
const source = JSON.parse(document.getElementById("report").textContent);
const frame = (width) => new Promise((done) => {
  const f = document.createElement("iframe");
  f.style.cssText = `width:${width}px;height:900px;border:0`;
  f.onload = () => done(f.contentDocument);
  f.srcdoc = source;
  document.body.append(f);
});
(async () => {
  const out = {};
  for (const width of [390, 1440]) {
    const d = await frame(width);
    for (const details of d.querySelectorAll("details")) details.open = true;
    out[`overflow${width}`] = d.documentElement.scrollWidth - d.documentElement.clientWidth;
    out[`images${width}`] = [...d.images].every((i) => i.complete && i.naturalWidth > 0);
  }
  const d = await frame(1440);
  out.opened = d.querySelectorAll(".card[open]").length;
  out.height = d.documentElement.scrollHeight;
  const table = d.querySelector("#methods table");
  const sort = (place) => {
    table.querySelectorAll("button.sort")[place].click();
    return [...table.tBodies[0].rows].map((r) => r.cells[0].textContent);
  };
  const aria = () => [...table.querySelectorAll("thead th")].map((h) => h.getAttribute("aria-sort"));
  out.up = sort(1); out.ariaUp = aria();
  out.down = sort(1); out.ariaDown = aria();
  out.names = sort(0); out.ariaNames = aria();
  out.share = sort(2);
  out.status = d.getElementById("announce").textContent;
  const visible = () => [...d.querySelectorAll(".card")].filter((c) => !c.hidden).length;
  const form = d.querySelector(".of-cards form.explore");
  const choose = (name, value) => {
    form.elements[name].value = value;
    form.elements[name].dispatchEvent(new d.defaultView.Event("input", { bubbles: true }));
  };
  choose("outcome", "not reached");
  out.cards = [visible(), d.querySelector(".of-cards .tally").textContent];
  form.querySelector("[type=reset]").click();
  out.cards.push(visible());
  d.querySelector(".card [data-filter^=attribute]").click();
  out.cards.push(visible());
  form.querySelector("[type=reset]").click();
  const order = (sort) => {
    choose("sort", sort);
    return [...d.querySelectorAll(".of-cards .card")].map((c) => JSON.parse(c.dataset.item).metrics.PSNR ?? null);
  };
  out.sorted = [order("-PSNR"), order("PSNR"), order("distance"), order("")];
  choose("distance", "2");
  out.near = [visible(), d.querySelector(".of-cards .tally").textContent];
  form.querySelector("[type=reset]").click();
  out.near.push(visible(), form.elements.distance.value);
  const listed = () => [...d.querySelectorAll("#samples tbody tr")].map((r) => r.cells[1].textContent);
  out.listed = [listed()];
  d.querySelector("#margins a[data-filter]").click();
  out.listed.push(listed());
  out.focus = d.activeElement.textContent;
  d.querySelector("#samples [type=reset]").click();
  d.querySelector("#samples .more").click();
  out.listed.push(listed());
  d.querySelectorAll("#samples button.sort")[2].click();
  d.querySelectorAll("#samples button.sort")[2].click();
  out.listed.push(listed());
  d.querySelector("#samples a[data-filter]").click();
  out.listed.push(listed());
  out.thumbs = d.querySelectorAll("#samples img").length;
  for (const details of d.querySelectorAll("details")) details.open = true;
  d.querySelector("a.term").click();
  out.tip = d.getElementById("tip").textContent;
  const link = d.querySelector(".picture .download");
  out.download = [link.hidden, link.download, link.href.slice(0, 15)];
  d.querySelectorAll("button.zoom")[1].click();
  const viewer = d.getElementById("viewer");
  const alt = () => viewer.querySelector("img").alt;
  out.viewer = [viewer.open, alt()];
  viewer.dispatchEvent(new d.defaultView.KeyboardEvent("keydown", { key: "ArrowRight" }));
  out.viewer.push(alt());
  viewer.close();
  const svg = d.querySelector("#distances svg");
  const box = svg.querySelector("image").getBoundingClientRect();
  svg.dispatchEvent(new d.defaultView.PointerEvent("pointermove",
    { clientX: box.right - 3, clientY: box.bottom - 3, bubbles: true }));
  out.readout = d.querySelector("#distances .readout").textContent;
  svg.dispatchEvent(new d.defaultView.MouseEvent("click",
    { clientX: box.right - 3, clientY: box.bottom - 3, bubbles: true }));
  out.listed.push(listed());
  d.querySelector("#distances .plot").dispatchEvent(
    new d.defaultView.KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
  out.arrow = d.querySelector("#distances .readout").textContent;
  document.getElementById("out").textContent = JSON.stringify(out);
})();
</script>"""


def dump_dom(page: Path, profile: Path) -> tuple[str, str]:
    command = [CHROMIUM, *FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """What the report did in headless Chromium, and what the browser logged."""
    if not CHROMIUM:
        pytest.skip("no Chromium or Chrome installed")
    folder = tmp_path_factory.mktemp("browser")
    probe = folder / "probe.html"
    probe.write_text("<p>works</p>", encoding="utf-8")
    if "works" not in dump_dom(probe, folder / "profile")[0]:
        pytest.skip(f"{CHROMIUM} is installed but does not run headless here")
    page = folder / "harness.html"
    report = json.dumps(full_report().html())
    page.write_text(HARNESS % report.replace("</", "<\\/").replace("<!--", "<\\u0021--"), encoding="utf-8")
    dom, log = dump_dom(page, folder / "profile")
    found = re.search(r'<pre id="out">(.+?)</pre>', dom, re.DOTALL)
    assert found, f"the page's script did not finish: {log[-2000:]}"
    return json.loads(html_module.unescape(found[1])), log


def test_browser_logs_no_error_and_asks_for_nothing(browser):
    out, log = browser
    assert not [line for line in log.splitlines() if "CONSOLE" in line]
    assert out["images390"] and out["images1440"]


def test_browser_never_scrolls_sideways(browser):
    assert browser[0]["overflow390"] <= 0 and browser[0]["overflow1440"] <= 0


def test_browser_sorts_tables(browser):
    out, name = browser[0], "Black_footed_Albatross"
    assert out["up"] == ["d", "a", "b", "c", name] and out["ariaUp"] == [None, "ascending", None, None]
    assert out["down"] == ["c", "b", "a", "d", name] and out["ariaDown"] == [None, "descending", None, None]
    assert out["names"] == ["a", "b", name, "c", "d"] and out["ariaNames"][0] == "ascending"
    assert out["share"] == ["d", "a", "b", "c", name]
    assert out["status"] == "Sorted by Share (%), ascending"


def test_browser_filters_defines_enlarges_and_reads_out(browser):
    out = browser[0]
    assert out["opened"] == 0 and out["cards"] == [2, "2 of 3, outcome: not reached.", 3, 1]
    assert out["sorted"] == [[41, 34, None], [34, 41, None], [34, 41, None], [34, 41, None]]
    assert out["near"] == [1, "1 of 3, distance: up to 2.", 3, "2.5"]
    assert "largest logit" in out["tip"]
    assert out["download"] == [False, "counterfactuals-01-original.png", "data:image/png;"]
    assert out["viewer"][0] and "Counterfactual image" in out["viewer"][1] and "minus original" in out["viewer"][2]
    assert out["readout"].startswith("B → B: 1.00; show all from B")
    assert out["arrow"].startswith("Black footed Albatross → B: 2.00")


def test_browser_lists_what_bars_classes_and_entries_count(browser):
    out = browser[0]
    first, bar, more, margin, by_class, entry = out["listed"]
    assert first == ["a", "b"] and bar == ["a", "b"] and out["focus"] == "Samples"
    assert more == ["a", "b", "c", "d"] and margin == ["c", "b"], "only the first rows are shown again after sorting"
    assert by_class == ["a", "c"] and entry == ["b"]
