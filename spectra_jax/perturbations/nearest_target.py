"""The nearest class in a table of distances, taking missing entries into account."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import at_least_float32, check_array
from spectra_jax.switches import public


class NearestTarget(NamedTuple):
    """The nearest class of each sample.

    Attributes:
        target: (b,) int32; -1 where no class can be reached, or none that is resolved.
        distance: (b,) its entry of the table; inf where no class can be reached, NaN where nothing is resolved.
        num_unresolved: (b,) int32 number of NaN entries, which were skipped. Where it is not 0, the answer is the
            nearest of the resolved classes, and one of the others may be nearer.
    """

    target: Int[Array, " b"]
    distance: Float[Array, " b"]
    num_unresolved: Int[Array, " b"]


@public(rows="norms")
def nearest_target(norms: Float[Array, "b c"], *, allowed: Bool[Array, "b c"] | None = None) -> NearestTarget:
    """The class that the smallest change reaches, from a table such as that of `all_pairs_norms`.

    Use it in place of `norms.argmin()`, which returns the predicted class, whose entry is 0, or the first entry that is
    NaN. Entries are NaN where the distance is unresolved; here they are skipped and counted.

    Args:
        norms: (b, c) length of the change that reaches each class; inf where none does, NaN where it is unresolved.
        allowed: (b, c) classes that count. By default all but the predicted one, which is the first entry of each row
            that is 0: a later 0 is a class in a tie with it.

    Returns:
        NearestTarget; the lowest class among equals. The distance has the derivatives of its entry.

    Raises:
        ValueError: norms not (b, c) floats, or allowed not booleans of the same shape.
    """
    check_array("norms", norms)
    if norms.ndim != 2 or not jnp.issubdtype(norms.dtype, jnp.floating):
        raise ValueError(
            f"norms has shape {norms.shape} and type {norms.dtype}; expected (b, c) floats, one row per sample"
        )
    norms = at_least_float32(jnp.asarray(norms))
    if allowed is None:
        zero = norms == 0
        classes = jnp.arange(norms.shape[1], dtype=jnp.int32)
        allowed = ~(zero & (classes[None, :] == jnp.argmax(zero, axis=1).astype(jnp.int32)[:, None]))
    else:
        check_array("allowed", allowed)
        if allowed.shape != norms.shape or allowed.dtype != jnp.bool_:
            raise ValueError(
                f"allowed has shape {allowed.shape} and type {allowed.dtype}; expected booleans of shape {norms.shape}"
            )
    unresolved = allowed & jnp.isnan(norms)
    distances = jnp.where(allowed & ~unresolved, norms, jnp.inf)
    target = jnp.argmin(distances, axis=1).astype(jnp.int32)
    distance = jnp.take_along_axis(distances, target[:, None], axis=1)[:, 0]
    count = jnp.sum(unresolved, axis=1, dtype=jnp.int32)
    found = distance < jnp.inf
    return NearestTarget(
        target=jnp.where(found, target, -1),
        distance=jnp.where(~found & (count > 0), jnp.nan, distance),
        num_unresolved=count,
    )
