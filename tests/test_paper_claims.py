"""The claims of the paper: each statistic where the claim is planted and where it is not, and a whole small run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from data_prep.synthetic.vocabulary import RGB
from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.counterfactuals.find import Counterfactuals
from experiments.paper_claims import __main__ as paper_claims
from experiments.paper_claims import comparisons, measure
from experiments.paper_claims.comparisons import Material
from experiments.paper_claims.images import FlipChecks, Singles
from experiments.paper_claims.page import examples
from experiments.paper_claims.pruning import make_pruner
from experiments.paper_claims.regions import Regions
from experiments.paper_claims.solve import run_names
from experiments.paper_claims.statistics import (
    Comparison,
    agreement,
    clustered_interval,
    cosine,
    judge,
    matched_auroc,
    overall,
    percentile_of,
    read_interval,
)
from experiments.runs.loading import load_run, load_test_split
from experiments.train import __main__ as train
from spectra_jax import Head

CLASSES = 6


def compared(value, control, cluster, least=0.1, **options):
    return Comparison("5.2.2", "name", "statement", np.asarray(value), np.asarray(control), np.asarray(cluster), least,
                      **options)  # fmt: skip


def test_verdicts_follow_the_rule():
    assert read_interval(0.3, 0.1, 0.5, 0.2, 10) == "holds"
    assert read_interval(0.15, 0.1, 0.3, 0.2, 10) == "undecided"
    assert read_interval(0.05, 0.01, 0.1, 0.2, 10) == "fails"
    assert read_interval(0.3, -0.1, 0.5, 0.2, 10) == "undecided"
    assert read_interval(0.3, 0.1, 0.5, 0.2, 4) == "undecided"
    rng = np.random.default_rng(0)
    cluster, noise = np.repeat(np.arange(20), 10), rng.normal(size=200)
    assert judge(compared(1 + noise, np.zeros(200), cluster)).verdict == "holds"
    assert judge(compared(0.1 * noise, np.zeros(200), cluster)).verdict == "fails"
    assert judge(compared(0.1 + noise, np.zeros(200), cluster)).verdict == "undecided"
    absent = judge(compared(np.full(200, np.nan), np.zeros(200), cluster))
    assert absent.verdict == "missing" and absent.pairs == 0
    half = judge(compared(np.where(cluster < 10, 1.0, np.nan), np.full(200, 0.25), cluster))
    assert (half.pairs, half.clusters, half.difference, half.low, half.high) == (100, 10, 0.75, 0.75, 0.75)
    assert overall(["holds", "missing"]) == "holds" and overall(["missing"]) == "missing"
    assert overall(["holds", "undecided"]) == "undecided" and overall(["undecided", "fails"]) == "fails"


def test_pairs_of_one_class_are_not_independent():
    cluster = np.repeat(np.arange(10), 50)
    together = np.repeat(np.random.default_rng(1).normal(size=10), 50)
    low, high = clustered_interval(together, cluster)
    as_if = clustered_interval(together, np.arange(500))
    # Fifty copies say no more than one: the interval is that of ten numbers, sqrt(50) times as wide.
    assert (high - low) / (as_if[1] - as_if[0]) == pytest.approx(np.sqrt(50), rel=0.15)
    assert high - low == pytest.approx(2 * 1.96 * together[::50].std() / np.sqrt(10), rel=0.15)


def test_small_statistics_by_hand():
    np.testing.assert_array_equal(agreement(np.array([2.0, -1, 0, 3]), np.array([1.0, 5, 1, np.inf])),
                                  [1, 0, np.nan, np.nan])  # fmt: skip
    np.testing.assert_allclose(cosine(np.array([[3.0, 4], [0, 0]]), np.array([[4.0, 3], [1, 1]])), [0.96, np.nan])
    assert percentile_of(np.array([3.0, 1, 2, 3, 5]), 0) == pytest.approx((2 + 0.5) / 4)


def test_auroc_matches_frequencies_and_draws_groups():
    score = np.array([5.0, 4, 1, 2, 3, np.nan])
    colour, shape = np.array([1, 1, 1, 0, 0, 1], bool), np.array([0, 0, 0, 1, 1, 0], bool)
    frequency = np.array([0.1, 0.5, 0.1, 0.1, 0.5, 0.1])
    group = np.array(["a", "b", "b", "c", "d", "a"])
    value, low, high, pairs = matched_auroc(score, colour, shape, frequency, group, ratio=None)
    assert value == pytest.approx(4 / 6) and pairs == 6 and low <= value <= high
    value, _, _, pairs = matched_auroc(score, colour, shape, frequency, group, ratio=2.0)
    assert value == pytest.approx(2 / 3) and pairs == 3  # 5 and 1 against 2, 4 against 3
    assert matched_auroc(score, colour, ~colour & ~shape, frequency, group, ratio=None)[3] == 0


def test_examples_are_top_middle_and_bottom():
    value = np.array([0.0, 9, 3, np.nan, 5, 7, 1, 8])
    found = examples(compared(value, np.zeros(8), np.zeros(8)))
    assert found == [("best", 1), ("best", 7), ("middle", 4), ("middle", 2), ("worst", 0), ("worst", 6)]
    assert len(examples(compared(value[:2], np.zeros(2), np.zeros(2)))) == 2
    assert examples(compared(np.full(3, np.nan), np.zeros(3), np.zeros(3))) == []


def test_run_names_tell_folders_apart(tmp_path):
    assert run_names((tmp_path / "a" / "x", tmp_path / "a" / "y")) == ["x", "y"]
    assert run_names((tmp_path / "a" / "x", tmp_path / "b" / "x")) == ["a-x", "b-x"]
    with pytest.raises(UserError, match="twice"):
        run_names((tmp_path, tmp_path))


def test_colours_move_towards_the_word_or_its_complement():
    region = np.ones((4, 4), bool)
    grey = np.full((4, 4, 3), 0.5)

    def mixed(word, share):
        return (1 - share) * grey + share * np.array(RGB[word]) / 255

    own, others, rotated = measure.colour_scores(grey, mixed("purple", 0.3), region, "purple", 1)
    assert own > 0.95 and others < 0.5 and rotated < 0.5
    wrong, _, _ = measure.colour_scores(grey, mixed("green", 0.3), region, "purple", 1)
    assert wrong < 0
    away = 2 * grey - mixed("purple", 0.3)
    complement, _, _ = measure.colour_scores(grey, away, region, "purple", -1)
    assert complement > 0.8
    assert all(np.isnan(measure.colour_scores(grey, grey, region, "purple", 1)))


def test_pruning_finds_the_pixels_that_matter():
    weights = np.zeros((6, 6, 3), np.float32)
    weights[1, 2], weights[4, 4] = 1, 1

    def encode(params, images):
        return jnp.sum(images * params[None], axis=(1, 2, 3))[:, None]

    head = Head(jnp.asarray([[0.0], [1.0]]), jnp.asarray([0.0, -0.7]))
    before = jnp.full((2, 6, 6, 3), 0.1)
    after = before + jnp.asarray([0.02, 0.0])[:, None, None, None]  # the second one does not flip at all
    target = jnp.asarray([1, 1], jnp.int32)
    found = make_pruner(encode)(jnp.asarray(weights), head, before, after, target, jax.random.key(0))
    assert found.pruned.tolist() == [1, -1] and found.random[0] >= 1 and found.random[1] == -1
    assert found.overshoot.tolist() == [8, 0]
    # 0.6 + 8 * 0.02 * 3 = 1.08: one pixel that matters is enough
    assert np.asarray(found.masks[0])[[1, 4], [2, 4]].sum() == 1 and found.masks.sum() == 1
    even = jnp.full((6, 6, 3), 1 / 18)  # every pixel counts the same, and two thirds of them are needed
    head = Head(jnp.asarray([[0.0], [1.0]]), jnp.asarray([0.0, -(0.6 + 0.96 * 0.65)]))
    found = make_pruner(encode)(even, head, before, after, target, jax.random.key(0))
    assert found.pruned[0] == found.random[0] == 24


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Six classes of drawn birds, and the smallest model trained on them for an instant with two seeds."""
    folder = tmp_path_factory.mktemp("claims")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        source = generate(folder / "birds", num_classes=CLASSES, images_per_class=10, workers=1, progress=False)
        for seed in (0, 1):
            command = ["--model", "linear", "--data-dir", str(source), "--run-dir", str(folder / f"run{seed}")]
            assert train.main([*command, "--epochs", "8", "--seed", str(seed), "--quiet"]) == 0
        yield folder


