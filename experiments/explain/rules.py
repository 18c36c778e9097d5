"""The rules of experiments.explain on its command line."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.cli.command import UserError


@dataclass(frozen=True)
class Rules:
    """The rules that a change must obey, all at once. Attributes are named by patterns such as "size::*".

    Attributes:
        immutable: attributes that may not change.
        only_rise: attributes that may only get larger.
        only_fall: attributes that may only get smaller.
        range: lowest and highest value that any attribute may have after the change.
        observed_range: keep every attribute within the range observed over the images.
        one_hot: groups `group::value` of which exactly one value is on; "*" for all groups.
        on_level: level from which a value of a group is on: 0 for logits, 0.5 for probabilities.
        relations: relations between attributes, such as "bill <= head".
        costs: "spread" measures changes in standard deviations over the images.
        max_changes: how many attributes may change at most.
    """

    immutable: tuple[str, ...] = ()
    only_rise: tuple[str, ...] = ()
    only_fall: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    observed_range: bool = False
    one_hot: tuple[str, ...] = ()
    on_level: float = 0.0
    relations: tuple[str, ...] = ()
    costs: Literal["spread"] | None = None
    max_changes: int | None = None

    def check(self) -> None:
        """Raises UserError for two ranges."""
        if self.range is not None and self.observed_range:
            raise UserError("--range and --observed-range contradict each other: give only one of them.")

    def as_arguments(self) -> dict[str, Any]:
        """Those of `spectra_jax.explain`."""
        given = dataclasses.asdict(self)
        ends, observed = given.pop("range"), given.pop("observed_range")
        given["at_most"] = given.pop("max_changes")
        return given | {"ranges": "observed" if observed else ends}
