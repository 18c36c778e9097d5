"""The training losses against NumPy and scikit-learn, and the stability loss against finite differences."""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

import spectra_jax as sj

METHODS = ("boundary", "projection", "pinv")
FORMS = ("squared", "log_relative", "hinge")
RANDOM = np.random.default_rng(0)
WEIGHTS, BIAS = RANDOM.normal(size=(6, 10)), RANDOM.normal(size=6)
ATTRIBUTES = RANDOM.normal(size=(4, 10))
# The pairs (method, form, nearest) with a required distance that some samples meet and some do not.
CASES = [(method, form, nearest) for method, form, nearest in itertools.product(METHODS, FORMS, (True, False))]
REQUIRED = {"boundary": 0.25, "projection": 0.25, "pinv": 0.9}


# The solvers are compiled once per method and shape, and every test shares them: what is tested here is what the loss
# makes of their distances, at one shape and one type as far as possible.
compiled_norms = jax.jit(sj.all_pairs_norms, static_argnames="method")


@pytest.fixture(autouse=True)
def share_compiled_solvers(monkeypatch):
    monkeypatch.setattr(sys.modules["spectra_jax.losses"], "all_pairs_norms", compiled_norms)


def stability(method, form, nearest=True, detach=False):
    """The loss as a function of (weights, bias, attributes)."""

    def loss(weights, bias, attributes):
        return sj.stability_loss(
            sj.Head(weights, bias),
            attributes,
            method=method,
            form=form,
            nearest=nearest,
            detach_logits=detach,
            required_distance=REQUIRED[method],
        )

    return loss


def with_gradients(loss):
    return jax.value_and_grad(loss, (0, 1, 2))


def arrays(*values):
    return tuple(jnp.asarray(value) for value in values)


def expected_stability(method, form, nearest):
    """Eq. of Section 3.1 from the distances that the solvers' own tests check."""
    head = sj.Head(*arrays(WEIGHTS, BIAS))
    norms = np.array(compiled_norms(head, jnp.asarray(ATTRIBUTES), method=method))
    losses = []
    for sample, row, logits in zip(ATTRIBUTES, norms, ATTRIBUTES @ WEIGHTS.T + BIAS, strict=True):
        distances = np.delete(row, logits.argmax())
        distances = np.array([distances.min()]) if nearest else distances
        relative = distances / np.linalg.norm(sample)
        value = {"squared": -(distances**2), "log_relative": -np.log(relative), "hinge": REQUIRED[method] - relative}[
            form
        ]
        losses.append(np.maximum(value, 0).mean() if form == "hinge" else value.mean())
    return np.mean(losses)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("method", "form", "nearest"), CASES)
