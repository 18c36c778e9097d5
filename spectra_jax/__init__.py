"""SPECTRA-JAX: exact attribute-space counterfactuals, attackability and robustness training in JAX."""

from spectra_jax.attackability import attackability as attackability
from spectra_jax.losses import attribute_loss as attribute_loss
from spectra_jax.losses import classification_loss as classification_loss
from spectra_jax.metrics import attack_success_rate as attack_success_rate
from spectra_jax.metrics import perturbation_noise_ratio as perturbation_noise_ratio
from spectra_jax.metrics import psnr as psnr
from spectra_jax.perturbations import ProjectionResult as ProjectionResult
from spectra_jax.perturbations import SingleAttributeResult as SingleAttributeResult
from spectra_jax.perturbations import all_pairs_norms as all_pairs_norms
from spectra_jax.perturbations import best_single_attributes as best_single_attributes
from spectra_jax.perturbations import boundary_perturbation as boundary_perturbation
from spectra_jax.perturbations import head_logits as head_logits
from spectra_jax.perturbations import pinv_perturbation as pinv_perturbation
from spectra_jax.perturbations import projection_perturbation as projection_perturbation
from spectra_jax.perturbations import single_attribute_perturbations as single_attribute_perturbations
from spectra_jax.types import Batch as Batch
from spectra_jax.types import Head as Head
