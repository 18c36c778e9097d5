"""The live page in headless Chromium: what a person does, in two tabs, and over a server that dies and comes back."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from explore_session import CLASSES, NAMES, TOKEN, make_session

from experiments.benchmarks.tools.chromium import EXECUTABLE, PageError, chromium
from experiments.explore.questions import Question

PICTURES = 10_000
CURRENT = "document.documentElement.dataset.answered === location.hash.slice(1)"
VERDICT = "document.querySelector('.verdict').textContent"


class Server:
    """The page's server in a process of its own, which can be killed."""

    def __init__(self, port=0):
        script = Path(__file__).with_name("explore_session.py")
        command = [sys.executable, str(script), str(port), str(PICTURES)]
        folder = Path(__file__).resolve().parents[1]
        environment = {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment)
        self.port = int(self.process.stdout.readline())

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/?token={TOKEN}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server():
    started = [Server()]
    yield started
    started[-1].kill()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not EXECUTABLE:
        pytest.skip("no Chromium or Chrome installed")
    try:
        with chromium(tmp_path_factory.mktemp("profile")) as running:
            yield running
    except PageError as error:
        pytest.skip(str(error))


def opened(browser, server, fragment=""):
    tab = browser.tab()
    tab.size(1440, 1000)
    tab.go(f"{server[-1].address}#{fragment}")
    tab.wait(CURRENT)
    return tab


def choose(tab, name, value):
    tab.run(f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}'; "
            "e.dispatchEvent(new Event('change')); })()")  # fmt: skip
    tab.wait(CURRENT)


def open_group(tab, word):
    tab.run(f"document.querySelector('[aria-label=\"Lock all of {word}\"]').closest('details').open = true")
    tab.wait(f"document.querySelector('[aria-label=\"Lock {word}: v0\"]')")


def click(tab, selector):
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


def test_a_person_picks_locks_drags_undoes_and_makes_a_picture(browser, server):
    session = make_session(PICTURES)
    tab = opened(browser, server)
    assert tab.run("document.querySelectorAll('.answer').length") == 2
    # by keyboard: the second picture of the grid
    tab.run("document.getElementById('grid').focus()")
    tab.press("ArrowRight", code=39)
    tab.press("Enter", code=13)
    tab.wait(f"location.hash.includes('picture=1') && {CURRENT}")
    choose(tab, "target", 3)
    choose(tab, "most", 3)
    expected = session.answer(Question(1, 3, at_most=3))
    assert f"{len(expected['changes'])} attributes would have to change" in tab.run(VERDICT)
    assert "to make it Some Bee" in tab.run(VERDICT)
    # lock a group, then drag within the other one
    open_group(tab, "colour")
    click(tab, "[aria-label='Lock all of shape']")
    tab.wait(f"location.hash.includes('lock=6-11') && {CURRENT}")
    assert "shape" not in tab.run("document.querySelector('.changes tbody').textContent")
    slider = "document.querySelector('[aria-label=\"Value of colour: v2\"]')"
    for step in (0.5, 1.0, 1.5):
        tab.run(f"{slider}.value = {step}; {slider}.dispatchEvent(new Event('input'))")
    tab.run(f"{slider}.dispatchEvent(new Event('change'))")
    tab.wait(f"/set=2:1.(4|5)/.test(location.hash) && {CURRENT}")
    value = tab.run("Number(location.hash.match(/set=2:([0-9.]+)/)[1])")
    question = Question(1, 3, locked=tuple(NAMES[6:12]), held=((NAMES[2], value),), at_most=3)
    expected = session.answer(question)
    assert "As you set it" in tab.run("document.getElementById('is').textContent")
    first = f"{100 * expected['start']['top'][0]['probability']:.1f} %"
    assert first in tab.run("document.getElementById('is').textContent")
    # the dragging is undone at once, and comes back
    click(tab, "#undo")
    tab.wait(f"!location.hash.includes('set=') && {CURRENT}")
    tab.press("z", modifiers=2 | 8, code=90)
    tab.wait(f"location.hash.includes('set=2:') && {CURRENT}")
    # the picture: the search, the real one beside it, and the verdict
    tab.run("document.querySelector('.start').scrollIntoView()")
    choose(tab, "most", "")
    tab.wait("document.querySelector('.shots figure')")  # the nearest real picture comes by itself
    click(tab, ".start")
    tab.wait("document.querySelector('.made').textContent")
    assert "The picture is now classified as Some Bee" in tab.run("document.querySelector('.made').textContent")
    tab.wait("[...document.querySelector('.answer').querySelectorAll('.shots img')].every((i) => i.naturalWidth > 0)")
    assert tab.run("document.querySelector('.answer').querySelectorAll('.shots figure').length") == 4
    assert not tab.errors


