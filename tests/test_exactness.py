"""Hard heads in both precisions against an oracle in fractions; what the solvers are compiled to, and how often."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from spectra_jax.perturbations import pair_search
from spectra_jax.perturbations.geometry import relative_logits

pytestmark = pytest.mark.optimized

exactness = pytest.importorskip("experiments.benchmarks.exactness", reason="needs the extra 'bench'")
CASES = Path(__file__).resolve().parents[1].parent / "shared" / "cases"
PAIRS = 40
FAMILIES = dict(exactness.families(1))


def check(family, dtype, pairs=PAIRS):
    with jax.enable_x64(dtype == np.float64):
        count = exactness.compare(family, pairs, dtype, seed=2)
    assert count._replace(worst=0) == exactness.Count(pairs, *[0] * 6, worst=0)
    assert count.worst <= (1e-4 if dtype == np.float32 else 1e-7)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "apart", ["0.001", pytest.param("0.0001", marks=SLOW), pytest.param("1e-05", marks=SLOW), "1e-06", "1e-07"]
)
def test_float32_is_right_on_heads_with_twin_classes(apart):
    check(FAMILIES[f"twins {apart} apart"], np.float32)


@pytest.mark.parametrize("margin", [pytest.param(0.0, marks=SLOW), 0.5])
def test_float32_is_right_on_a_trained_head_with_twin_classes(margin):
    if not (CASES / "near_equal_rows_head.npz").exists():
        pytest.skip(f"the trained head is not in {CASES}")
    with np.load(CASES / "near_equal_rows_head.npz") as case:
        check(exactness.Family(case["weights"], None, case["attributes"], margin), np.float32)


def test_duplicate_rows_tie_without_a_margin_and_never_win_by_one():
    check(FAMILIES["duplicate rows, margin 1e-6"], np.float32)
    check(FAMILIES["duplicate rows"], np.float32)


@pytest.mark.parametrize(
    "name", [pytest.param("tiny weights", marks=SLOW), "huge weights", "500 classes, 4 attributes, margin 10"]
)
def test_float32_is_right_at_any_scale_and_where_most_regions_are_empty(name):
    check(FAMILIES[name], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name", ["0/1 concepts, 20 x 12", "observed ranges, 24 x 15", "twins 1e-6 apart, one end", "integers at corners"]
)
def test_ranges_are_right_on_concepts_at_their_ends(name, dtype):
    check(FAMILIES[name], dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranges_that_have_failed(dtype):
    four = [[-1.723, -0.2829, -1.2621], [0.2563, 0.1564, 0.7298], [1.7984, -0.1561, 1.4558], [-1.1015, 0.1779, 0.9701]]
    two = [[-0.4770096, 0.506664], [-0.4481563, -1.476905]]
    cases = [
        (four, [1, 0, 1], 0.1, [0, 0, 0], [1, 1, 1], 1.5447),
        ([[1, 2], [-2, -2]], [1, 0], 0.0, [0, 0], [1, 1], 1.0),
        (two, [0, 0], 0.1, [0, 0], [np.inf, np.inf], 3.4658),
    ]
    with jax.enable_x64(dtype == np.float64):
        for weights, sample, margin, lower, upper, norm in cases:
            head, e, low, high = jax.tree.map(
                lambda x: jnp.asarray(x, dtype), (sj.Head(np.array(weights)), *map(np.array, (sample, lower, upper)))
            )
            result = sj.box_perturbation(head, e, 1, lower=low, upper=high, margin=margin)
            assert bool(result.feasible)
            np.testing.assert_allclose(result.norm, norm, rtol=1e-4)


HEAD = sj.Head(np.random.default_rng(3).normal(size=(6, 7)).astype(np.float32), np.zeros(6, np.float32))
SAMPLES = np.random.default_rng(4).normal(size=(3, 7)).astype(np.float32)
GROUPS = np.array([0, 0, 1, 1, 1, -1, -1], np.int32)
ENDS = np.full(7, 2, np.float32)
SOLVERS = {
    "projection": lambda e: sj.projection_perturbation(HEAD, e, 2, margin=0.1).norm,
    "box": lambda e: sj.box_perturbation(HEAD, e, 2, lower=-ENDS, upper=ENDS, margin=0.1).norm,
    "sparse": lambda e: sj.sparse_perturbation(HEAD, e, 2, max_changes=2, margin=0.1).norm,
    "one_hot": lambda e: sj.one_hot_perturbation(HEAD, e, 2, groups=GROUPS, margin=0.1).norm,
    "boundary": lambda e: sj.boundary_perturbation(HEAD, e, 2, margin=0.1),
    "single": lambda e: sj.single_attribute_perturbations(HEAD, e, 2, margin=0.1).delta,
    "all_pairs": lambda e: sj.all_pairs_norms(HEAD, e[None], margin=0.1),
    "all_pairs_projection": lambda e: sj.all_pairs_projection(HEAD, e[None], margin=0.1).norms,
    "best_single": lambda e: sj.best_single_attributes(HEAD, e[None], margin=0.1)[0],
    "attackability": lambda e: sj.attackability(HEAD, e[None]),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_no_solver_calls_lapack(name):
    """Batched LAPACK calls in a loop wait for XLA's own threads, for ever when all of these wait."""

    def loss(e):
        return jnp.sum(jax.vmap(SOLVERS[name])(e))

    def twice(e):
        return jnp.sum(jax.vmap(jax.vmap(SOLVERS[name]))(e))

    text = jax.jit(jax.value_and_grad(loss)).lower(jnp.asarray(SAMPLES)).as_text()
    text += jax.jit(twice).lower(jnp.asarray(SAMPLES)[None]).as_text()
    assert "while" in text or name in ("boundary", "single")
    assert "lapack" not in text


