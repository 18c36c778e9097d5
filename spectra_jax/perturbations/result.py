"""The answer of the solvers that restrict a change: to ranges, to few attributes, to one value in every group."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.types import Status


class RestrictedResult(NamedTuple):
    """The smallest change found under one kind of restriction, with its evidence.

    Attributes:
        delta: (n,) the change; inf where none exists, NaN where none was found although one may exist.
        norm: its Euclidean length; inf or NaN likewise.
        lower_bound: no change within the restriction is shorter; inf where none exists, NaN where nothing is known.
        status: () a `Status`: SOLVED, INFEASIBLE, UNRESOLVED, BUDGET or NOT_FINITE.
        multipliers: (c,) of the constraint normals w_target - w_k; positive only for the rivals that bind.
        bound_multipliers: (n,) of the attributes' own limits, 0 for an attribute that is free to move. In a range,
            positive for an attribute held up by its lower end, negative for one held down by its upper end. On the
            attributes that may change, delta = sum_k multipliers_k (w_target - w_k) + bound_multipliers. Where ranges
            leave no answer the two are the certificate of that: the sum is 0 on the attributes that may change, and
            the constraints, so weighted, contradict each other. An immutable attribute outside its range is a
            certificate of its own: 1 where it is too low, -1 where it is too high, and 0 everywhere else.
        chosen: (n,) the choice that was made: the attributes allowed to change, or the value that is on in each group.
            All False without an answer, and where there is nothing to choose.
        kkt_residual: largest violation of the optimality conditions given the choice, relative to
            ||attributes|| + ||delta||; see `ProjectionResult`. For the certificate of ranges: the length of the sum,
            which should be 0, relative to its terms. NaN where neither is at hand.
    """

    delta: Float[Array, " n"]
    norm: Float[Array, ""]
    lower_bound: Float[Array, ""]
    status: Int[Array, ""]
    multipliers: Float[Array, " c"]
    bound_multipliers: Float[Array, " n"]
    chosen: Bool[Array, " n"]
    kkt_residual: Float[Array, ""]

    @property
    def feasible(self) -> Bool[Array, ""]:
        """Whether delta makes the target win by the margin, within the restriction."""
        return self.status == Status.SOLVED

    @property
    def proven(self) -> Bool[Array, ""]:
        """Whether nothing is left open: the norm equals the lower bound up to rounding, or there is no answer."""
        tolerance = 10 * float(jnp.finfo(self.norm.dtype).eps) ** (2 / 3)
        shortest = self.norm - self.lower_bound <= tolerance * self.norm
        return (self.status == Status.INFEASIBLE) | ((self.status == Status.SOLVED) & shortest)
