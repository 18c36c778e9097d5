"""The live page without a browser: its answers are the library's, and nobody else gets any."""

import dataclasses
import json
import re
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from explore_session import CLASSES, NAMES, TOKEN, make_session
from starlette.testclient import TestClient

import spectra_jax as sj
from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.explore.__main__ import listen, main
from experiments.explore.images import difference
from experiments.explore.making import Maker
from experiments.explore.questions import Question
from experiments.explore.runs import check_same_pictures, open_run, warm_up
from experiments.explore.security import kept_token
from experiments.explore.server import make_app
from experiments.explore.turns import Turns
from experiments.train import __main__ as train
from spectra_jax.logging import Console

HOST = "127.0.0.1:8765"


@pytest.fixture(scope="module")
def session():
    return make_session()


@pytest.fixture(scope="module")
def app(session):
    second = make_session(seed=1, name="another", turns=session.turns)
    shorter = dataclasses.replace(
        second,
        head=sj.Head(second.head.weights[:, :-1], second.head.bias),
        attributes=second.attributes[:, :-1],
        attribute_names=NAMES[:-1],
    )
    return make_app((session, shorter), token=TOKEN, hosts=(HOST, "localhost:8765"))


@pytest.fixture
def client(app):
    key = {"Authorization": f"Bearer {TOKEN}"}
    return TestClient(app, base_url=f"http://{HOST}", headers=key, raise_server_exceptions=False)


def asked(client, question, path="/api/answer", **more):
    return client.post(path, json={"question": question, **more})


@pytest.mark.parametrize("target", [None, 3])
def test_without_rules_the_answer_is_the_exact_projection(session, target):
    for picture in (0, 7, 23):
        answer = session.answer(Question(picture, target, lead=0.0))
        attributes = jnp.asarray(session.attributes[picture : picture + 1])
        norms = np.asarray(sj.all_pairs_norms(session.head, attributes))[0]
        own = int(session.predicted[picture])
        expected = norms[target] if target is not None else norms[np.arange(CLASSES) != own].min()
        np.testing.assert_allclose(answer["distance"], expected, rtol=1e-6, atol=1e-6)
        assert answer["near"][0]["distance"] == pytest.approx(norms[np.arange(CLASSES) != own].min(), rel=1e-6)


def test_rules_are_those_of_the_library(session):
    question = Question(
        4, 2, locked=("has_shape::*",), held=(("size", 1.5),), ranges=(("has_colour::v1", -2.0, 2.5),), at_most=4
    )
    answer = session.answer(question)
    start = session.attributes[4:5].copy()
    start[0, NAMES.index("size")] = 1.5
    expected = sj.explain(
        *(session.head, start),
        attribute_names=NAMES,
        targets=2,
        margin=0.5,
        immutable=("has_shape::*", "size"),
        ranges={"has_colour::v1": (-2.0, 2.5)},
        at_most=4,
    )
    assert answer["status"] == expected.answer(0).status.name
    np.testing.assert_allclose(answer["distance"], expected.norm[0, 0, 0], rtol=1e-6)
    changes = {change["name"]: change["after"] for change in answer["changes"]}
    assert 0 < len(changes) <= 4 and all(name.startswith("has_colour") for name in changes)
    assert answer["start"] != answer["picture"]
    end = session.end(question)
    assert all(np.isclose(end[NAMES.index(name)], after) for name, after in changes.items())
    leads = np.asarray(session.head.weights) @ end + np.asarray(session.head.bias)
    assert leads.argmax() == 2 and answer["end"]["lead"] == pytest.approx(0.5, abs=1e-3)


def test_the_quick_answer_is_checked_by_the_full_one(session):
    for picture in range(6):
        question = Question(picture, None, at_most=2)
        quick, full = session.answer(question, "quick"), session.answer(question, "full")
        assert full["settled"] and not quick["settled"]  # another class may be nearer under the limit
        assert full["distance"] <= quick["distance"] * (1 + 1e-9)
        named = session.answer(dataclasses.replace(question, target=full["target"]), "quick")
        assert named["settled"] == named["proven"]