@pytest.fixture(scope="module")
def material(birds):
    """Six flips and twelve single-attribute pictures in which nothing has changed yet."""
    run = load_run(birds / "run0")
    attributes, labels, _ = load_test_split(birds / "run0")
    regions = Regions(run, masks=birds / "birds", seed=0)
    assert "exact" in regions.kind
    names = run.info.attribute_names
    chosen = [(i, f) for i in range(len(labels)) for f in range(len(names))
              if names[f].startswith(("has_wing_color", "has_belly_color"))
              and regions.elsewhere(i, names[f]) is not None and regions.own(i, names[f]).sum() > 20]  # fmt: skip
    chosen = [chosen[k] for k in np.linspace(0, len(chosen) - 1, 60).astype(int)]
    index, f = (np.repeat(np.array(column), 2) for column in zip(*chosen, strict=True))
    originals = run.dataset.images("test", index, image_size=run.config.image_size)
    before = attributes[index]
    still, signs = np.zeros_like(originals, np.float16), np.tile([1, -1], 60)
    singles = Singles(index, f, signs, 1.0 * signs, before, before, still, np.ones(120, bool), np.ones(120))
    count = len(labels)
    pictures = run.dataset.images("test", np.arange(count), image_size=run.config.image_size)
    target = (labels + 1) % CLASSES
    values = {field.name: np.zeros(count) for field in dataclasses.fields(Counterfactuals)}
    values |= {"index": np.arange(count), "label": labels, "predicted": labels, "target": target, "images": pictures,
               "results": pictures / np.float32(255), "before": attributes, "after": attributes,
               "requested": np.ones_like(attributes), "success": np.ones(count, bool)}  # fmt: skip
    checks = FlipChecks(attributes, np.full((count, 4), np.nan), np.full((count, 4), np.nan))
    return Material(run, regions, attributes, labels, Counterfactuals(**values), checks, np.zeros(count, int),
                    {"pruned": np.ones(count, int), "random": np.ones(count, int)}, np.arange(count), singles, {}, {},
                    np.full(120, np.nan), None)  # fmt: skip


