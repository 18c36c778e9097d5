"""From an attribute vector to an image that has it (Section 2.6): one way of searching a file, behind one call."""

from typing import TYPE_CHECKING

from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from spectra_jax.inversion.config import InversionConfig as InversionConfig
    from spectra_jax.inversion.invert import invert as invert
    from spectra_jax.inversion.search import InversionProgress as InversionProgress
    from spectra_jax.inversion.types import InversionReason as InversionReason
    from spectra_jax.inversion.types import InversionResult as InversionResult
else:
    import_on_use(__name__)