def test_what_is_impossible_has_a_reason(session):
    question = Question(0, 3, locked=("has_*", "size"))
    assert session.answer(question)["status"] == "INFEASIBLE" and session.answer(question)["end"] is None
    assert "immutable" in session.reason(question)
    with pytest.raises(ValueError, match="no answer to make a picture of"):
        session.end(question)


def test_the_nearest_real_picture_is_the_nearest_of_its_class(session):
    question = Question(11, 4)
    real = session.nearest_real(question)
    everything = session.encode(jnp.asarray(session.training.read(np.arange(40)), jnp.float32) / 255)
    distances = np.linalg.norm(np.asarray(everything) - session.end(question), axis=1)
    distances[session.training.labels != 4] = np.inf
    assert real.number == distances.argmin() and real.distance == pytest.approx(distances.min(), rel=1e-5)


def finished(maker, number):
    deadline = time.monotonic() + 120
    while (job := maker.job(number)).state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


@pytest.mark.parametrize("aim", ["class", "attributes"])
def test_a_picture_is_made_and_judged_as_it_is_shown(session, aim):
    maker, question = Maker(), Question(2, 0)
    job = finished(maker, maker.start(session, question, aim))
    assert job.state == "done", job.reason
    assert job.report["reached"] and job.report["class"] == 0
    shown = jnp.asarray(job.images["result"][None], jnp.float32) / 255
    logits = sj.head_logits(session.head, session.encode(shown))
    assert int(jnp.argmax(logits)) == 0
    np.testing.assert_array_equal(job.images["original"], session.pictures.one(2))
    change = job.images["result"].astype(int) - job.images["original"]
    assert job.report["levels_largest"] == np.abs(change).max() > 0
    assert job.report["probability_after"] > job.report["probability_before"]
    assert not np.array_equal(job.images["difference"], np.full_like(job.images["original"], 128))


def test_a_crash_and_a_cancel_end_a_job_and_nothing_else(session):
    maker = Maker()
    broken = dataclasses.replace(session, encode=lambda images: images.sum(axis=(1, 2)))
    job = finished(maker, maker.start(broken, Question(2, 0), "class"))
    assert job.state == "failed" and "ValueError" in job.reason
    gate = threading.Event()

    class Held:
        """The session's pictures, handed out once the gate is open: by then the job has been cancelled."""

        def __getattr__(self, name):
            return getattr(session.pictures, name)

        def one(self, number):
            gate.wait(60)
            return session.pictures.one(number)

    number = maker.start(dataclasses.replace(session, pictures=Held()), Question(2, 0), "class")
    maker.job(number).stop.set()
    gate.set()
    cancelled = finished(maker, number)
    assert cancelled.state == "cancelled" and cancelled.steps == 0 and "result" not in cancelled.images
    assert session.answer(Question(2, 0))["status"] == "SOLVED"