def test_stability_value_and_gradient(method, form, nearest):
    evaluate = stability(method, form, nearest)
    point = arrays(WEIGHTS, BIAS, ATTRIBUTES)
    value, gradients = with_gradients(evaluate)(*point)
    np.testing.assert_allclose(value, expected_stability(method, form, nearest), rtol=1e-9)
    rng = np.random.default_rng(1)
    step = 1e-6
    for index in range(3):  # one argument at a time, so that none hides behind the others
        direction = jnp.asarray(rng.normal(size=point[index].shape))
        moved = [
            evaluate(*[x + sign * step * direction if k == index else x for k, x in enumerate(point)])
            for sign in (1, -1)
        ]
        slope = jnp.sum(gradients[index] * direction)
        np.testing.assert_allclose(slope, (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_only_the_papers_form_depends_on_scale(method):
    def values(form, weights, bias, attributes):
        return stability(method, form)(*arrays(weights, bias, attributes))

    for form in ("log_relative", "hinge"):
        value = values(form, WEIGHTS, BIAS, ATTRIBUTES)
        np.testing.assert_allclose(values(form, WEIGHTS, 1e3 * BIAS, 1e3 * ATTRIBUTES), value, rtol=1e-9)
        np.testing.assert_allclose(values(form, 1e-3 * WEIGHTS, 1e-3 * BIAS, ATTRIBUTES), value, rtol=1e-9)
    squared = values("squared", WEIGHTS, BIAS, ATTRIBUTES)
    np.testing.assert_allclose(values("squared", WEIGHTS, 10 * BIAS, 10 * ATTRIBUTES), 100 * squared, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
def test_detached_logits_leave_only_the_weights_a_gradient(form):
    point = arrays(WEIGHTS, BIAS, ATTRIBUTES)
    method = "boundary"
    value, (weights, bias, attributes) = with_gradients(stability(method, form, detach=True))(*point)
    np.testing.assert_allclose(value, stability(method, form)(*point), rtol=1e-12)
    np.testing.assert_array_equal(bias, 0)
    np.testing.assert_array_equal(attributes, 0)
    assert np.abs(weights).max() > 1e-6
    # the same as handing in the logits as a constant
    logits = jnp.asarray(ATTRIBUTES @ WEIGHTS.T + BIAS)
    free = jax.grad(
        lambda w: sj.stability_loss(
            sj.Head(w, point[1]), point[2], form=form, logits=logits, required_distance=REQUIRED[method]
        )
    )
    np.testing.assert_allclose(free(point[0]), weights, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_free_logits_replace_the_heads_own_and_can_be_learnt():
    head, attributes = sj.Head(*arrays(WEIGHTS, BIAS)), jnp.asarray(ATTRIBUTES)
    loss = jax.jit(
        jax.value_and_grad(lambda logits: sj.stability_loss(head, attributes, form="squared", logits=logits))
    )
    own = sj.head_logits(head, attributes)
    np.testing.assert_allclose(loss(own)[0], sj.stability_loss(head, attributes, form="squared"), rtol=1e-12)
    # twice the logits, twice the distances, and the gradient tells so (Euler's rule for a square)
    np.testing.assert_allclose(loss(2 * own)[0], 4 * loss(own)[0], rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(loss(own)[1] * own), 2 * loss(own)[0], rtol=1e-9)
    with pytest.raises(ValueError, match="logits has shape"):
        sj.stability_loss(head, attributes, logits=own[:, :-1])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
def test_pinv_without_bias_at_full_rank_teaches_the_head_nothing(form):
    weights = np.random.default_rng(2).normal(size=(12, 5))  # rank(C W) = n: delta is -e for every target
    samples = jnp.asarray(ATTRIBUTES[:, :5])
    loss = lambda w: sj.stability_loss(  # noqa: E731
        sj.Head(w), samples, method="pinv", form=form, required_distance=2.0, nearest=False
    )
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(weights))
    np.testing.assert_allclose(gradient, 0, atol=1e-10)
    squares = np.square(np.linalg.norm(samples, axis=1)).mean()
    np.testing.assert_allclose(value, {"squared": -squares, "log_relative": 0, "hinge": 1}[form], atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_samples_on_a_boundary_and_erased_ones_keep_everything_finite(method, form):
    weights, samples = np.eye(6, 10), np.zeros((4, 10))
    weights[2] = weights[0]
    samples[:3, :2] = [[2, 2], [3, 1], [0, 2]]  # a tie, a tie of equal rows, several rivals at one distance, all tied
    value, gradient = with_gradients(stability(method, form))(*arrays(weights, np.zeros(6), samples))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def all_losses(valid):
    """Every loss as a function of the same weights and attributes, with the given mask."""
    images = jnp.zeros((4, 2, 2, 3))
    labels = jnp.asarray([0, 1, 2, 0])

    def total(weights, bias, attributes):
        return sj.total_loss(
            sj.Head(weights, bias),
            attributes,
            (attributes > 0).astype(attributes.dtype),
            labels,
            lambda_stability=0.1,
            lambda_sparsity=0.1,
            lambda_reconstruction=0.1,
            images=images,
            reconstructions=images + attributes[:, :1, None, None],
            valid=valid,
        )

    losses = {"total": total}
    for method, form in itertools.product(METHODS, FORMS):
        losses[f"{method} {form}"] = functools.partial(
            lambda w, b, e, method, form: sj.stability_loss(sj.Head(w, b), e, method=method, form=form, valid=valid),
            method=method,
            form=form,
        )
    return losses


@pytest.mark.usefixtures("x64")
def test_padded_rows_change_neither_value_nor_gradient_even_if_nan():
    weights, bias, attributes = arrays(WEIGHTS, BIAS, ATTRIBUTES)
    mask = jnp.asarray([True, False, True, False])
    poisoned = jnp.where(mask[:, None], attributes, jnp.nan)
    for name, loss in all_losses(mask).items():
        value, gradients = with_gradients(loss)(weights, bias, attributes)
        nan_value, nan_gradients = with_gradients(loss)(weights, bias, poisoned)
        assert np.isfinite(value), name
        np.testing.assert_array_equal(nan_value, value, err_msg=name)
        for clean, masked in zip(gradients, nan_gradients, strict=True):
            np.testing.assert_array_equal(masked, clean, err_msg=name)
        np.testing.assert_array_equal(np.asarray(nan_gradients[2])[~np.asarray(mask)], 0, err_msg=name)


@pytest.mark.usefixtures("x64")
def test_mask_gives_the_mean_over_the_valid_rows_alone():
    weights, bias, attributes = arrays(WEIGHTS, BIAS, ATTRIBUTES)
    mask = jnp.asarray([True, True, False, False])
    twice = attributes[jnp.asarray([0, 1, 0, 1])]  # the valid rows twice have the mean of the valid rows

    def losses(rows, valid):
        head, labels = sj.Head(weights, bias), jnp.asarray([0, 1, 0, 1])
        return [
            sj.attribute_loss(rows, (rows > 0.3).astype(rows.dtype), valid=valid),
            sj.classification_loss(sj.head_logits(head, rows), labels, valid=valid),
            sj.sparsity_loss(rows, valid=valid),
            sj.stability_loss(head, rows, valid=valid),
        ]

    np.testing.assert_allclose(losses(attributes, mask), losses(twice, None), rtol=1e-12)
    np.testing.assert_array_equal(losses(attributes, jnp.zeros(4, bool)), 0)


def test_class_loss_ignores_nan_logits_of_padded_rows():
    logits = jnp.asarray([[1.0, 2.0, 0.0], [np.nan, np.nan, np.nan]])
    labels, mask = jnp.asarray([1, 0]), jnp.asarray([True, False])
    value, gradient = jax.value_and_grad(lambda x: sj.classification_loss(x, labels, valid=mask))(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.usefixtures("x64")
def test_attribute_loss_is_scikit_learns_log_loss():
    labels = np.random.default_rng(5).integers(0, 2, size=ATTRIBUTES.shape)
    probabilities = 1 / (1 + np.exp(-ATTRIBUTES))
    expected = np.mean([log_loss(labels[:, f], probabilities[:, f], labels=[0, 1]) for f in range(10)])
    truth = jnp.asarray(labels, jnp.float64)
    np.testing.assert_allclose(sj.attribute_loss(jnp.asarray(ATTRIBUTES), truth), expected, rtol=1e-10)
    weight = np.linspace(0.5, 5, 10)
    terms = np.where(labels == 1, -np.log(probabilities) * weight, -np.log(1 - probabilities))
    weighted = sj.attribute_loss(jnp.asarray(ATTRIBUTES), truth, positive_weight=jnp.asarray(weight))
    np.testing.assert_allclose(weighted, terms.mean(), rtol=1e-10)


def test_attribute_loss_stays_finite_at_extreme_values():
    loss = jax.value_and_grad(lambda e: sj.attribute_loss(e, jnp.asarray([[1.0, 0.0]])))
    value, gradient = loss(jnp.asarray([[-1e4, 1e4]]))
    assert value == pytest.approx(1e4) and np.isfinite(gradient).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_loss_is_the_cross_entropy(smoothing):
    logits, labels = ATTRIBUTES @ WEIGHTS.T, np.array([3, 0, 5, 1])
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(6)[labels] + smoothing / 6
    value = sj.classification_loss(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing)
    np.testing.assert_allclose(value, -(targets * log_probabilities).sum(axis=1).mean(), rtol=1e-10)
    if not smoothing:
        np.testing.assert_allclose(value, log_loss(labels, np.exp(log_probabilities), labels=range(6)), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_sparsity_and_reconstruction_are_plain_means():
    attributes, pictures = jnp.asarray(ATTRIBUTES), np.random.default_rng(6).uniform(size=(2, 3, 5, 4, 3))
    np.testing.assert_allclose(sj.sparsity_loss(attributes), (1 / (1 + np.exp(-ATTRIBUTES))).mean(), rtol=1e-12)
    value = sj.reconstruction_loss(jnp.asarray(pictures[0]), jnp.asarray(pictures[1]))
    np.testing.assert_allclose(value, np.square(pictures[0] - pictures[1]).mean(), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_total_loss_is_the_weighted_sum_of_its_terms():
    head, attributes = sj.Head(*arrays(WEIGHTS, BIAS)), jnp.asarray(ATTRIBUTES)
    truth, labels = (attributes > 0).astype(attributes.dtype), jnp.asarray([3, 0, 5, 1])
    images, redrawn = jnp.asarray(np.random.default_rng(7).uniform(size=(2, 4, 3, 3, 3)))
    weight = jnp.full(10, 2.0)
    mask = jnp.asarray([True, True, True, False])
    arguments = (head, attributes, truth, labels)
    options = {
        "lambda_attribute": 0.5,
        "lambda_class": 0.25,
        "lambda_stability": 0.125,
        "lambda_sparsity": 2.0,
        "lambda_reconstruction": 3.0,
        "images": images,
        "reconstructions": redrawn,
        "positive_weight": weight,
        "label_smoothing": 0.1,
        "stability_method": "projection",
        "stability_form": "hinge",
        "valid": mask,
    }
    total, terms = sj.total_loss(*arguments, **options), sj.loss_terms(*arguments, **options)
    assert total == terms.total
    np.testing.assert_allclose(terms.terms["sparsity_loss"], sj.sparsity_loss(attributes, valid=mask), rtol=1e-12)
    expected = (
        0.5 * sj.attribute_loss(attributes, truth, positive_weight=weight, valid=mask)
        + 0.25 * sj.classification_loss(sj.head_logits(head, attributes), labels, label_smoothing=0.1, valid=mask)
        + 0.125 * sj.stability_loss(head, attributes, method="projection", form="hinge", valid=mask)
        + 2.0 * sj.sparsity_loss(attributes, valid=mask)
        + 3.0 * sj.reconstruction_loss(redrawn, images, valid=mask)
    )
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    default = sj.total_loss(head, attributes, truth, labels)
    class_loss = sj.classification_loss(sj.head_logits(head, attributes), labels)
    np.testing.assert_allclose(default, 0.7 * sj.attribute_loss(attributes, truth) + 0.3 * class_loss, rtol=1e-12)
    free = {"lambda_stability": 0.5, "stability_form": "squared"}
    own = sj.loss_terms(*arguments, **free).terms["stability_loss"]
    logits = 2 * sj.head_logits(head, attributes)
    twice = sj.loss_terms(*arguments, **free, stability_logits=logits).terms["stability_loss"]
    np.testing.assert_allclose(twice, 4 * own, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_terms_of_weight_zero_are_not_computed(monkeypatch):
    module = sys.modules["spectra_jax.losses"]
    head, attributes = sj.Head(*arrays(WEIGHTS, BIAS)), jnp.asarray(ATTRIBUTES)
    labels = jnp.zeros(4, jnp.int32)
    called = []
    for name in ("stability_loss", "sparsity_loss", "reconstruction_loss"):
        original = getattr(module, name)

        def spy(*args, name=name, original=original, **options):
            called.append(name)
            return original(*args, **options)

        monkeypatch.setattr(module, name, spy)
    sj.total_loss(head, attributes, attributes, labels)
    assert called == []
    sj.total_loss(head, attributes, attributes, labels, lambda_stability=1.0, lambda_sparsity=1.0)
    assert called == ["stability_loss", "sparsity_loss"]


def test_bad_input_is_named():
    head, attributes = sj.Head(jnp.asarray(WEIGHTS, jnp.float32)), jnp.asarray(ATTRIBUTES, jnp.float32)
    labels = jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="'squared', 'log_relative', 'hinge'"):
        sj.stability_loss(head, attributes, form="linear")
    with pytest.raises(ValueError, match="'boundary', 'pinv', 'projection'"):
        sj.stability_loss(head, attributes, method="nearest")
    with pytest.raises(ValueError, match="last axis of 10"):
        sj.stability_loss(head, attributes[:, :-1])
    with pytest.raises(ValueError, match="images or reconstructions is None"):
        sj.total_loss(head, attributes, attributes, labels, lambda_reconstruction=1.0)


def test_margin_logits_are_distances_to_the_boundaries():
    head = sj.Head(jnp.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), jnp.array([0.0, 1.0, 0.0]))
    logits = sj.margin_logits(head, jnp.array([[2.0, 0.5]]), jnp.array([0]), radius=1.0, temperature=0.5)
    # l = (6, 3, 0); the boundaries are (6 - 3) / 5 and (6 - 0) / 3 away.
    np.testing.assert_allclose(logits, [[0.0, (1 - 0.6) / 0.5, (1 - 2) / 0.5]], rtol=1e-6)
    terms = sj.loss_terms(head, jnp.array([[2.0, 0.5]]), jnp.zeros((1, 2)), jnp.array([0]), certified_radius=1.0,
                          margin_temperature=0.5)  # fmt: skip
    np.testing.assert_allclose(terms.terms["class_loss"], np.log(1 + np.exp(0.8) + np.exp(-2)), rtol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-6])
def test_margins_of_twin_classes_have_bounded_gradients(apart):
    weights = jnp.array([[1.0, 0.0], [1.0 + apart, 0.0], [0.0, 1.0]])

    def loss(weights, attributes):
        logits = sj.margin_logits(sj.Head(weights), attributes, jnp.array([0]), radius=1.0)
        return sj.classification_loss(logits, jnp.array([0]))

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(weights, jnp.array([[0.3, 0.2]]))
    assert np.isfinite(value) and all(np.abs(slope).max() < 1e4 for slope in slopes)


def test_attributes_may_be_scored_through_logits_of_their_own():
    head, attributes, labels = sj.Head(jnp.eye(2)), jnp.array([[0.1, -0.2]]), jnp.array([[1.0, 0.0]])
    terms = sj.loss_terms(head, attributes, labels, jnp.array([0]), attribute_logits=10 * attributes).terms
    np.testing.assert_allclose(terms["attribute_loss"], sj.attribute_loss(10 * attributes, labels))
    np.testing.assert_allclose(terms["class_loss"], sj.classification_loss(attributes, jnp.array([0])))
