"""The nearest point of the hyperplane between two classes (Section 2.5.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.geometry import is_predicted, safe_norm, safe_sqrt
from spectra_jax.perturbations.problem import Problem, make_problem
from spectra_jax.switches import public
from spectra_jax.types import Head


@public()
def boundary_perturbation(
    head: Head, attributes: Float[Array, " n"], target: Int[Array, ""] | int, *, margin: float | Float[Array, ""] = 0.0
) -> Float[Array, " n"]:
    """Smallest change after which `target` beats the predicted class by `margin` (Section 2.5.2).

    delta = (l_i - l_j + margin) (w_j - w_i) / ||w_j - w_i||^2, with i the strongest class other than j.

    Do NOT read it as "the input becomes class j": a third class may win there. That guarantee is
    `projection_perturbation`'s; this is its cheap lower bound in norm.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index j.
        margin: required lead over class i, in logits.

    Returns:
        (n,) in attribute units; 0 where j already leads by the margin, inf where w_i = w_j or a bias of -inf makes it
        impossible.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative.
    """
    return _to_boundary(make_problem(head, attributes, target, margin=margin))


@jax.jit
def _to_boundary(problem: Problem) -> Float[Array, " n"]:
    rival = jnp.argmax(problem.offsets)
    normal = problem.normals(rival[None])[0]
    length = safe_norm(normal)
    distance = formulas.boundary_distance(jnp.maximum(problem.offsets[rival], 0), length)
    # Rows that coincide, or a target that is masked by a bias of -inf: nothing helps. NaN stays NaN.
    impossible = distance == jnp.inf
    change = jnp.where(impossible, 0, distance) * (normal / jnp.where(length > 0, length, 1))
    return jnp.where(impossible, jnp.inf, change)


def boundary_norms(
    squares: Float[Array, "c c"], logits: Float[Array, "b c"], margin: Float[Array, ""]
) -> Float[Array, "b c"]:
    """Distances ||delta_ij|| from each sample's predicted class i to every class j, without forming delta.

    Args:
        squares: (c, c) squared distances between the rows of the weights.
        logits: (b, c).
        margin: required lead over the predicted class, in logits.

    Returns:
        (b, c); 0 for the predicted class, inf where the two classes have equal weights and the target is behind.
    """
    predicted = jnp.argmax(logits, axis=-1)
    offsets = formulas.offset(jnp.max(logits, axis=-1, keepdims=True), logits, margin)
    norms = formulas.boundary_distance(offsets, safe_sqrt(squares)[predicted])
    return jnp.where(is_predicted(logits), 0, norms)