def test_a_difference_is_amplified_around_grey():
    before = np.full((2, 2, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0, 0] += 4
    shown = difference(before, after)
    assert shown.factor == 127 / 4 and shown.pixels[0, 0, 0] == 255 and np.sum(shown.pixels != 128) == 1
    assert difference(before, before).factor == 1


def test_long_work_lets_short_work_pass():
    turns, order = Turns(), []

    def short():
        with turns.turn():
            order.append("short")

    with turns.turn():
        thread = threading.Thread(target=short)
        thread.start()
        while not turns.is_awaited:
            time.sleep(0.001)
        order.append("first half")
        turns.let_pass()
        order.append("second half")
    thread.join()
    assert order == ["first half", "short", "second half"]


def test_the_page_answers_for_both_models_and_says_what_one_does_not_know(client, session):
    question = {"picture": 3, "target": 1, "locked": ["size"], "at_most": 3}
    first, second = asked(client, question).json()["answers"]
    expected = session.answer(Question(3, 1, locked=("size",), at_most=3))
    assert {**first, "ignored": None} == {**expected, "ignored": None} and first["ignored"] == []
    assert second["ignored"] == ["size"] and second["model"] == "another"
    described = client.get("/api/session").json()
    assert described["classes"][0] == "Some Owl" and described["attributes"][0]["words"] == "colour: v0"
    assert described["predicted"] == session.predicted.tolist()
    assert client.get("/pictures/3.png").content[:4] == b"\x89PNG"
    assert client.get("/thumbnails/3.jpg").content[:2] == b"\xff\xd8"
    assert client.get("/pictures/999.png").status_code == 404
    assert asked(client, question, "/api/nearest-real").json()["real"]["number"] % CLASSES == 1
    assert "reason" in asked(client, {"picture": 0, "target": 3, "locked": ["*"]}, "/api/reason", model=1).json()


def test_a_picture_is_made_over_http(client):
    job = asked(client, {"picture": 1, "target": 2}, "/api/make", aim="class").json()["job"]
    deadline = time.monotonic() + 120
    while (state := client.get(f"/api/make/{job}").json())["state"] == "running":
        assert time.monotonic() < deadline
    assert state["state"] == "done" and state["report"]["reached"]
    for name in ("original", "result", "difference"):
        assert client.get(f"/api/make/{job}?image={name}").content[:4] == b"\x89PNG"
    assert client.get(f"/api/make/{job}?image=secret").status_code == 404
    assert client.delete(f"/api/make/{job}").status_code == 200
    assert "make it again" in client.get("/api/make/99").json()["error"]


@pytest.mark.parametrize(
    "body, status, words",
    [
        ("{", 400, "not JSON"),
        ("[" * 100_000, 400, "not JSON"),
        ("[1]", 400, "expected a JSON object|Expected a JSON object"),
        ("{}", 400, "expected an object with the field picture"),
        ('{"question": {"picture": 60}}', 400, "picture is 60; expected a whole number from 0 to 59"),
        ('{"question": {"picture": true}}', 400, "picture is True"),
        ('{"question": {"picture": 0, "target": "elk"}}', 400, "target is 'elk'"),
        ('{"question": {"picture": 0, "at_most": 0}}', 400, "from 1 to 16"),
        ('{"question": {"picture": 0, "lead": NaN}}', 400, "lead is nan"),
        ('{"question": {"picture": 0, "lead": -1}}', 400, "0 logits or more"),
        ('{"question": {"picture": 0, "locked": "size"}}', 400, "expected a list of names"),
        ('{"question": {"picture": 0, "locked": ["sise"]}}', 400, "did you mean 'size'"),
        ('{"question": {"picture": 0, "held": {"sise": 1}}}', 400, "did you mean 'size'"),
        ('{"question": {"picture": 0, "held": {"size": 1e999}}}', 400, "finite"),
        ('{"question": {"picture": 0, "ranges": {"size": [2, 1]}}}', 400, "the lower end first"),
        ('{"question": {"picture": 0, "ranges": {"size": 2}}}', 400, r"expected \[lowest, highest\]"),
        ('{"question": {"picture": 0, "observed": 1}}', 400, "true or false"),
        ('{"question": {"picture": 0, "colour": 1}}', 400, "unknown field 'colour'"),
        ('{"question": {"picture": 0}, "effort": "some"}', 400, "quick or full"),
        (" " * 2_000_000, 413, "too long"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(client, body, status, words):
    answer = client.post("/api/answer", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert re.search(words, answer.json()["error"])
    assert asked(client, {"picture": 0}).status_code == 200


def test_other_content_and_other_methods_are_refused(client):
    assert client.post("/api/answer", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.get("/api/answer").status_code == 405
    assert client.get("/static/../session.py").status_code == 404
    assert "never" in asked(client, {"picture": 0}, "/api/make", aim="never").json()["error"]
    assert "model is 7" in asked(client, {"picture": 0}, "/api/reason", model=7).json()["error"]


def test_a_crashed_solve_is_said_and_the_page_lives_on(client, monkeypatch):
    def crash(*_):
        raise FloatingPointError("out of numbers")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.explore.session.all_pairs_norms", lambda *_, **__: crash())
        answer = asked(client, {"picture": 9})
        assert answer.status_code == 500 and "out of numbers" in answer.json()["error"]
    assert asked(client, {"picture": 9}).status_code == 200


def test_nobody_without_the_key_is_answered(app):
    client = TestClient(app, base_url=f"http://{HOST}", follow_redirects=False)
    for path in ("/", "/api/session", "/static/main.js", "/pictures/0.png", "/nowhere"):
        assert client.get(path).status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    assert client.get("/", headers={"Authorization": f"Bearer {TOKEN[1:]}"}).status_code == 403
    opened = client.get(f"/?token={TOKEN}")
    assert opened.status_code == 303 and opened.headers["location"] == "/"
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    page = client.get("/")  # the cookie is in the client's jar now
    assert page.status_code == 200 and TOKEN not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "evil.example:8765"])
def test_other_hosts_are_refused(client, host):
    assert client.get("/api/session", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("origin, status", [("http://evil.example", 403), ("null", 403), (f"http://{HOST}", 200)])
def test_other_origins_are_refused(client, origin, status):
    answer = client.post("/api/answer", json={"question": {"picture": 0}}, headers={"Origin": origin})
    assert answer.status_code == status


def test_the_key_is_kept_and_for_its_owner_only(tmp_path):
    path = tmp_path / "deep" / "key"
    token = kept_token(path)
    assert kept_token(path) == token and len(token) >= 32 and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(UserError, match="read by others"):
        kept_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(UserError, match="holds no key"):
        kept_token(path)


def test_two_tabs_at_once_get_their_own_answers(client, session):
    questions = [
        Question(picture, target, at_most=limit) for picture in (1, 2) for target in (0, 3) for limit in (None, 2)
    ]
    answers = {}

    def ask(place, question):
        given = json.loads(json.dumps(dataclasses.asdict(question) | {"held": {}, "ranges": {}}))
        answers[place] = asked(client, given).json()["answers"][0]

    threads = [threading.Thread(target=ask, args=each) for each in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, question in enumerate(questions):
        assert answers[place]["distance"] == session.answer(question)["distance"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The smallest model, trained for an instant on a few drawn birds."""
    folder = tmp_path_factory.mktemp("explore")
    birds = generate(folder / "birds", num_classes=4, images_per_class=16, workers=1, progress=False)
    command = ["--model", "linear", "--data-dir", str(birds), "--run-dir", str(folder / "run"), "--epochs", "2"]
    assert train.main([*command, "--quiet"]) == 0
    return folder / "run"


def test_a_run_is_opened_and_compiled(run_dir):
    session = open_run(run_dir, Turns())
    warm_up(session, console=Console(quiet=True))
    rows = np.arange(5)
    with session.turns.turn():
        encoded = session.encode_images(session.pictures.read(rows))
    np.testing.assert_allclose(encoded, session.attributes[rows], rtol=1e-3, atol=1e-3)
    real = session.nearest_real(Question(0, 1))
    assert session.training.labels[real.number] == 1
    check_same_pictures(session, session)
    fewer = dataclasses.replace(session, pictures=session.pictures._replace(labels=session.pictures.labels[1:]))
    with pytest.raises(UserError, match="other test pictures"):
        check_same_pictures(session, fewer)
    with pytest.raises(UserError, match="other classes"):
        check_same_pictures(session, dataclasses.replace(session, class_names=session.class_names[1:]))


def test_the_command_explains_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        main(["--run-dir", str(tmp_path), "--port", "0", "--no-browser"])
    with listen(0) as taken, pytest.raises(UserError, match="choose another port, or 0"):
        listen(taken.getsockname()[1])
    with pytest.raises(UserError, match="--port 99999"):
        listen(99999)