def verdicts(comparisons):
    return {comparison.name: judge(comparison).verdict for comparison in comparisons}


def painted(material, *, in_part):
    """The singles with their part recoloured, or with noise everywhere."""
    singles, names = material.singles, material.run.info.attribute_names
    change = singles.change.copy()
    rng = np.random.default_rng(0)
    for row, (index, f, sign) in enumerate(zip(singles.index, singles.attribute, singles.sign, strict=True)):
        region = material.regions.own(int(index), names[f])
        change[row] = 0.2 * sign * region[..., None] if in_part else rng.normal(size=change[row].shape) * 0.03
    return singles._replace(change=change)


def test_localisation_holds_for_painted_parts_and_fails_for_noise(material):
    spread = material.attributes.std(axis=0)
    found = {}
    for kind in (True, False):
        singles = painted(material, in_part=kind)
        columns = measure.measure_singles(material.run, material.regions, singles, spread)
        places = {name: np.full(len(material.labels), np.nan) for name in ("lift", "lift_elsewhere")}
        planted = material._replace(singles=singles, columns=columns, places=places, random_lift=np.ones(120))
        found[kind] = verdicts(comparisons.localisation(planted))
        assert columns["area"].min() > 0
    names = [f"lift: {name}" for name in ("elsewhere on the bird", "swapped parts", "random weights")]
    assert [found[True][name] for name in names] == ["holds"] * 3
    assert [found[False][name] for name in names] == ["fails"] * 3
    assert found[True]["class flips, lift: elsewhere on the bird"] == "missing"


