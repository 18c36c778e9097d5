"""Attribute-bottleneck classifiers; the only package that imports flax."""

from typing import TYPE_CHECKING

from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from spectra_jax.models._base import Model as Model
    from spectra_jax.models._base import Params as Params
    from spectra_jax.models._registry import build_model as build_model
    from spectra_jax.models.autoencoder import AutoEncoder as AutoEncoder
    from spectra_jax.models.autoencoder import build_autoencoder as build_autoencoder
    from spectra_jax.models.decoder import Decoder as Decoder
    from spectra_jax.models.decoder import build_decoder as build_decoder
else:
    import_on_use(__name__)