@pytest.mark.parametrize("method", ["nearest", "gauss_newton", "adam", "gradient_descent"])
def test_no_search_for_an_image_calls_lapack(method):
    config = sj.InversionConfig(method=method, ssim_weight=0.0)
    targets = jnp.full(len(SAMPLES), 2, jnp.int32)

    def search(images):
        return sj.invert(lambda x: x.reshape(len(x), -1)[:, :7], HEAD, images, SAMPLES, targets, config=config).images

    text = jax.jit(search).lower(jnp.full((len(SAMPLES), 4, 4, 3), 0.5)).as_text()
    assert "while" in text and "lapack" not in text


def test_pinv_of_all_pairs_is_factorised_once_for_all_and_once_a_target():
    text = jax.jit(lambda e: sj.all_pairs_norms(HEAD, e, method="pinv")).lower(jnp.asarray(SAMPLES)).as_text()
    assert 1 <= text.count("custom_call @lapack") <= 2


@contextlib.contextmanager
def counted_compilations():
    count = dataclasses.make_dataclass("Count", [("number", int, 0)])()

    def listen(name, duration, **_):
        count.number += name == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


EAGER = SOLVERS | {
    "pinv": lambda e: sj.pinv_perturbation(HEAD, e, 2, margin=0.1),
    "attackability by projection": lambda e: sj.attackability(HEAD, e[None], method="projection"),
    "head_logits": lambda e: sj.head_logits(HEAD, e),
    "nearest_target": lambda e: sj.nearest_target(jnp.abs(e)[None]),
}


@pytest.mark.parametrize("name", EAGER)
def test_a_second_call_compiles_nothing(name):
    with counted_compilations() as first:
        jax.block_until_ready(EAGER[name](jnp.asarray(SAMPLES[0])))
    with counted_compilations() as second:
        jax.block_until_ready(EAGER[name](jnp.asarray(SAMPLES[1])))
    assert first.number > 0
    assert second.number == 0


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=SLOW)])
def test_more_active_rivals_than_the_evidence_holds_keep_the_value_and_lose_the_derivatives(dtype):
    """All 99 rivals of a class of a simplex are active; see `exact.max_slots`."""
    with jax.enable_x64(dtype == np.float64):
        head, e = sj.Head(jnp.eye(100, dtype=dtype)), jnp.zeros(100, dtype)

        def norm(e):
            result = sj.projection_perturbation(head, e, 0, margin=0.5)
            return result.norm, result

        (value, result), gradient = jax.value_and_grad(norm, has_aux=True)(e)
        # One attribute up by a and the others down by d, a + d = .5: the shortest has a = 99 d.
        np.testing.assert_allclose(value, 0.5 * np.sqrt(0.99), rtol=1e-5)
        assert bool(result.feasible) and np.isfinite(np.asarray(result.delta)).all()
        assert np.isnan(np.asarray(gradient)).all() and np.isnan(np.asarray(result.multipliers)).any()
        box = sj.box_perturbation(head, e, 0, lower=e - 9, upper=e + 9, margin=0.5)
        np.testing.assert_allclose(box.norm, value, rtol=1e-6)


def test_float32_derivatives_of_twins_agree_with_float64():
    family = FAMILIES["twins 0.001 apart"]
    weights, samples = family.weights.astype(np.float32), family.samples[:20].astype(np.float32)
    targets = np.arange(20, dtype=np.int32)

    def total(weights, samples):
        def one(e, j):
            return sj.projection_perturbation(sj.Head(weights), e, j, margin=0.1).norm

        return jnp.sum(jax.vmap(one)(samples, jnp.asarray(targets)))

    single = jax.jit(jax.grad(total, argnums=1))(jnp.asarray(weights), jnp.asarray(samples))
    with jax.enable_x64(True):
        double = jax.jit(jax.grad(total, argnums=1))(
            jnp.asarray(weights, jnp.float64), jnp.asarray(samples, jnp.float64)
        )
    np.testing.assert_allclose(single, double, rtol=2e-3, atol=2e-3 * np.abs(np.asarray(double)).max())


def test_a_masked_class_leaves_the_others_to_the_fast_search():
    rng = np.random.default_rng(5)
    head = sj.Head(jnp.asarray(rng.normal(size=(8, 12)), jnp.float32), jnp.zeros(8).at[3].set(-jnp.inf))
    samples = jnp.asarray(rng.normal(size=(4, 12)), jnp.float32)
    shared = pair_search.shared_by_pairs(head, None)
    logits = relative_logits(head, samples)
    rows, targets = jnp.arange(4, dtype=jnp.int32), jnp.asarray([0, 1, 2, 4], jnp.int32)
    found = jax.jit(pair_search.search_pairs)(shared, logits, samples, jnp.full(4, 0.1), rows, targets)
    assert not np.asarray(found.exactly).any()
