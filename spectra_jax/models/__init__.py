"""Attribute-bottleneck classifiers; the only package that imports flax."""

from spectra_jax.models._base import Model as Model
from spectra_jax.models._base import Params as Params
from spectra_jax.models._registry import build_model as build_model
