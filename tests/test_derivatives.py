"""Derivatives of the solvers against finite differences in float64, and the transforms they must survive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj

pytestmark = pytest.mark.usefixtures("x64")


def problem(seed=0, num_classes=8, num_attributes=12, num_samples=3):
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=(num_classes, num_attributes)), rng.normal(size=num_classes)
    attributes = rng.normal(size=(num_samples, num_attributes))
    return jnp.asarray(weights), jnp.asarray(bias), jnp.asarray(attributes)


def outputs(method):
    solve = {
        "boundary": sj.boundary_perturbation,
        "pinv": sj.pinv_perturbation,
        "projection": lambda *args, margin: sj.projection_perturbation(*args, margin=margin).delta,
        "single": lambda *args, margin: (lambda r: jnp.where(r.feasible, r.delta, 0))(
            sj.single_attribute_perturbations(*args, margin=margin)
        ),
    }[method]
    return lambda weights, bias, sample, margin, target: solve(sj.Head(weights, bias), sample, target, margin=margin)


def inner(tree, others):
    """The sum of products over all leaves."""
    return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(others), strict=True))


def slopes(function, point, direction):
    """Value, directional derivative in forward mode and gradient, which share what they have in common."""
    value, push = jax.linearize(function, *point)
    (gradient,) = jax.linear_transpose(lambda tangents: push(*tangents), point)(jnp.ones_like(value))
    return value, push(*direction), gradient


def central_difference(function, point, direction, step=1e-5):
    return (function(*jax.tree.map(lambda x, d: x + step * d, point, direction))
            - function(*jax.tree.map(lambda x, d: x - step * d, point, direction))) / (2 * step)  # fmt: skip


def targets_to_check(weights, bias, sample):
    order = np.argsort(np.asarray(weights @ sample + bias))
    return [int(order[0]), int(order[-2]), int(order[3])]


@pytest.mark.parametrize("method", ["boundary", "pinv", "projection", "single"])
def test_gradient_of_delta_with_respect_to_everything(method):
    weights, bias, attributes = problem()
    sample, margin = attributes[0], jnp.float64(0.1)
    delta = outputs(method)
    rng = np.random.default_rng(1)
    point = (weights, bias, sample, margin)
    direction = tuple(jnp.asarray(rng.normal(size=np.shape(x))) for x in point)
    cotangent = jnp.asarray(rng.normal(size=sample.shape))
    together = jax.jit(
        lambda target, *point: slopes(lambda *args: jnp.sum(cotangent * delta(*args, target)), point, direction)
    )
    for target in map(jnp.int32, targets_to_check(weights, bias, sample)):
        expected = central_difference(lambda *args, target=target: together(target, *args)[0], point, direction)
        _, forward, gradient = together(target, *point)
        reverse = inner(gradient, direction)
        np.testing.assert_allclose(reverse, expected, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(forward, reverse, rtol=1e-9)


@pytest.mark.parametrize("method", ["pinv", "projection"])
def test_second_derivatives(method):
    weights, bias, attributes = problem(2)
    point = (weights, bias, attributes[0], jnp.float64(0.1))
    direction = tuple(jnp.asarray(np.random.default_rng(3).normal(size=np.shape(x))) for x in point)
    delta = outputs(method)
    target = targets_to_check(weights, bias, attributes[0])[0]
    square = lambda *args: jnp.sum(delta(*args, jnp.int32(target)) ** 2)  # noqa: E731
    slope = lambda *args: inner(jax.grad(square, (0, 1, 2, 3))(*args), direction)  # noqa: E731
    together = jax.jit(lambda *point: jax.jvp(slope, point, direction))
    expected = central_difference(lambda *args: together(*args)[0], point, direction)
    np.testing.assert_allclose(together(*point)[1], expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["boundary", "pinv", "projection"])
def test_gradient_of_all_pairs_norms(method):
    weights, bias, attributes = problem(4)
    rng = np.random.default_rng(5)
    point = (weights, bias, attributes, jnp.float64(0.1))
    direction = tuple(jnp.asarray(rng.normal(size=np.shape(x))) for x in point)
    cotangent = jnp.asarray(rng.normal(size=(3, 8)))
    scalar = jax.jit(
        lambda w, b, e, m: jnp.sum(cotangent * sj.all_pairs_norms(sj.Head(w, b), e, method=method, margin=m))
    )
    gradient = jax.jit(jax.grad(scalar, (0, 1, 2, 3)))(*point)
    np.testing.assert_allclose(inner(gradient, direction), central_difference(scalar, point, direction), rtol=1e-6)


def test_pinv_gradient_is_finite_at_repeated_singular_values():
    simplex = jnp.eye(6, 9) - 1 / 6  # all non-zero singular values equal: where trained heads tend to go
    sample = jnp.asarray(np.random.default_rng(6).normal(size=9))
    loss = jax.jit(lambda w: jnp.sum(sj.pinv_perturbation(sj.Head(w), sample, 2, margin=0.5) ** 2))
    gradient = jax.jit(jax.grad(loss))(simplex)
    assert np.all(np.isfinite(gradient))
    direction = jnp.asarray(np.random.default_rng(7).normal(size=(6, 9)))
    expected = central_difference(loss, (simplex,), (direction,))
    np.testing.assert_allclose(jnp.sum(gradient * direction), expected, rtol=1e-6)


def test_projection_gradient_is_finite_where_nothing_is_to_be_done_or_possible():
    weights = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    sample = jnp.asarray([1.0, 0.5])

    def norm(w, target, margin):
        result = sj.projection_perturbation(sj.Head(w), sample, target, margin=margin)
        return jnp.where(result.feasible, result.norm, 0.0)

    gradient = jax.jit(jax.grad(norm))
    for target, margin in [(0, 0.0), (2, 0.5)]:  # already the class; can never win
        assert np.all(np.isfinite(gradient(weights, jnp.int32(target), margin)))


def test_transforms_in_any_order_agree_and_compile_once():
    weights, bias, attributes = problem(8)
    head = sj.Head(weights, bias)
    solve = lambda h, e, j: sj.projection_perturbation(h, e, j, margin=0.1).delta  # noqa: E731
    classes = jnp.arange(8, dtype=jnp.int32)
    samples_first = jax.jit(jax.vmap(jax.vmap(solve, (None, 0, None)), (None, None, 0)))(head, attributes, classes)
    compiled = jax.jit(jax.vmap(jax.vmap(solve, (None, None, 0)), (None, 0, None)))
    np.testing.assert_allclose(compiled(head, attributes, classes), jnp.swapaxes(samples_first, 0, 1), atol=1e-12)
    compiled(head, attributes + 1, classes)
    assert compiled._cache_size() == 1
    heads = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), head)  # vmapped over heads as well
    several = jax.jit(jax.vmap(solve, (0, None, None)))(heads, attributes[0], jnp.int32(1))
    np.testing.assert_allclose(several[0], compiled(head, attributes, classes)[0, 1], atol=1e-12)
    jacobian = jax.jit(jax.vmap(jax.jacrev(solve, argnums=1), (None, 0, None)))(head, attributes, jnp.int32(2))
    forward = jax.jit(jax.jacfwd(jax.vmap(solve, (None, 0, None)), argnums=1))(head, attributes, jnp.int32(2))
    np.testing.assert_allclose(jacobian, forward[jnp.arange(3), :, jnp.arange(3)], atol=1e-10)


def test_pairs_beyond_the_usual_working_set_differentiate_too():
    rng = np.random.default_rng(9)
    weights = jnp.asarray(np.eye(37, 36) + 0.02 * rng.normal(size=(37, 36)))
    # To be the last class, whose weights are near zero, every positive attribute must be erased.
    samples = jnp.asarray(np.stack([rng.uniform(1, 2, size=36), rng.normal(size=36)]))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def first_norm(e):
        result = jax.vmap(lambda e: sj.projection_perturbation(sj.Head(weights), e, 36))(e)
        return result.norm[0], result

    (_, result), gradient = first_norm(samples)
    assert int(jnp.max(jnp.sum(result.multipliers > 0, axis=-1))) > 32
    assert float(jnp.max(result.kkt_residual)) < 1e-9
    direction = jnp.asarray(rng.normal(size=36))
    moving = jnp.stack([direction, 0 * direction])
    expected = central_difference(lambda e: first_norm(e)[0][0], (samples,), (moving,))
    np.testing.assert_allclose(jnp.sum(gradient * moving), expected, rtol=1e-6)


def test_derivatives_without_an_answer_are_zero():
    weights = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # the last one lies between the others: it never wins

    def norm(weights):
        return sj.projection_perturbation(sj.Head(weights), jnp.array([1.0, 0.2]), 2, margin=0.1).norm

    value, slope = jax.value_and_grad(norm)(weights)
    assert np.isinf(value) and (np.asarray(slope) == 0).all()
