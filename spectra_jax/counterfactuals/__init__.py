"""Counterfactuals with names: what would have to change, under which rules, in words, tables and pages."""

from typing import TYPE_CHECKING

from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from spectra_jax.counterfactuals.calibration import Calibration as Calibration
    from spectra_jax.counterfactuals.calibration import fit_calibration as fit_calibration
    from spectra_jax.counterfactuals.explain import explain as explain
    from spectra_jax.counterfactuals.explanation import Answer as Answer
    from spectra_jax.counterfactuals.explanation import AttributeChange as AttributeChange
    from spectra_jax.counterfactuals.explanation import Explanation as Explanation
    from spectra_jax.counterfactuals.interventions import Corrections as Corrections
    from spectra_jax.counterfactuals.interventions import Decision as Decision
    from spectra_jax.counterfactuals.interventions import Intervention as Intervention
    from spectra_jax.counterfactuals.interventions import helpful_corrections as helpful_corrections
    from spectra_jax.counterfactuals.interventions import intervene as intervene
else:
    import_on_use(__name__)
