"""SPECTRA-JAX: exact attribute-space counterfactuals, attackability and robustness training in JAX."""

from typing import TYPE_CHECKING

from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from spectra_jax.attackability import attackability as attackability
    from spectra_jax.attackability import attackability_summary as attackability_summary
    from spectra_jax.certificates import Certificate as Certificate
    from spectra_jax.certificates import LipschitzBound as LipschitzBound
    from spectra_jax.certificates import certified_accuracy as certified_accuracy
    from spectra_jax.certificates import certified_attribute_radius as certified_attribute_radius
    from spectra_jax.certificates import certified_radius as certified_radius
    from spectra_jax.certificates import certify as certify
    from spectra_jax.certificates import encoder_rounding as encoder_rounding
    from spectra_jax.certificates import lipschitz_bound as lipschitz_bound
    from spectra_jax.constraints import ConstrainedResult as ConstrainedResult
    from spectra_jax.constraints import Rules as Rules
    from spectra_jax.constraints import constrained_perturbations as constrained_perturbations
    from spectra_jax.counterfactuals import Answer as Answer
    from spectra_jax.counterfactuals import AttributeChange as AttributeChange
    from spectra_jax.counterfactuals import Calibration as Calibration
    from spectra_jax.counterfactuals import Corrections as Corrections
    from spectra_jax.counterfactuals import Decision as Decision
    from spectra_jax.counterfactuals import Explanation as Explanation
    from spectra_jax.counterfactuals import Intervention as Intervention
    from spectra_jax.counterfactuals import explain as explain
    from spectra_jax.counterfactuals import fit_calibration as fit_calibration
    from spectra_jax.counterfactuals import helpful_corrections as helpful_corrections
    from spectra_jax.counterfactuals import intervene as intervene
    from spectra_jax.image_metrics import AttributeSelectivity as AttributeSelectivity
    from spectra_jax.image_metrics import ClassChange as ClassChange
    from spectra_jax.image_metrics import FrequencySplit as FrequencySplit
    from spectra_jax.image_metrics import ImageDistances as ImageDistances
    from spectra_jax.image_metrics import attribute_selectivity as attribute_selectivity
    from spectra_jax.image_metrics import class_change as class_change
    from spectra_jax.image_metrics import frequency_split as frequency_split
    from spectra_jax.image_metrics import image_distances as image_distances
    from spectra_jax.inversion import Adam as Adam
    from spectra_jax.inversion import GaussNewton as GaussNewton
    from spectra_jax.inversion import GradientDescent as GradientDescent
    from spectra_jax.inversion import InversionConfig as InversionConfig
    from spectra_jax.inversion import InversionProgress as InversionProgress
    from spectra_jax.inversion import InversionResult as InversionResult
    from spectra_jax.inversion import Nearest as Nearest
    from spectra_jax.inversion import invert as invert
    from spectra_jax.localization import CausalSplit as CausalSplit
    from spectra_jax.localization import EnergyLift as EnergyLift
    from spectra_jax.localization import causal_split as causal_split
    from spectra_jax.localization import energy_lift as energy_lift
    from spectra_jax.localization import part_discs as part_discs
    from spectra_jax.localization import pointing_hit as pointing_hit
    from spectra_jax.losses import LossTerms as LossTerms
    from spectra_jax.losses import attribute_loss as attribute_loss
    from spectra_jax.losses import classification_loss as classification_loss
    from spectra_jax.losses import consistency_loss as consistency_loss
    from spectra_jax.losses import loss_terms as loss_terms
    from spectra_jax.losses import margin_logits as margin_logits
    from spectra_jax.losses import reconstruction_loss as reconstruction_loss
    from spectra_jax.losses import sparsity_loss as sparsity_loss
    from spectra_jax.losses import stability_loss as stability_loss
    from spectra_jax.losses import total_loss as total_loss
    from spectra_jax.metrics import attack_success_rate as attack_success_rate
    from spectra_jax.metrics import perturbation_noise_ratio as perturbation_noise_ratio
    from spectra_jax.metrics import psnr as psnr
    from spectra_jax.models import Model as Model
    from spectra_jax.models import build_model as build_model
    from spectra_jax.perturbations import AllPairsResult as AllPairsResult
    from spectra_jax.perturbations import BestSingleAttributes as BestSingleAttributes
    from spectra_jax.perturbations import NearestClass as NearestClass
    from spectra_jax.perturbations import NearestTarget as NearestTarget
    from spectra_jax.perturbations import ProjectionResult as ProjectionResult
    from spectra_jax.perturbations import RestrictedResult as RestrictedResult
    from spectra_jax.perturbations import SingleAttributeResult as SingleAttributeResult
    from spectra_jax.perturbations import all_pairs_norms as all_pairs_norms
    from spectra_jax.perturbations import all_pairs_projection as all_pairs_projection
    from spectra_jax.perturbations import best_single_attributes as best_single_attributes
    from spectra_jax.perturbations import boundary_perturbation as boundary_perturbation
    from spectra_jax.perturbations import box_perturbation as box_perturbation
    from spectra_jax.perturbations import head_logits as head_logits
    from spectra_jax.perturbations import nearest_class as nearest_class
    from spectra_jax.perturbations import nearest_target as nearest_target
    from spectra_jax.perturbations import one_hot_perturbation as one_hot_perturbation
    from spectra_jax.perturbations import pinv_perturbation as pinv_perturbation
    from spectra_jax.perturbations import projection_perturbation as projection_perturbation
    from spectra_jax.perturbations import single_attribute_perturbations as single_attribute_perturbations
    from spectra_jax.perturbations import sparse_perturbation as sparse_perturbation
    from spectra_jax.saliency import activation_map as activation_map
    from spectra_jax.similarity import ssim as ssim
    from spectra_jax.smoothing import smoothed_attribute_certificate as smoothed_attribute_certificate
    from spectra_jax.smoothing import smoothed_certificate as smoothed_certificate
    from spectra_jax.types import Batch as Batch
    from spectra_jax.types import Head as Head
    from spectra_jax.types import Status as Status
else:
    import_on_use(__name__)
