"""What the public edge says of arguments of the wrong kind and of heads that are no numbers: one sentence each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj

RANDOM = np.random.default_rng(0)
CLASSES, ATTRIBUTES = 5, 4
W = jnp.asarray(RANDOM.normal(size=(CLASSES, ATTRIBUTES)), jnp.float32)
BIAS = jnp.asarray(RANDOM.normal(size=CLASSES), jnp.float32)
HEAD, BATCH = sj.Head(W, BIAS), jnp.asarray(RANDOM.normal(size=(6, ATTRIBUTES)), jnp.float32)
PAIRWISE = {
    "boundary": sj.boundary_perturbation,
    "pinv": sj.pinv_perturbation,
    "single": sj.single_attribute_perturbations,
    "projection": sj.projection_perturbation,
    "box": sj.box_perturbation,
    "sparse": lambda *problem, **options: sj.sparse_perturbation(*problem, max_changes=2, **options),
    "one_hot": lambda *problem, **options: sj.one_hot_perturbation(
        *problem, groups=jnp.asarray([0, 0, 1, 1], jnp.int32), **options
    ),
}
AT_ONCE = {
    "all_pairs_norms": sj.all_pairs_norms,
    "all_pairs_projection": sj.all_pairs_projection,
    "best_single_attributes": sj.best_single_attributes,
    "attackability": sj.attackability,
    "nearest_class": sj.nearest_class,
}


def every(head, attributes, target=1, **options):
    """Calls to every solver, with one sample or a batch of it."""
    for name, solve in PAIRWISE.items():
        yield name, lambda solve=solve: solve(head, attributes, target, **options)


def at_once(head, batch, **options):
    for name, solve in AT_ONCE.items():
        if options and name in ("attackability", "nearest_class"):
            continue
        yield name, lambda solve=solve: solve(head, batch, **options)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ((W, BIAS), r"head is of type tuple; expected spectra_jax.Head\(weights, bias\)"),
        ([W, BIAS], "head is of type list; expected spectra_jax.Head"),
        (None, "head is of type NoneType; expected spectra_jax.Head"),
        (W, "head is of type ArrayImpl; expected spectra_jax.Head"),
        (sj.Head(W.tolist()), "head.weights is of type list; expected an array: jnp.asarray"),
        (sj.Head(W, tuple(BIAS.tolist())), "head.bias is of type tuple; expected an array: jnp.asarray"),
        (sj.Head(None), "head.weights is None; expected an array"),
        (sj.Head(np.array([["a", "b"], ["c", "d"]])), "head.weights has type <U1; expected an array of numbers"),
    ],
)
def test_heads_of_another_kind(head, message):
    calls = [*every(head, BATCH[0]), *at_once(head, BATCH), ("logits", lambda: sj.head_logits(head, BATCH))]
    for _, call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (BATCH[0].tolist(), "attributes is of type list; expected an array: jnp.asarray"),
        (tuple(BATCH[0].tolist()), "attributes is of type tuple; expected an array"),
        (None, "attributes is None; expected an array"),
        ("abcd", "attributes is of type str; expected an array"),
        (np.array(["a"] * 4), "attributes has type <U1; expected an array of numbers"),
    ],
)
def test_attributes_of_another_kind(attributes, message):
    for _, call in [*every(HEAD, attributes), *at_once(HEAD, attributes)]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("2", "target is '2'; expected one integer class index"),
        (2.0, r"target is 2.0 of type float64; expected one integer class index"),
        (True, r"target is True of type bool; expected one integer class index"),
        (None, "target is None; expected one integer class index"),
        ([1], r"target is \[1\]; expected one integer class index"),
        (np.array([1, 2]), r"target has shape \(2,\); expected one integer class index: use jax.vmap for several"),
    ],
)
def test_targets_of_another_kind(target, message):
    for _, call in every(HEAD, BATCH[0], target):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        ("1", "margin is '1'; expected a finite number >= 0"),
        (None, "margin is None; expected a finite number >= 0"),
        ([0.1], r"margin is \[0.1\]; expected a finite number >= 0"),
        (True, "margin is True of type bool; expected a finite number >= 0"),
        (1j, "margin is 1j; expected a finite number >= 0"),
        (jnp.ones(2), r"margin has shape \(2,\); expected a finite number >= 0"),
        (-0.5, "margin is -0.5; expected a finite number >= 0"),
        (float("nan"), "margin is nan; expected a finite number >= 0"),
    ],
)
def test_margins_of_another_kind(margin, message):
    for _, call in [*every(HEAD, BATCH[0], margin=margin), *at_once(HEAD, BATCH, margin=margin)]:
        with pytest.raises(ValueError, match=message):
            call()


E, YES = BATCH[0], [True] * ATTRIBUTES
REFUSED = [
    (lambda: sj.projection_perturbation(HEAD, E, 1, mutable=YES), "mutable is of type list; expected an array"),
    (lambda: sj.box_perturbation(HEAD, E, 1, mutable=YES), "mutable is of type list; expected an array"),
    (lambda: sj.all_pairs_norms(HEAD, BATCH, mutable=YES), "mutable is of type list; expected an array"),
    (lambda: sj.projection_perturbation(HEAD, E, 0, mutable=jnp.ones(4)), "booleans"),
    (lambda: sj.best_single_attributes(HEAD, BATCH, mutable=jnp.ones(4)), "booleans"),
    (lambda: sj.best_single_attributes(HEAD, BATCH, scale=[1.0] * 4), "scale is of type list; expected an array"),
    (lambda: sj.best_single_attributes(HEAD, BATCH, scale=jnp.ones(3)), "one unit per attribute"),
    (lambda: sj.best_single_attributes(HEAD, BATCH, scale=jnp.zeros(4)), "not positive"),
    (lambda: sj.box_perturbation(HEAD, E, 1, lower=[0.0] * 4), "lower is of type list; expected an array"),
    (lambda: sj.box_perturbation(HEAD, E, 0, lower=jnp.ones(3)), "one end per attribute"),
    (lambda: sj.box_perturbation(HEAD, E, 0, lower=jnp.ones(4), upper=jnp.zeros(4)), "lower <= upper"),
    (lambda: sj.box_perturbation(HEAD, E, 0, lower=jnp.full(4, jnp.nan)), "no NaN"),
    (lambda: sj.one_hot_perturbation(HEAD, E, 1, groups=[0, 0, 1, 1]), "groups is of type list; expected an array"),
    (lambda: sj.one_hot_perturbation(HEAD, E, 0, groups=jnp.zeros(4)), "integers"),
    (lambda: sj.one_hot_perturbation(HEAD, E, 0, groups=jnp.full(4, 4)), "0 to 3"),
    (lambda: sj.one_hot_perturbation(HEAD, E, 1, groups=jnp.zeros(4, int), threshold="1"), "threshold is '1'"),
    (lambda: sj.one_hot_perturbation(HEAD, E, 0, groups=jnp.zeros(4, int), threshold=-1.0), "threshold is -1.0"),
    (lambda: sj.all_pairs_norms(HEAD, BATCH, logits=[[0.0] * 5] * 6), "logits is of type list; expected an array"),
    (lambda: sj.all_pairs_norms(HEAD, BATCH, method="svd"), "'boundary', 'pinv', 'projection'"),
    (lambda: sj.attackability(HEAD, BATCH, method="exact"), "'boundary', 'pinv', 'projection'"),
    (lambda: sj.all_pairs_norms(HEAD, BATCH, method="pinv", mutable=jnp.ones(4, bool)), "mutable is given with method"),
    (lambda: sj.projection_perturbation(HEAD, E[:-1], 0), "last axis of 4"),
    (lambda: sj.attackability(HEAD, BATCH[:, :-1]), "last axis of 4"),
    (lambda: sj.projection_perturbation(HEAD, BATCH, 0), "use jax.vmap"),
    (lambda: sj.attackability(HEAD, E), "a batch of samples"),
    (lambda: sj.all_pairs_norms(HEAD, BATCH.astype(jnp.int32)), "one floating type"),
    (lambda: sj.all_pairs_norms(sj.Head(W, jnp.ones(3)), BATCH), "head.bias has shape"),
    (lambda: sj.boundary_perturbation(HEAD, E, 9), "from 0 to 4"),
    (lambda: sj.box_perturbation(HEAD, E, 9), "from 0 to 4"),
    (lambda: sj.boundary_perturbation(HEAD, E, 1.5), "integer class index"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_is_refused_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("count", [1.5, None, True, "2", 0, -1, jnp.float32(2)])
def test_max_changes_is_a_whole_number(count):
    with pytest.raises(ValueError, match=r"max_changes is .*; expected a whole number of at least 1"):
        sj.sparse_perturbation(HEAD, BATCH[0], 1, max_changes=count)


BROKEN = {
    "a NaN weight": (sj.Head(W.at[1, 2].set(jnp.nan), BIAS), "head.weights contains NaN or infinite values"),
    "an infinite weight": (sj.Head(W.at[1, 2].set(jnp.inf), BIAS), "head.weights contains NaN or infinite"),
    "a weight of -inf": (sj.Head(W.at[1, 2].set(-jnp.inf)), "head.weights contains NaN or infinite values"),
    "a NaN bias": (sj.Head(W, BIAS.at[3].set(jnp.nan)), "head.bias spans nan to nan"),
    "a bias of inf": (
        sj.Head(W, BIAS.at[3].set(jnp.inf)),
        "head.bias spans .* to inf; expected finite numbers, or -inf",
    ),
    "every class masked": (sj.Head(W, jnp.full(CLASSES, -jnp.inf)), "head.bias spans -inf to -inf"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_diverged_head_is_refused_where_its_numbers_are_known(name):
    head, message = BROKEN[name]
    images = jnp.full((1, 12, 12, 3), 0.5)
    goal = BATCH[:1]

    def encode(images):
        return images.reshape(len(images), -1)[:, :ATTRIBUTES]

    calls = [*every(head, BATCH[0]), *at_once(head, BATCH)]
    calls += [("invert", lambda: sj.invert(encode, head, images, goal, jnp.zeros(1, jnp.int32)))]
    for _, call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("method", ["boundary", "projection"])
@pytest.mark.parametrize("name", [name for name in BROKEN if name != "every class masked"])
def test_attackability_of_a_diverged_head_is_nan_under_tracing(name, method):
    found = jax.jit(lambda head: sj.attackability(head, BATCH, method=method))(BROKEN[name][0])
    assert np.isnan(found).all()  # 0 would read as perfectly robust


MASKED = 3
KEPT = np.arange(CLASSES) != MASKED
WITH_MASK, WITHOUT = sj.Head(W, BIAS.at[MASKED].set(-jnp.inf)), sj.Head(W[KEPT], BIAS[KEPT])


@pytest.mark.parametrize("method", ["boundary", "pinv", "projection"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_a_bias_of_minus_infinity_takes_the_class_out(method, margin):
    norms = np.asarray(sj.all_pairs_norms(WITH_MASK, BATCH, method=method, margin=margin))
    expected = sj.all_pairs_norms(WITHOUT, BATCH, method=method, margin=margin)
    np.testing.assert_allclose(norms[:, KEPT], expected, rtol=1e-4, atol=1e-6)
    assert np.isposinf(norms[:, MASKED]).all()
    for traced in (lambda f: f, jax.jit):
        ratio = traced(lambda head: sj.attackability(head, BATCH, method=method))(WITH_MASK)
        np.testing.assert_allclose(ratio, sj.attackability(WITHOUT, BATCH, method=method), rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in PAIRWISE if name != "sparse"])
def test_a_masked_class_is_no_rival_and_no_target(name):
    solve = PAIRWISE[name]
    for margin in (0.0, 0.3):
        found = solve(WITH_MASK, BATCH[0], 1, margin=margin)
        expected = solve(WITHOUT, BATCH[0], 1, margin=margin)
        delta, wanted = (answer if isinstance(answer, jax.Array) else answer.delta for answer in (found, expected))
        np.testing.assert_allclose(delta, wanted, rtol=1e-4, atol=1e-6)
        never = solve(WITH_MASK, BATCH[0], MASKED, margin=margin)
        assert np.isposinf(never if isinstance(never, jax.Array) else never.delta).all()
        if hasattr(never, "feasible"):
            assert not np.any(never.feasible)


def test_attackability_where_all_other_classes_are_masked_is_zero_with_a_finite_gradient():
    head = sj.Head(W, jnp.full(CLASSES, -jnp.inf).at[2].set(0))
    np.testing.assert_array_equal(sj.attackability(head, BATCH), 0)
    slope = jax.grad(lambda weights: jnp.sum(sj.attackability(head._replace(weights=weights), BATCH)))(W)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    head, batch = jax.tree.map(lambda leaf: leaf.astype(dtype), (HEAD, BATCH))
    full_head, full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (head, batch))
    calls = [(PAIRWISE[name], (1,), 0) for name in ("boundary", "pinv", "single", "projection", "box")]
    calls += [(solve, (), slice(None)) for solve in AT_ONCE.values()]
    calls += [(lambda h, e, m=m: sj.all_pairs_norms(h, e, method=m), (), slice(None)) for m in ("boundary", "pinv")]
    calls += [(sj.head_logits, (), slice(None)), (lambda h, e: sj.stability_loss(h, e), (), slice(None))]
    for solve, rest, rows in calls:
        found, expected = solve(head, batch[rows], *rest), solve(full_head, full[rows], *rest)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(sj.attackability(head, np.asarray(batch)), sj.attackability(head, batch))
    mixed = sj.attackability(full_head, batch)  # a half-precision encoder before a float32 head
    np.testing.assert_array_equal(mixed, sj.attackability(full_head, full))
    slope = jax.grad(lambda e: jnp.sum(sj.all_pairs_norms(head, e, method="pinv")))(batch)
    assert slope.dtype == dtype and np.isfinite(slope.astype(jnp.float32)).all()


def test_types_that_lose_digits_are_still_refused(x64):
    with pytest.raises(ValueError, match="attributes has type float64 beside weights of type float32"):
        sj.attackability(HEAD, np.asarray(BATCH, np.float64))
    with pytest.raises(ValueError, match="attributes has type int32 beside"):
        sj.attackability(HEAD, jnp.ones((2, ATTRIBUTES), jnp.int32))
