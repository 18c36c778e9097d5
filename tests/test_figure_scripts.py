"""Activation maps and the paper's figures on a small trained run: choices, certificates, pruning, verdicts, files."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.counterfactuals import parts as part_module
from experiments.counterfactuals.few_pixels import fewest_pixels
from experiments.paper_figures import __main__ as paper_figures
from experiments.paper_figures import measure as figure_search
from experiments.paper_figures.cases import CASES
from experiments.paper_figures.measure import Figure, judge
from experiments.paper_figures.requests import FORCED, Case, Choice, intervals, request
from experiments.runs.loading import load_run, load_test_split
from experiments.runs.part_names import PARTS, group_of, part_names
from experiments.saliency import __main__ as saliency
from experiments.saliency.page import Map, figures, verdict
from experiments.train import __main__ as train
from spectra_jax import Head, Status, activation_map, head_logits, single_attribute_perturbations
from spectra_jax.names import readable_attribute


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The smallest model, trained for an instant on four classes of drawn birds."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        birds = generate(folder / "birds", num_classes=4, images_per_class=16, workers=1, progress=False)
        command = ["--model", "linear", "--data-dir", str(birds), "--run-dir", str(folder / "run"), "--epochs", "6"]
        assert train.main([*command, "--quiet"]) == 0
        yield folder / "run"


def test_parts_follow_the_group_of_the_attribute():
    assert part_names("has_nape_color::purple") == ("nape",)
    assert part_names("has_under_tail_color::white") == ("tail",)
    assert part_names("has_underparts_color::black") == ("belly", "breast")
    for whole in ("has_size::very_small_(3_-_5_in)", "has_shape::duck-like", "has_primary_color::red"):
        assert part_names(whole) == ()
    assert readable_attribute("has_bill_length::about_the_same_as_head") == "bill length: about the same as head"


def test_every_attribute_of_cub_has_a_part_or_none_on_purpose(cub_dir):
    lines = (cub_dir / "attributes.txt").read_text().splitlines()
    groups = {line.split()[1].partition("::")[0] for line in lines}
    without = {group for group in groups if not part_names(group)}
    assert without == {"has_size", "has_shape", "has_primary_color"}
    parts = {line.split(" ", 1)[1] for line in (cub_dir / "CUB_200_2011/parts/parts.txt").read_text().splitlines()}
    assert {name for names in PARTS.values() for name in names} <= parts


def test_lift_is_one_by_chance_and_one_over_the_area_at_best():
    inside = np.zeros((10, 10), bool)
    inside[:2, :5] = True
    assert part_module.lift(np.ones((10, 10)), inside) == pytest.approx(1)
    assert part_module.lift(inside * 3.0, inside) == pytest.approx(10)
    assert part_module.lift(~inside * 1.0, inside) == 0
    assert np.isnan(part_module.lift(np.zeros((10, 10)), inside))


def test_discs_lie_at_the_parts_of_the_picture(run_dir):
    run = load_run(run_dir)
    example = run.dataset.example("test", 0)
    side = 50
    discs = part_module.part_discs(run.info, example, "has_nape_color::purple", side)
    x, y, visible = example["parts"][run.info.part_names.index("nape")]
    assert visible
    height, width = example["image"].shape[:2]
    np.testing.assert_allclose(discs.centres, [[x * side / width, y * side / height]])
    assert discs.inside[int(y * side / height), int(x * side / width)]
    assert discs.inside.mean() == pytest.approx(np.pi * part_module.RADIUS**2, rel=0.2)
    hidden = example | {"parts": example["parts"] * np.array([1, 1, 0], np.float32)}
    assert part_module.part_discs(run.info, hidden, "has_nape_color::purple", side) is None
    assert part_module.part_discs(run.info, example, "has_size::small", side) is None


def test_pictures_show_marks_heat_and_rings():
    image = np.full((112, 112, 3), 100, np.uint8)
    strength = np.zeros((112, 112))
    strength[50, 60] = 2.0
    inside = np.zeros((112, 112), bool)
    discs = part_module.PartDiscs(("nape",), np.array([[20.0, 20.0]]), 8.0, inside)
    large = part_module.marked(image, strength, discs)
    assert large.shape == (448, 448, 3)
    bright = np.any(large[:, :, 0] > 200, axis=-1) if large.ndim == 4 else large[..., 0] > 200
    assert bright[4 * 49 : 4 * 52, 4 * 59 : 4 * 62].all() and not bright[4 * 53 :].any()
    assert (large[78:84, 46:52] == 255).all(axis=-1).any()  # the ring passes the left end of the disc
    np.testing.assert_array_equal(part_module.heat(image, np.ones((112, 112)), None)[..., 0], 60)  # even: no colour
    assert part_module.heat(image, strength, None)[4 * 50, 4 * 60, 0] > 150


def test_saliency_writes_maps_that_are_those_of_the_library(run_dir, tmp_path):
    out = tmp_path / "out"
    base = ["--run-dir", str(run_dir), "--out", str(out), "--quiet"]
    assert saliency.main([*base, "--image", "0", "5", "--attribute", "has_nape_color::blue", "0", "--top-k", "40"]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["index"] for row in records] == [0, 0, 5, 5]
    run = load_run(run_dir)
    f = run.info.find_attribute("has_nape_color::blue")
    images = jnp.asarray(run.dataset.images("test", np.array([5]), image_size=32), jnp.float32) / 255
    kept = activation_map(functools.partial(run.model.encode, run.params), images, f, top_k=40)[0] > 0
    discs = part_module.part_discs(run.info, run.dataset.example("test", 5), "has_nape_color::blue", 32)
    assert records[2]["lift"] == pytest.approx(part_module.lift(np.asarray(kept), discs.inside))
    assert "nape" not in part_names(records[2]["control_attribute"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["saliency/num_maps"] == 4
    page = (out / "report.html").read_text()
    assert page.count("<figure") == 4 and "nape color: blue" in page

    assert saliency.main([*base, "--num-images", "3", "--num-attributes", "2"]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 6
    attributes, labels, _ = load_test_split(run_dir)
    head = run.model.head(run.params)
    predicted = np.asarray(head_logits(head, attributes)).argmax(-1)
    for row in records:
        assert predicted[row["index"]] == labels[row["index"]] == row["label"]
    counts = np.asarray(head.weights)[records[0]["label"]] * attributes[records[0]["index"]]
    assert records[0]["contribution"] == pytest.approx(counts.max(), rel=1e-5)


def test_saliency_explains_what_is_not_there(run_dir, tmp_path):
    base = ["--run-dir", str(run_dir), "--out", str(tmp_path / "out"), "--quiet"]
    for arguments, message in (
        (["--attribute", "has_nape_color::purpel"], "did you mean has_nape_color::purple"),
        (["--attribute", "400"], "no attribute has the 0-based id 400"),
        (["--image", "9999"], "--image 9999: the test split has the images 0 to"),
        (["--image", "-1"], "--image -1: the test split has"),
        (["--top-k", "0"], "--top-k 0: expected 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            saliency.main([*base, *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("own", "control", "start"),
    [(3.0, 1.0, "The maps lie on the part"), (3.0, 3.5, "The maps prefer these places"), (1.1, 1.0, "The maps do not")],
)
def test_saliency_verdict_follows_from_the_numbers(own, control, start):
    rng = np.random.default_rng(0)
    discs = part_module.PartDiscs(("nape",), np.zeros((1, 2)), 1.0, np.zeros((2, 2), bool))
    blank = np.zeros((2, 2, 3), np.uint8)
    pairs = [(own + rng.normal() * 1.0, control + rng.normal() * 1.0) for _ in range(100)]
    maps = [Map(0, 0, 0, 1.0, blank, blank[..., 0], discs, a, 1, b) for a, b in pairs]
    assert verdict(figures(maps)).startswith(start)
    assert "nothing can be said" in verdict(figures([maps[0]._replace(control=None)]))


def test_intervals_are_those_of_the_library_and_name_the_rivals():
    rng = np.random.default_rng(1)
    head = Head(jnp.asarray(rng.normal(size=(6, 4)), jnp.float32))
    e = jnp.asarray(rng.normal(size=4), jnp.float32)
    logits = np.asarray(head_logits(head, e), np.float64)
    seen = set()
    for f in range(4):
        room = intervals(head.weights[:, f], logits, 0.1)
        for j in range(6):
            result = single_attribute_perturbations(head, e, j, margin=0.1)
            np.testing.assert_allclose((room.lower[j], room.upper[j]), (result.lower[f], result.upper[f]), rtol=1e-3)
            assert (room.lower[j] <= room.upper[j]) == bool(result.feasible[f])
            for t, rival in ((room.lower[j] - 1e-3, room.lower_rival[j]), (room.upper[j] + 1e-3, room.upper_rival[j])):
                if np.isfinite(t):  # just outside the interval that rival is indeed not beaten by the margin
                    moved = logits + t * np.asarray(head.weights[:, f], np.float64)
                    assert moved[j] - moved[rival] < 0.1
            seen.add(bool(result.feasible[f]))
    assert seen == {True, False}


def test_a_parallel_rival_that_is_ahead_is_never_overtaken():
    room = intervals(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.5]), 0.0)
    assert room.nearest()[0] == np.inf and room.lower_rival[0] == 1
    assert room.nearest()[1] == 0


def plain_run(run, weights):
    """The run with another head; its attribute names and classes stay."""
    return run._replace(model=FixedHead(Head(jnp.asarray(weights, jnp.float32))))


class FixedHead:
    def __init__(self, head):
        self._head = head

    def head(self, params):
        return self._head


def test_requests_go_from_the_papers_to_the_next_best(run_dir):
    run = load_run(run_dir)
    n, f = run.info.num_attributes, run.info.find_attribute("has_nape_color::purple")
    case = Case("nape", "", "", attribute="185")
    choice, spread, before = Choice(0, 0, 1, f, 5, 0), np.ones(n, np.float32), np.zeros(n, np.float32)
    before[0] = 1.0
    weights = np.zeros((4, n), np.float32)
    weights[0, 0] = 1.0  # class 0 is ahead by 1
    weights[1, f] = 1.0
    alone = request(plain_run(run, weights), case, choice, before, spread, 0.5)
    assert alone.kind == "single" and np.flatnonzero(alone.delta).tolist() == [f]
    assert alone.delta[f] == pytest.approx(1.5)

    weights[2, f] = 2.0  # class 2 gains more from the attribute: class 1 can only win with another one of the group
    weights[1, f - 1] = 1.0
    group = request(plain_run(run, weights), case, choice, before, spread, 0.5)
    names = [run.info.attribute_names[k] for k in np.flatnonzero(np.abs(group.delta) > 1e-6)]
    assert group.kind == "group" and {group_of(name) for name in names} == {"has_nape_color"}
    rival = run.info.class_names[2].replace("_", " ")
    assert f"{rival} is ahead" in group.explanation or f"overtake {rival}" in group.explanation

    weights[1, f - 1] = 0.0  # and now not even the group can
    weights[1, 3] = 1.0
    forced = request(plain_run(run, weights), case, choice, before, spread, 0.5)
    assert forced.kind == "forced" and forced.delta[f] == pytest.approx(FORCED)
    logits = (before + forced.delta) @ weights.T
    assert logits[1] - np.delete(logits, 1).max() == pytest.approx(0.5, abs=1e-4)
    down = request(
        plain_run(run, weights), Case("x", "", "", attribute="185", direction=-1), choice, before, spread, 0.5
    )
    assert down.delta[f] < 0 or down.kind == "group"


def test_pruning_keeps_the_flip_and_only_what_it_needs():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.1, 1, size=(20, 20)).astype(np.float32)
    weights[3, 4] = weights[9, 9] = 30.0  # two pixels decide
    original = np.full((20, 20, 3), 0.5, np.float32)
    changed = np.clip(original + 0.1 * rng.uniform(0.8, 1.2, size=original.shape), 0, 1).astype(np.float32)

    def encode(images):
        return jnp.sum((images - 0.5) * weights[None, :, :, None], axis=(1, 2, 3))[:, None]

    head = Head(jnp.asarray([[0.0], [1.0]], jnp.float32), jnp.asarray([15.0, 0.0], jnp.float32))
    pruned = fewest_pixels(encode, head, original, changed, 1)
    assert pruned.minimal and {(3, 4), (9, 9)} == set(zip(*np.nonzero(pruned.mask), strict=True))
    np.testing.assert_array_equal(pruned.image, np.where(pruned.mask[..., None], changed, original))
    harder = head._replace(bias=jnp.asarray([23.0, 0.0], jnp.float32))  # two are not enough now
    more = fewest_pixels(encode, harder, original, changed, 1)
    assert 2 < more.mask.sum() < 100 and more.minimal
    lead = head_logits(harder, encode(more.image[None]))[0]
    assert lead[1] > lead[0]
    for place in np.argwhere(more.mask):  # none of them can be left out
        without = more.image.copy()
        without[tuple(place)] = original[tuple(place)]
        lead = head_logits(harder, encode(without[None]))[0]
        assert lead[1] <= lead[0]
    with pytest.raises(ValueError, match="not classified as the target"):
        fewest_pixels(encode, head._replace(bias=jnp.asarray([99.0, 0.0])), original, changed, 1)


GOOD = {"reached": True, "rank": 1, "achieved_delta": 2.0, "achieved_spreads": 2.0, "lift": 5.0, "levels_in_part": 20.0,
        "high_frequency_share": 0.1, "l0": 40, "pixels_changed": 0.001}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "short"),
    [
        ({}, "as the paper says"),
        ({"reached": False}, "not reached"),
        ({"lift": 1.1}, "partly"),
        ({"lift": 1.1, "high_frequency_share": 0.9}, "adversarial noise"),
        ({"rank": 40, "levels_in_part": 0.5}, "adversarial noise"),
        ({"achieved_delta": -2.0}, "partly"),  # moved most, but the wrong way
    ],
)
def test_verdicts_follow_from_the_numbers(change, short):
    figure = Figure(*([0] * 14))._replace(image=np.zeros((9, 9, 3), np.uint8), reason=int(Status.BUDGET))
    figure = figure._replace(kind="single")
    verdict = judge(CASES[0], figure, GOOD | change, "nape", 312)
    assert verdict.short == short
    few = next(case for case in CASES if case.few_pixels)
    if not change:
        assert judge(few, figure, GOOD, "", 312).short == "as the paper says"
        assert judge(few, figure, GOOD | {"pixels_changed": 0.2}, "", 312).short == "not few"
        forced = judge(CASES[0], figure._replace(kind="forced"), GOOD, "nape", 312)
        assert (
            forced.short == "as the paper says, other request" and "a change other than the paper's" in forced.reasons
        )
        assert "rank 7 of 312" in judge(CASES[0], figure, GOOD | {"rank": 7}, "nape", 312).reasons


def test_the_page_of_figures_and_its_repetition(run_dir, tmp_path, monkeypatch):
    run = load_run(run_dir)
    names = run.info.class_names
    attributes, labels, _ = load_test_split(run_dir)
    right = np.asarray(head_logits(run.model.head(run.params), attributes)).argmax(-1) == labels
    source = names[int(np.bincount(labels[right]).argmax())]
    cases = (
        Case("nape", "A nape", "Section 5.2.1", source, next(n for n in names if n != source), "185"),
        Case("pixels", "Few pixels", "Section 5.2.4", source, few_pixels=True),
        Case("back", "Any back", "Section 5.2.5", attribute="has_back_color::grey"),
    )
    args = paper_figures.Args(out=tmp_path / "out", run_dir=run_dir, max_steps=60, quiet=True)
    path, code = paper_figures.paper_figures(args, cases)
    assert code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["figure"] for row in records] == ["nape", "pixels", "back"]
    page = path.read_text()
    for row, case in zip(records, cases, strict=True):
        assert row["reasons"] in page.replace("&#39;", "'").replace("&#43;", "+") and case.title in page
        [kept] = (tmp_path / "out" / "figures").glob(f"{case.key}-*.npz")
        stored = dict(np.load(kept))
        images = jnp.asarray(np.stack([stored["image"], stored["result"]]), jnp.float32) / 255
        logits = np.asarray(head_logits(run.model.head(run.params), run.model.encode(run.params, images)))
        assert logits[0].argmax() == stored["source"] == labels[stored["row"]]
        assert (logits[1].argmax() == stored["target"]) == row["reached"] == summary[f"{case.key}/reached"]
        changed = int(np.any(stored["image"] != stored["result"], axis=-1).sum())
        assert changed == row["l0"]
    assert summary["figures/reached"] == sum(row["reached"] for row in records)

    monkeypatch.setattr(figure_search, "find_figure", lambda *_, **__: pytest.fail("a figure was searched for again"))
    paper_figures.paper_figures(args, cases)
    assert {**json.loads((tmp_path / "out" / "summary.json").read_text()), "seconds": 0} == {**summary, "seconds": 0}


def test_figures_explain_what_is_missing(run_dir, tmp_path):
    base = ["--out", str(tmp_path / "out"), "--quiet"]
    for arguments, message in (
        ([], "Give --run-dir, a trained run, or --data-dir"),
        (["--run-dir", str(run_dir), "--data-dir", "x"], "either --run-dir or --data-dir"),
        (["--run-dir", str(run_dir), "--figures", "wing"], "--figures wing: expected some of nape, breast"),
        (["--run-dir", str(run_dir), "--max-steps", "0"], "--max-steps 0"),
        (["--run-dir", str(run_dir)], "figure 'nape': no class named 'Brewer_Blackbird'"),
    ):
        with pytest.raises(UserError, match=message):
            paper_figures.main([*base, *arguments])


@pytest.mark.cub
def test_the_figures_name_what_cub_has(cub_dir):
    lines = (cub_dir / "attributes.txt").read_text().splitlines()
    names = {"nape": "has_nape_color::purple", "breast": "has_breast_color::green", "crown": "has_crown_color::buff",
             "underparts": "has_underparts_color::black", "size": "has_size::very_small_(3_-_5_in)"}  # fmt: skip
    classes = {line.split(".", 1)[1] for line in (cub_dir / "CUB_200_2011" / "classes.txt").read_text().splitlines()}
    for case in CASES:
        if case.attribute is not None:
            assert lines[int(case.attribute)].split()[1] == names[case.key]
        plain = {name.replace("-", "_") for name in classes}
        assert all(name is None or name in plain for name in (case.source, case.target))
