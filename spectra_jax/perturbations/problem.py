"""One sample, one target class, and what an attribute change must achieve: the input of every single-pair solver.

    g_k . delta >= h_k for every rival k,   low <= delta <= high

with the constraint normals g_k = w_target - w_k and the offsets h_k = l_k - l_target + margin.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_mutable, check_ranges
from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.geometry import are_finite, of_unit_size, relative_logits, safe_norm
from spectra_jax.types import Head, Status


class Ranges(NamedTuple):
    """How far each attribute may change.

    Attributes:
        low: (n,) smallest change; 0 for an immutable attribute.
        high: (n,) largest change, at least low.
        outside: (n,) for an immutable attribute that lies outside its range, which leaves no answer: 1 where it is too
            low, -1 where it is too high; 0 for all others.
    """

    low: Float[Array, " n"]
    high: Float[Array, " n"]
    outside: Float[Array, " n"]


class Problem(NamedTuple):
    """The geometry of one pair, in units in which the largest weight is between 1/2 and 1.

    Attributes:
        head: weights (c, n) and bias (c,), times `factor`.
        attributes: (n,) of the sample.
        target: class index.
        margin: required lead, times `factor`.
        mutable: (n,) attributes that may change; None for all.
        ranges: how far they may change; None for any change.
        logits: (c,) relative to the largest, times `factor`.
        offsets: (c,) that the constraint normals must reach; -inf for the target itself.
        factor: power of two. The multipliers of this problem times the factor are those of the given head.
        is_finite: whether every input is a number: weights, attributes, margin and ranges, and a bias that is not inf.
        is_masked: whether a bias of -inf rules the target out, which no finite change can lift.
    """

    head: Head
    attributes: Float[Array, " n"]
    target: Int[Array, ""]
    margin: Float[Array, ""]
    mutable: Bool[Array, " n"] | None
    ranges: Ranges | None
    logits: Float[Array, " c"]
    offsets: Float[Array, " c"]
    factor: Float[Array, ""]
    is_finite: Bool[Array, ""]
    is_masked: Bool[Array, ""]

    @property
    def weights(self) -> Float[Array, "c n"]:
        """Those of the head, 0 for attributes that must not change."""
        return self.head.weights if self.mutable is None else jnp.where(self.mutable[None, :], self.head.weights, 0)

    @property
    def limits(self) -> Ranges:
        """The ranges of a problem that has some."""
        assert self.ranges is not None
        return self.ranges

    @property
    def is_open(self) -> Bool[Array, ""]:
        """Whether there is anything to search for."""
        return self.is_finite & ~self.is_masked

    def normals(self, rivals: Int[Array, " s"]) -> Float[Array, "s n"]:
        """The constraint normals of these rivals, over all attributes."""
        return self.head.weights[self.target][None, :] - self.head.weights[rivals]

    def status(self, found: Int[Array, ""]) -> Int[Array, ""]:
        """The `Status` of the answer, from that of a search that ran only if `is_open`."""
        closed = jnp.where(self.is_finite, Status.INFEASIBLE, Status.NOT_FINITE)
        return jnp.where(self.is_open, found, closed).astype(jnp.int32)

    def residual(self, residual: Float[Array, ""], norm: Float[Array, ""]) -> Float[Array, ""]:
        """A violation of the optimality conditions relative to the sizes at hand; not differentiable."""
        return jax.lax.stop_gradient(formulas.relative_residual(residual, safe_norm(self.attributes), norm))


def absent(status: Int[Array, ""]) -> Float[Array, ""]:
    """What stands in the place of a change that is not there: inf where none exists, NaN where none is known."""
    return jnp.where(status == Status.INFEASIBLE, jnp.inf, jnp.nan)


def make_problem(
    head: Head,
    attributes: Any,
    target: Any,
    *,
    margin: Any,
    mutable: Any = None,
    ranges: tuple[Any, Any] | None = None,
) -> Problem:
    """Validates what a public function was given and builds the problem.

    Args:
        head, attributes, target, margin, mutable: see `box_perturbation`.
        ranges: its `lower` and `upper`; None for a problem without ranges.

    Returns:
        Problem.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative, lower above upper or NaN.
    """
    head, attributes, target, margin = as_pair(head, attributes, target, margin)
    check_mutable(head, mutable)
    return _build(head, attributes, target, margin, mutable, None if ranges is None else check_ranges(head, *ranges))


@jax.jit  # op by op it would be a hundred programs
def _build(head: Head, attributes, target, margin, mutable, ends) -> Problem:
    head, margin, factor = of_unit_size(head, margin)
    logits = relative_logits(head, attributes[None])[0]
    is_finite = are_finite(head, attributes, margin)
    ranges = None
    if ends is not None:
        ranges = make_ranges(attributes, mutable, *ends)
        is_finite = is_finite & jnp.all(jax.lax.stop_gradient((ranges.low < jnp.inf) & (ranges.high > -jnp.inf)))
    return Problem(
        head=head,
        attributes=attributes,
        target=target,
        margin=margin,
        mutable=mutable,
        ranges=ranges,
        logits=logits,
        offsets=formulas.offsets(logits, target, margin),
        factor=factor,
        is_finite=is_finite,
        is_masked=jnp.zeros((), bool) if head.bias is None else jax.lax.stop_gradient(head.bias[target]) == -jnp.inf,
    )


def make_ranges(
    attributes: Float[Array, " n"],
    mutable: Bool[Array, " n"] | None,
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> Ranges:
    """The changes after which the attributes lie in [lower, upper]."""
    low, high = lower - attributes, upper - attributes
    if mutable is None:
        return Ranges(low, high, jnp.zeros_like(low))
    # Immutable attributes stay where they are: their own range can then only be met or not.
    outside = jnp.where(mutable, 0, (low > 0).astype(low.dtype) - (high < 0).astype(low.dtype))
    return Ranges(jnp.where(mutable, low, 0), jnp.where(mutable, high, 0), outside)
