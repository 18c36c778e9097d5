"""Attribute-space counterfactuals: one algorithm per file; arrays in, arrays out."""

from spectra_jax.perturbations.all_pairs import all_pairs_norms as all_pairs_norms
from spectra_jax.perturbations.all_projections import AllPairsResult as AllPairsResult
from spectra_jax.perturbations.all_projections import all_pairs_projection as all_pairs_projection
from spectra_jax.perturbations.boundary import boundary_perturbation as boundary_perturbation
from spectra_jax.perturbations.box import box_perturbation as box_perturbation
from spectra_jax.perturbations.geometry import head_logits as head_logits
from spectra_jax.perturbations.groups import one_hot_perturbation as one_hot_perturbation
from spectra_jax.perturbations.nearest_class import NearestClass as NearestClass
from spectra_jax.perturbations.nearest_class import nearest_class as nearest_class
from spectra_jax.perturbations.nearest_target import NearestTarget as NearestTarget
from spectra_jax.perturbations.nearest_target import nearest_target as nearest_target
from spectra_jax.perturbations.pinv import pinv_perturbation as pinv_perturbation
from spectra_jax.perturbations.projection import ProjectionResult as ProjectionResult
from spectra_jax.perturbations.projection import projection_perturbation as projection_perturbation
from spectra_jax.perturbations.result import RestrictedResult as RestrictedResult
from spectra_jax.perturbations.single_attribute import BestSingleAttributes as BestSingleAttributes
from spectra_jax.perturbations.single_attribute import SingleAttributeResult as SingleAttributeResult
from spectra_jax.perturbations.single_attribute import best_single_attributes as best_single_attributes
from spectra_jax.perturbations.single_attribute import (
    single_attribute_perturbations as single_attribute_perturbations,
)
from spectra_jax.perturbations.sparse import sparse_perturbation as sparse_perturbation