def test_impossible_is_explained_and_a_bad_link_does_no_harm(browser, server):
    tab = opened(browser, server, f"picture=2&target=0&lock=0-{len(NAMES) - 1}")
    assert tab.run(VERDICT) == "Within your rules it cannot become Some Owl."
    tab.wait("document.querySelector('.why').textContent.includes('immutable')")
    tab.run("location.hash = 'picture=1e9&target=-4&lock=7-99999999,x&set=a:b,3:&range=::,1&most=0&lead=-1'")
    tab.wait("document.querySelector('.verdict').textContent.includes('instead of')")
    assert tab.run("location.hash") != "" and not tab.errors


def test_ten_thousand_pictures_are_a_few_elements(browser, server):
    tab = opened(browser, server)
    assert "10,000 pictures" in tab.run("document.getElementById('grid-count').textContent")
    grid = "document.getElementById('grid')"
    for place in (0.3, 0.9, 0.5):
        tab.run(f"{grid}.scrollTop = {place} * {grid}.scrollHeight")
        tab.wait(f"[...document.querySelectorAll('.cell')].some((c) => Math.abs(c.offsetTop - {grid}.scrollTop) < 200)")
        assert tab.run("document.querySelectorAll('.cell').length") < 120
    tab.run(f"{grid}.focus()")
    tab.press("End", code=35)
    tab.wait(f"document.querySelector('.cell.active')?.getAttribute('aria-posinset') === '{PICTURES}'")
    choose(tab, "filter-class", 4)
    assert f"{PICTURES // CLASSES:,} pictures" in tab.run("document.getElementById('grid-count').textContent")


def test_the_page_fits_a_phone_and_has_a_name_for_every_control(browser, server):
    tab = opened(browser, server, "picture=3&target=1&most=4&lock=1,2&set=0:1.25")
    open_group(tab, "colour")
    for width in (1440, 820, 390):
        tab.size(width, 844)
        time.sleep(0.2)
        assert tab.run("document.documentElement.scrollWidth") <= width
    nameless = tab.run(
        "[...document.querySelectorAll('button, select, input')].filter((e) => !e.closest('[hidden]') && "
        "!(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert tab.run("[...document.images].every((i) => i.hasAttribute('alt'))")


def test_what_is_on_screen_is_saved(browser, server, tmp_path):
    tab = opened(browser, server, "picture=4&target=2&most=2")
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.wait("document.querySelector('.shots img')?.naturalWidth > 0")
    click(tab, "#export-json")
    click(tab, "#export-html")
    deadline = time.monotonic() + 60
    files = {tmp_path / f"explore-4.{kind}" for kind in ("json", "html")}
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.05)
    data = json.loads((tmp_path / "explore-4.json").read_text())
    expected = make_session(PICTURES).answer(Question(4, 2, at_most=2))
    assert data["question"]["picture"] == 4 and data["question"]["at_most"] == 2
    assert data["answers"][0]["distance"] == pytest.approx(expected["distance"], rel=1e-6)
    verdict = tab.run(VERDICT)
    away = browser.tab()
    away.go((tmp_path / "explore-4.html").as_uri())
    assert verdict in away.run("document.body.textContent") and "script" not in away.run("document.body.innerHTML")
    assert away.run("[...document.images].every((i) => i.src.startsWith('data:') && i.naturalWidth > 0)")
    assert away.run("document.images.length") >= 2 and not away.errors


def test_two_tabs_and_a_server_that_dies(browser, server):
    first, second = (opened(browser, server, f"picture={k}&target={(k + 1) % CLASSES}") for k in (11, 17))
    for lead in (1, 2, 3):
        for tab in (first, second):
            tab.run(f"(() => {{ const e = document.getElementById('lead'); e.value = {lead}; "
                    "e.dispatchEvent(new Event('change')); })()")  # fmt: skip
    session = make_session(PICTURES)
    for tab, picture in ((first, 11), (second, 17)):
        tab.wait(f"location.hash.includes('lead=3') && {CURRENT}")
        distance = session.answer(Question(picture, (picture + 1) % CLASSES, lead=3.0))["distance"]
        shown = float(tab.run("document.querySelector('.measure').textContent.match(/Distance ([0-9.]+)/)[1]"))
        assert shown == pytest.approx(distance, rel=5e-3)
    server[-1].kill()
    first.run("document.getElementById('observed').click()")
    first.wait("document.getElementById('banner').textContent.includes('does not answer')")
    before = first.run("location.hash")
    server.append(Server(server[-1].port))
    first.wait(f"document.getElementById('banner').hidden && {CURRENT}")
    assert first.run("location.hash") == before and "observed=1" in before
    assert "Some" in first.run(VERDICT)
