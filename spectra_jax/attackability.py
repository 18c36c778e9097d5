"""Attackability: how large an attribute vector is against its distance to a class change (Eq. 5, 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from spectra_jax.checks import check_attributes, check_choice
from spectra_jax.perturbations.all_pairs import METHODS, all_pairs_norms
from spectra_jax.perturbations.geometry import head_logits, safe_norm
from spectra_jax.types import Head


def attackability(head: Head, attributes: Float[Array, "b n"], *, method: str = "boundary") -> Float[Array, "b"]:
    """Sample attackability max_k ||e|| / ||delta_k|| over the classes k other than the predicted one (Eq. 5).

    The nearest exit of a convex region is through one facet, so "boundary" gives the exact answer in
    closed form and "projection" the same one at greater cost. "pinv" is the paper's own; with no bias and
    more attributes than classes can tie it is close to 1 whatever the model, see `pinv_perturbation`.

    It is a figure of the feature space: it says nothing on how easily the encoder moves e. A claim of
    robustness needs an input-space attack beside it.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        method: "boundary", "projection" or "pinv".

    Returns:
        (b,) dimensionless, unchanged when e or W is rescaled; inf for a sample on a boundary, 0 where no
        other class can be reached.

    Raises:
        ValueError: shapes do not match, unknown method.
    """
    check_attributes(head, attributes, ndim=2)
    check_choice("method", method, METHODS)
    logits = head_logits(head, attributes)
    norms = all_pairs_norms(head, attributes, method=method, logits=logits)
    others = jnp.arange(logits.shape[-1])[None, :] != jnp.argmax(logits, axis=-1)[:, None]
    return safe_norm(attributes) / jnp.min(jnp.where(others, norms, jnp.inf), axis=-1)
