"""The answers of the exact search to the problems of a queue."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Answers(NamedTuple):
    """The outcome of each problem.

    Attributes:
        status: (q,) a `Status`: SOLVED, INFEASIBLE or UNRESOLVED.
        norm: (q,) length of the nearest point; inf where INFEASIBLE, NaN where UNRESOLVED.
        residual: (q,) largest violation of the optimality conditions, as a distance; for a certificate the length of
            the combined normals along attributes without an end, relative to the terms of the combination.
        num_active: (q,) rivals with a positive multiplier.
        evidence: the rest, or None if not asked for.
    """

    status: Int[Array, " q"]
    norm: Float[Array, " q"]
    residual: Float[Array, " q"]
    num_active: Int[Array, " q"]
    evidence: "Evidence | None"

    @property
    def proof(self) -> "Evidence":
        """The evidence, where it was asked for."""
        assert self.evidence is not None
        return self.evidence


class Evidence(NamedTuple):
    """What holds each answer.

    Attributes:
        slots: (q, s) the active rivals, and the candidate of a certificate.
        multipliers: (q, s) of the constraint normals; 0 in slots that are not used.
        pattern: the rest, or None if not asked for.
    """

    slots: Int[Array, "q s"]
    multipliers: Float[Array, "q s"]
    pattern: "Pattern | None"

    @property
    def whole(self) -> "Pattern":
        """The pattern, where it was asked for."""
        assert self.pattern is not None
        return self.pattern


class Pattern(NamedTuple):
    """The nearest point and what its derivatives need.

    Attributes:
        delta: (q, n) the nearest point; 0 where there is none.
        place: (q, n) int8: -1 or 1 for an attribute held at the lower or upper end of its range, 0 for a free one.
        inverse: (q, s, s) inverse of the Gram matrix of the active rivals' unit normals over the free attributes.
    """

    delta: Float[Array, "q n"]
    place: Int[Array, "q n"]
    inverse: Float[Array, "q s s"]
