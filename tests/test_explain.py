"""The call that knows names."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from spectra_jax.constraints.verify import keeps_rules
from spectra_jax.names import make_names, readable_class

NAMES = [f"colour_{g}::{word}" for g in "ab" for word in ("red", "blue", "grey")] + [f"size_{i}" for i in range(6)]
CLASSES = [f"{i:03d}.Some_Bird_{'abcdefgh'[i]}" for i in range(8)]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(3)
    head = sj.Head(jnp.asarray(rng.normal(size=(8, 12)), jnp.float32), jnp.asarray(rng.normal(size=8), jnp.float32))
    return head, jnp.asarray(rng.normal(size=(5, 12)), jnp.float32), rng.normal(size=(300, 12))


def asked(problem, **rules):
    head, attributes, reference = problem
    return sj.explain(head, attributes, attribute_names=NAMES, class_names=CLASSES, reference=reference, **rules)


def test_without_rules_it_is_the_projection(problem):
    head, attributes, _ = problem
    everything = asked(problem, targets="all")
    table = sj.all_pairs_norms(head, attributes)
    np.testing.assert_allclose(everything.norm[:, :, 0], table, rtol=2e-5, atol=1e-6)
    nearest = asked(problem)
    expected = sj.nearest_target(table)
    np.testing.assert_array_equal(nearest.targets[:, 0], expected.target)
    np.testing.assert_allclose(nearest.norm[:, 0, 0], expected.distance, rtol=2e-5)
    assert "projection" in nearest.solver
    many = sj.explain(head, jnp.tile(attributes, (26, 1)), targets="all", immutable="attribute 3", costs={"*": 2.0})
    few = sj.explain(head, attributes, targets="all", immutable="attribute 3", costs={"*": 2.0})
    np.testing.assert_allclose(many.norm, np.tile(few.norm, (26, 1, 1)), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(many.delta, np.tile(few.delta, (26, 1, 1, 1)), rtol=1e-3, atol=1e-4)
    beyond = attributes + jnp.asarray(1.001 * nearest.delta[:, 0, 0], jnp.float32)
    np.testing.assert_array_equal(np.argmax(sj.head_logits(head, beyond), axis=1), nearest.targets[:, 0])


RULES = {
    "locked": dict(immutable="size_*"),
    "directions": dict(only_rise="size_*", only_fall=("colour_a::red",)),
    "ranges": dict(ranges={"size_*": (-1, None), "colour_*": "observed"}),
    "few": dict(at_most=2, ranges=(-3, 3)),
    "groups": dict(one_hot="colour_b"),
    "all groups": dict(one_hot="*", immutable="size_0", costs="spread"),
    "relation": dict(relations=("size_1 <= size_2", "size_4 >= size_3")),
    "switches": dict(binary={"size_*": (-1.0, 1.0)}, at_most=4),
    "prices": dict(costs={"size_*": 4.0}, margin=0.3),
}


@pytest.mark.parametrize("name", RULES)
def test_the_nearest_class_is_the_nearest_under_the_rules(problem, name):
    rules = RULES[name]
    nearest, everything = asked(problem, **rules), asked(problem, targets="all", **rules)
    table = np.where(everything.targets == everything.predicted[:, None], np.inf, everything.norm[:, :, 0])
    assert not np.isnan(table).any() and np.isfinite(table).any()
    np.testing.assert_allclose(nearest.norm[:, 0, 0], table.min(axis=1), rtol=1e-4)
    solved = everything.status == sj.Status.SOLVED
    rows = np.broadcast_to(np.asarray(everything.attributes)[:, None, None], everything.delta.shape)[solved]
    own = np.broadcast_to((everything.targets == everything.predicted[:, None])[:, :, None], solved.shape)[solved]
    assert (keeps_rules(everything.rules, rows, everything.delta[solved]) | own).all()


def test_locked_attributes_do_not_move_and_costs_are_the_metric(problem):
    answer = asked(problem, immutable=("size_*", "colour_a::red"), costs={"colour_b::*": 10.0})
    locked = [name.startswith("size") or name == "colour_a::red" for name in NAMES]
    assert np.all(answer.delta[..., locked] == 0)
    costs = np.array([10.0 if name.startswith("colour_b") else 1.0 for name in NAMES])
    np.testing.assert_allclose(np.linalg.norm(answer.delta * costs, axis=-1), answer.norm, rtol=1e-5)


def test_several_answers_are_ranked_and_differ_in_what_they_change(problem):
    answers = asked(problem, at_most=2, num_answers=4, targets=3)
    norms = np.where(np.isnan(answers.norm[:, 0]), np.inf, answers.norm[:, 0])
    assert not answers.proven[:, 0, 1:].any()
    assert np.all(norms[:, 1:] >= norms[:, :-1] - 1e-9)
    for row, count in zip(answers.delta[:, 0], np.isfinite(norms).sum(axis=1), strict=True):
        supports = {tuple(np.flatnonzero(np.abs(delta) > 1e-9)) for delta in row[:count]}
        assert len(supports) == count
    # The second best pair of attributes, by trying all pairs.
    head, attributes, _ = problem
    for sample in range(2):
        if answers.predicted[sample] == 3:
            continue
        lengths = []
        for pair in itertools.combinations(range(12), 2):
            mutable = jnp.asarray(np.isin(np.arange(12), pair))
            found = sj.projection_perturbation(head, attributes[sample], 3, mutable=mutable)
            lengths.append((float(found.norm), pair))
        best = sorted(lengths)
        np.testing.assert_allclose(norms[sample, 0], best[0][0], rtol=1e-4)
        first = set(np.flatnonzero(np.abs(answers.delta[sample, 0, 0]) > 1e-9))
        other = next(length for length, pair in best if not first <= set(pair))
        np.testing.assert_allclose(norms[sample, 1], other, rtol=1e-4)


def test_an_infeasible_answer_says_which_rules_and_rivals_are_in_the_way(tmp_path):
    head = sj.Head(jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.5]]))
    names = dict(attribute_names=["beak", "wing::red", "tail"], class_names=["Owl", "Red_Kite", "Blue_Jay"])
    answer = sj.explain(head, jnp.asarray([[2.0, 0.0, 1.0]]), targets="Red Kite", immutable="tail", margin=0.1, **names)
    assert answer.status[0, 0, 0] == sj.Status.INFEASIBLE
    reason = answer.reason(0)
    assert "Blue Jay" in reason and "tail" in reason and "without immutable" in reason
    assert "cannot become Red Kite" in str(answer)
    assert "without immutable" in answer.to_html(tmp_path / "why.html").read_text(encoding="utf-8")
    stuck = sj.explain(head, jnp.asarray([[2.0, 0.0, 1.0]]), targets=1, immutable="beak", ranges=(-1, 1), **names)
    assert "beak is 2, above its range" in stuck.reason(0)
    few = sj.explain(head, jnp.asarray([[2.0, 0.0, 1.0]]), targets=1, at_most=1, ranges=(-5, 1), margin=0.1, **names)
    assert "more than 1 attribute" in few.reason(0) or "at_most=2" in few.reason(0)


def test_observed_ranges_do_not_force_a_sample_from_outside_to_move(problem):
    head, attributes, reference = problem
    far = attributes.at[0, 3].set(50.0)
    answer = sj.explain(head, far, reference=reference, ranges="observed", immutable="attribute 3")
    assert answer.delta[0, 0, 0, 3] == 0
    after = np.asarray(far) + answer.delta[:, 0, 0]
    low, high = np.minimum(reference.min(axis=0), far), np.maximum(reference.max(axis=0), far)
    assert np.isfinite(after).all() and np.all((after >= low - 1e-6) & (after <= high + 1e-6))


def test_words_tables_and_the_tree(problem):
    _, attributes, _ = problem
    calibration = sj.Calibration(np.full(12, 2.0), np.zeros(12))
    answers = asked(problem, at_most=2, calibration=calibration, targets=["Some Bird b", CLASSES[4]])
    one = answers.answer(0)
    assert len(one.changes) <= 2 and "becomes Some Bird b if" in str(one) and "%" in str(one)
    change = one.changes[0]
    index = NAMES.index(change.name)
    np.testing.assert_allclose(change.before, attributes[0, index], rtol=1e-6)
    np.testing.assert_allclose(change.probability_before, 1 / (1 + np.exp(-2 * change.before)), rtol=1e-6)
    np.testing.assert_allclose(change.in_spreads, (change.after - change.before) / answers.spread[index])
    text = answers.table()
    assert change.name in text and "probability" in text and "Some Bird b" in text
    table = answers.table("arrow")
    rows = sum(max(len(answer.changes), 1) for answer in answers)
    assert table.num_rows == rows and set(table["target"].to_pylist()) <= set(CLASSES)
    assert "<table>" in answers._repr_html_()
    moved = jax.tree.map(lambda leaf: leaf, answers)
    assert str(moved) == str(answers) and len(moved) == 5


def test_images_go_through_the_encoder_and_answers_into_images(problem, tmp_path):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(16 * 16 * 3, 12)) / 10, jnp.float32)

    def encode(images):
        return jnp.matmul(images.reshape(len(images), -1), matrix, precision=jax.lax.Precision.HIGHEST)

    head = problem[0]
    images = jnp.asarray(rng.uniform(0.3, 0.7, size=(70, 16, 16, 3)), jnp.float32)
    answers = sj.explain(head, images, encoder=encode, margin=0.05)
    np.testing.assert_allclose(answers.attributes, encode(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="inputs contains NaN or infinite values; remove or repair these images"):
        sj.explain(head, images.at[0, 0, 0].set(jnp.nan), encoder=lambda x: jax.nn.relu(encode(x)))
    with pytest.raises(ValueError, match=r"of images; expected attributes \(b, n\), or encoder=..."):
        sj.explain(head, images)
    few = sj.explain(head, images[:3], encoder=encode, targets=2, margin=0.05)
    realised = few.realise(encode, images[:3])
    named = jnp.argmax(sj.head_logits(head, encode(realised.realised.images[:, 0])), axis=1)
    np.testing.assert_array_equal(named == 2, realised.realised.success[:, 0])
    assert realised.realised.success.all()
    page = realised.to_html(tmp_path / "answers.html", images=images[:3], title="Mine").read_text(encoding="utf-8")
    assert "Mine" in page and all(str(answer) in page for answer in realised)
    with pytest.raises(ValueError, match="images has 2 rows"):
        realised.to_html(tmp_path / "answers.html", images=images[:2])
    assert "is classified as such" in str(realised) and "achieved" in realised.table("arrow").column_names


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (dict(immutable="siez_1"), "did you mean 'size_1'"),
        (dict(targets="Some Brid b"), "did you mean 'Some Bird b'"),
        (dict(ranges="seen"), "observed"),
        (dict(ranges={"size_1": 3}), "expected"),
        (dict(ranges=(2, 1)), "lowest <= highest"),
        (dict(relations="size_1 < size_2"), "NAME <= NAME"),
        (dict(relations="size_* <= size_2"), "which are 6 attributes"),
        (dict(costs="weights"), "spread"),
        (dict(costs={"size_1": 0.0}), "not positive"),
        (dict(only_rise="size_1", only_fall="size_1"), "only_rise and in only_fall"),
        (dict(binary={"size_1": (1, 0)}), "off value below"),
        (dict(one_hot="size"), "one_hot names 'size'"),
        (dict(at_most=0), "at_most is 0"),
        (dict(targets=[]), "targets is empty"),
        (dict(targets=99), "expected a class from 0 to 7"),
        (dict(targets=np.zeros(5, int)), r"targets\[:, None\]"),
        (dict(num_answers=0), "num_answers is 0"),
    ],
)
def test_rules_that_mean_nothing_are_refused(problem, rules, message):
    with pytest.raises(ValueError, match=message):
        asked(problem, **rules)


def test_what_needs_real_samples_asks_for_them(problem):
    for rules in (dict(ranges="observed"), dict(costs="spread")):
        with pytest.raises(ValueError, match="reference"):
            sj.explain(*problem[:2], **rules)


def test_a_transposed_kernel_is_named(problem):
    head, attributes, _ = problem
    with pytest.raises(ValueError, match=r"Head\(kernel.T\)"):
        sj.explain(sj.Head(head.weights.T), attributes)


def test_names_are_checked_and_read_by_people():
    assert readable_class("001.Black_footed_Albatross") == "Black footed Albatross"
    assert readable_class("3D_printer") == "3D printer" and readable_class("7") == "7"
    with pytest.raises(ValueError, match="more than once"):
        make_names(["a", "a"], None, 2, 2)
    with pytest.raises(ValueError, match="expected 2"):
        make_names(["a"], None, 2, 2)
    names = make_names(["size [cm]", "b*"], None, 2, 2)
    assert names.mask("rule", "size [cm]").tolist() == [True, False]
    birds = make_names(["has_nape_color::purple", "has_nape_color::red"], None, 2, 2)
    assert birds.mask("rule", "nape color: red").tolist() == [False, True]  # as it is printed


def test_interventions_change_class_margin_and_distance(problem):
    head, attributes, reference = problem
    result = sj.intervene(head, attributes, {"colour_a::red": True, "size_*": -0.5}, attribute_names=NAMES,
                          class_names=CLASSES, reference=reference)  # fmt: skip
    expected = np.array(attributes)
    expected[:, 0], expected[:, 6:] = np.percentile(reference[:, 0], 95), -0.5
    np.testing.assert_allclose(result.attributes, expected, rtol=1e-6)
    logits = np.asarray(sj.head_logits(head, jnp.asarray(expected, jnp.float32)))
    np.testing.assert_array_equal(result.after.predicted, logits.argmax(axis=1))
    np.testing.assert_allclose(result.after.lead, np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0], rtol=1e-5)
    nearest = sj.nearest_target(sj.all_pairs_norms(head, jnp.asarray(expected, jnp.float32)))
    np.testing.assert_allclose(result.after.distance, nearest.distance, rtol=1e-4)
    assert "colour a: red" in str(result) and "logits ahead" in str(result)
    with pytest.raises(ValueError, match="reference"):
        sj.intervene(head, attributes, {"attribute 0": True})


def test_the_most_helpful_corrections_are_found():
    rng = np.random.default_rng(0)
    present = rng.random((400, 6)) < 0.5
    head = sj.Head(jnp.asarray(rng.normal(size=(5, 6)), jnp.float32))
    clean = np.where(present, 1.0, -1.0)
    labels = np.asarray(sj.head_logits(head, jnp.asarray(clean, jnp.float32))).argmax(axis=1)
    seen = clean.copy()
    seen[:, 2] *= -1  # an encoder that has learnt this attribute the wrong way round
    found = sj.helpful_corrections(head, jnp.asarray(seen, jnp.float32), present, labels, count=2, levels=(-1, 1))
    assert found.corrected == ("attribute 2",) and found.accuracy[1] == 1.0
    before = np.asarray(sj.head_logits(head, jnp.asarray(seen, jnp.float32))).argmax(axis=1) == labels
    np.testing.assert_allclose(found.accuracy[0], before.mean(), rtol=1e-6)
    assert "attribute 2: 100.0%" in str(found)


def test_calibration_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    values = rng.normal(size=(2000, 3)) * [1, 5, 0.1] + [0, 3, 0]
    labels = rng.random((2000, 3)) < 1 / (1 + np.exp(-(np.array([2.0, 0.3, 10.0]) * values + [0.5, -1, 0])))
    calibration = sj.fit_calibration(values, labels)
    for column in range(3):
        model = LogisticRegression(C=1e6).fit(values[:, [column]], labels[:, column])
        expected = model.predict_proba(values[:, [column]])[:, 1]
        np.testing.assert_allclose(calibration.probability(values)[:, column], expected, atol=0.01)
    alike = sj.fit_calibration(values, np.ones_like(labels))
    assert np.all(alike.scale == 0) and np.all(alike.probability(values) > 0.9)


def test_an_unresolved_class_never_replaces_an_answer():
    rng = np.random.default_rng(3)
    head = sj.Head(jnp.asarray(rng.normal(size=(12, 24)), jnp.float32))
    attributes = jnp.asarray(np.clip(rng.normal(size=(24, 24)), -1.5, 1.5), jnp.float32)
    rules = dict(at_most=3, ranges=(-1.5, 1.5), margin=1.0, max_choices=0)
    nearest = sj.explain(head, attributes, **rules)
    everything = sj.explain(head, attributes, targets="all", **rules)
    own = everything.targets == everything.predicted[:, None]
    found = np.where(own | np.isnan(everything.norm[:, :, 0]), np.inf, everything.norm[:, :, 0]).min(axis=1)
    assert np.isfinite(found).any()
    assert np.all(np.isfinite(nearest.norm[:, 0, 0])[np.isfinite(found)])


def test_the_nearest_class_is_never_the_own_one():
    for bias, rules in ((None, dict(immutable="*")), (jnp.asarray([0.0, -jnp.inf]), {})):
        answer = sj.explain(sj.Head(jnp.eye(2), bias), jnp.asarray([[1.0, 0.0]]), **rules)
        assert answer.targets[0, 0] == 1 and answer.status[0, 0, 0] == sj.Status.INFEASIBLE and answer.proven.all()
        assert "cannot become class 1" in str(answer)


@pytest.mark.parametrize("rules", [{}, {"at_most": 2}, {"ranges": (-3, 3)}])
def test_a_masked_class_is_proven_out_of_reach(rules):
    head = sj.Head(jnp.eye(3), jnp.asarray([0.0, -jnp.inf, 0.0]))
    answer = sj.explain(head, jnp.asarray([[1.0, 0.5, 0.0]]), targets="all", **rules)
    assert answer.status[0, :, 0].tolist() == [0, sj.Status.INFEASIBLE, 0] and answer.proven.all()
    assert "masks class 1" in answer.reason(0, 1)


def test_a_float32_value_at_its_end_is_within_its_range():
    attributes = jnp.asarray([[0.3, 0.3, 0.3, 0.3]], jnp.float32)
    head = sj.Head(jnp.asarray([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), jnp.asarray([0.1, 0.0]))
    locked = sj.explain(head, attributes, ranges=(0, 0.3), immutable="attribute 2", targets=1)
    few = sj.explain(head, attributes, ranges=(0, 0.3), at_most=1, targets=1)
    assert locked.status[0, 0, 0] == few.status[0, 0, 0] == sj.Status.SOLVED
    # Nothing may rise above its end, so the first attribute falls by what class 0 leads.
    np.testing.assert_allclose([locked.norm[0, 0, 0], few.norm[0, 0, 0]], 0.1, rtol=1e-6)


def test_patterns_may_be_given_once(problem):
    head, attributes, _ = problem
    patterns = [f"attribute {i}" for i in range(10)]
    rules = dict(targets=[4], ranges=(-3, 3), at_most=1, margin=5.0)
    once, often = (
        sj.explain(head, attributes[:1], immutable=given, **rules) for given in ((p for p in patterns), patterns)
    )
    assert once.reason(0) == often.reason(0) and once.without.keys() == often.without.keys()


def test_more_attributes_than_python_can_nest():
    rng = np.random.default_rng(0)
    half = np.arange(1100) < 550
    weights = np.stack([np.where(half, -1, 0.5), np.zeros(1100), np.where(half, 0.5, -1)])
    weights = weights + rng.normal(scale=0.01, size=weights.shape)
    head = sj.Head(jnp.asarray(weights, jnp.float32), jnp.asarray([1.0, 0.0, 1.0]))
    answer = sj.explain(head, jnp.zeros((1, 1100)), targets=1, at_most=1)
    assert answer.status.shape == (1, 1, 1)


def test_names_with_brackets_are_shown_as_they_are(problem):
    head, attributes, _ = problem
    names = [f"[b]x{i}[/b]" for i in range(11)] + ["y [/z]"]
    text = sj.explain(head, attributes, attribute_names=names).table()
    assert "[b]x3[/b]" in text and "y [/z]" in text


def test_empty_batches_and_targets_are_refused(problem):
    head, attributes, _ = problem
    with pytest.raises(ValueError, match="at least one sample"):
        sj.explain(head, attributes[:0])
    with pytest.raises(ValueError, match="at least one class"):
        sj.explain(head, attributes, targets=np.zeros((5, 0), int))
    with pytest.raises(ValueError, match="max_choices is -1"):
        sj.explain(head, attributes, max_choices=-1)


def test_the_next_number_of_changes_that_is_enough_is_named():
    head = sj.Head(jnp.asarray([[0.0] * 5, [1.0] * 5]), jnp.asarray([3.5, 0.0]))
    answer = sj.explain(head, jnp.zeros((1, 5)), targets=1, at_most=3, ranges=(0, 1))
    assert "with at_most=4" in answer.reason(0)
