"""The smallest change under many kinds of rules at once: ranges, directions, relations, groups, few attributes."""

from typing import TYPE_CHECKING

from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from spectra_jax.constraints.rules import Rules as Rules
    from spectra_jax.constraints.solve import ConstrainedResult as ConstrainedResult
    from spectra_jax.constraints.solve import constrained_perturbations as constrained_perturbations
else:
    import_on_use(__name__)
