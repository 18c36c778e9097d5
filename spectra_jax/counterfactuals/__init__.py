"""The call that knows names: what would have to change, under which rules, in words, tables and pages."""

from spectra_jax.counterfactuals.explain import explain as explain
from spectra_jax.counterfactuals.explanation import Answer as Answer
from spectra_jax.counterfactuals.explanation import AttributeChange as AttributeChange
from spectra_jax.counterfactuals.explanation import Calibration as Calibration
from spectra_jax.counterfactuals.explanation import Explanation as Explanation
