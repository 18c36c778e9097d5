"""SPECTRA-JAX: exact attribute-space counterfactuals, attackability and robustness training in JAX."""

from spectra_jax.types import Batch as Batch
from spectra_jax.types import Head as Head