def test_regions_elsewhere_and_swapped_are_other_places_of_the_bird(material):
    regions, names = material.regions, material.run.info.attribute_names
    for index, f in zip(material.singles.index[::10], material.singles.attribute[::10], strict=True):
        own, other, swapped = (place(int(index), names[f]) for place in
                               (regions.own, regions.elsewhere, regions.swapped))  # fmt: skip
        assert own.sum() == other.sum() and not (own & other).any() and (regions.bird(int(index)) >= other).all()
        assert swapped.any() and (own != swapped).any()
    whole = next(name for name in names if name.startswith(("has_size", "has_shape", "has_primary")))
    assert regions.own(0, whole) is None and regions.elsewhere(0, whole) is None


def test_discs_stand_in_where_there_are_no_masks(material, birds):
    regions = Regions(material.run, masks=None, seed=0)
    assert "discs" in regions.kind
    names = material.run.info.attribute_names
    index, name = int(material.singles.index[0]), names[int(material.singles.attribute[0])]
    inside = regions.own(index, name)
    assert (inside & material.regions.own(index, name)).any() and (regions.bird(index) >= inside).all()
    with pytest.raises(UserError, match="masks"):
        Regions(material.run, masks=birds / "run0", seed=0)


def test_meaning_holds_for_a_head_of_class_attributes_and_fails_for_its_negative(material):
    truth = material.run.info.class_attributes.astype(np.float32)
    centred = (truth - truth.mean(axis=0)) / 20
    spread = material.attributes.std(axis=0) + 1
    change = truth[material.flips.target] - truth[material.labels]
    for sign, word in ((1, "holds"), (-1, "fails")):
        params = {**material.run.params, "head": {"weights": jnp.asarray(sign * centred)}}
        run = material.run._replace(params=params)
        own = np.eye(CLASSES, dtype=np.float32)[material.labels]
        attributes = (sign * own @ centred).astype(np.float32)  # each class's own attributes are classified as it
        planted = material._replace(
            run=run, attributes=attributes, flips=dataclasses.replace(material.flips, requested=sign * change),
            witness=np.where(np.arange(change.shape[1]) == material.singles.attribute[:, None], sign, 0)
            * material.singles.sign[:, None] + np.random.default_rng(0).normal(size=(120, change.shape[1])) * 1e-3,
        )  # fmt: skip
        found = verdicts(comparisons.meaning(planted, spread, margin=0.1, seed=0))
        assert found["class flips: sign, random attribute"] == word
        assert found["witness: direction, random attribute"] == word
    assert verdicts(comparisons.meaning(material, spread, margin=0.1, seed=0))[
        "witness: direction, random attribute"
    ] == ("missing")


def test_noise_pixels_and_inexactness_where_planted_and_where_not(material):
    rng, up = np.random.default_rng(0), material.singles.sign > 0
    noisy = material._replace(columns={"fine": np.where(up, 0.3, 0.8) + 0.01 * rng.normal(size=120)})
    assert set(verdicts(comparisons.noise(noisy, seed=0)).values()) == {"holds"}
    alike = material._replace(columns={"fine": 0.5 + 0.01 * rng.normal(size=120)})
    assert set(verdicts(comparisons.noise(alike, seed=0)).values()) == {"fails"}

    few = material._replace(pixels=material.pixels | {"random": np.full(len(material.labels), 500)})
    assert set(verdicts(comparisons.pixels(few)).values()) == {"holds"}
    many = material._replace(pixels=dict.fromkeys(("pruned", "random"), np.full(len(material.labels), 500)))
    assert set(verdicts(comparisons.pixels(many)).values()) == {"fails"}

    spread = np.ones(material.attributes.shape[1])
    exact = dataclasses.replace(material.flips, after=material.flips.before + material.flips.requested)
    noise = rng.normal(size=exact.before.shape)
    step = material.checks._replace(step=material.flips.before + noise)
    found = verdicts(comparisons.inexactness(material._replace(flips=exact, checks=step), spread))
    assert found["exact to a tenth"] == "fails" and found["direction: gradient step"] == "holds"
    early = dataclasses.replace(
        exact, after=material.flips.before + 0.5 * material.flips.requested
    )  # stops short, but on the way
    found = verdicts(comparisons.inexactness(material._replace(flips=early, checks=step), spread))
    assert found["exact to a tenth"] == "fails"
    missed = dataclasses.replace(exact, after=material.flips.before + noise)
    found = verdicts(comparisons.inexactness(material._replace(flips=missed, checks=step), spread))
    assert found == {
        "exact to a tenth": "holds",
        "direction: gradient step": "fails",
        "first three: gradient step": "fails",
    }


