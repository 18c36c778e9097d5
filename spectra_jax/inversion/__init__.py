"""From an attribute vector to an image that has it (Section 2.6): one way of searching a file, behind one call."""

from spectra_jax.inversion.invert import invert as invert
from spectra_jax.inversion.search import InversionProgress as InversionProgress
from spectra_jax.inversion.types import InversionConfig as InversionConfig
from spectra_jax.inversion.types import InversionReason as InversionReason
from spectra_jax.inversion.types import InversionResult as InversionResult
