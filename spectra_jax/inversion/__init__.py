"""From an attribute vector to an image that has it (Section 2.6): several search methods behind one call."""

from typing import TYPE_CHECKING

from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from spectra_jax.inversion.config import InversionConfig as InversionConfig
    from spectra_jax.inversion.descent import Adam as Adam
    from spectra_jax.inversion.descent import GradientDescent as GradientDescent
    from spectra_jax.inversion.gauss_newton import GaussNewton as GaussNewton
    from spectra_jax.inversion.invert import invert as invert
    from spectra_jax.inversion.manifold import Manifold as Manifold
    from spectra_jax.inversion.nearest import Nearest as Nearest
    from spectra_jax.inversion.search import InversionProgress as InversionProgress
    from spectra_jax.inversion.types import InversionResult as InversionResult
else:
    import_on_use(__name__)