def test_perturbability_of_colours_where_planted_and_where_not(material):
    names = np.array(material.run.info.attribute_names)
    colours = np.char.find(names, "_color::") > 0
    rng = np.random.default_rng(0)
    atlas = {"frequency": np.full(len(names), 0.2)}
    for boost, word in ((3.0, "holds"), (-3.0, "fails")):
        scored = atlas | {"moved_per_l2": boost * colours + rng.random(len(names))}
        found = {verdict.name: verdict.verdict for verdict in comparisons.perturbability(material, scored)}
        assert found == {"AUROC: label frequency matched": word, "AUROC: all pairs": word}
    nothing = atlas | {"moved_per_l2": np.full(len(names), np.nan)}
    assert {verdict.verdict for verdict in comparisons.perturbability(material, nothing)} == {"missing"}


def test_a_small_run_is_measured_reported_and_resumed(birds, tmp_path):
    out = tmp_path / "out"
    command = [
        *("--run-dirs", str(birds / "run0"), "--out", str(out), "--masks", str(birds / "birds"), "--quiet"),
        *("--num-pairs", "8", "--batch-size", "8", "--images-per-attribute", "1"),
        *("--groups", "has_wing_color", "has_size"),
        *("--witness-dirs", str(birds / "run0"), str(birds / "run1")),
    ]
    assert paper_claims.main(command) == 0
    summary = json.loads((out / "summary.json").read_text())
    for claim in comparisons.CLAIMS:
        assert summary[f"run0/{claim}/verdict"] in ("holds", "fails", "undecided", "missing")
    assert summary["run0/5.2.1/witness: direction, random attribute/pairs"] > 20
    assert summary["run0/5.2.2/lift: random weights/pairs"] > 10
    assert summary["run0/singles_reached"] > 0.9  # a linear encoder is moved by one Newton step
    atlas = pyarrow.parquet.read_table(out / "atlas.parquet").to_pydict()
    names = load_run(birds / "run0").info.attribute_names
    asked = np.array([name.startswith(("has_wing_color", "has_size")) for name in names])
    assert atlas["attribute"] == list(names)
    np.testing.assert_array_equal(atlas["requests"], np.where(asked, 2, 0))
    moved = np.array(atlas["achieved_over_requested"], float)
    assert (moved[np.array(atlas["reached"], float) == 1] >= 0.995).all()
    page = (out / "report.html").read_text()
    assert all(text in page for text in comparisons.CLAIMS.values()) and page.count("<figure") > 30

    files = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*.npz")}
    assert len(files) > 10
    lost = next(path for path in files if path.match("runs/run0/singles-00016-*.npz"))
    before = dict(np.load(lost))
    lost.unlink()
    assert paper_claims.main(command) == 0
    assert lost.stat().st_mtime_ns > files[lost]
    np.testing.assert_array_equal(np.load(lost)["change"], before["change"])
    assert all(path.stat().st_mtime_ns == when for path, when in files.items() if path != lost)
    again = json.loads((out / "summary.json").read_text())
    assert {key: again[key] for key in summary if key != "seconds"} == {
        k: v for k, v in summary.items() if k != "seconds"
    }
