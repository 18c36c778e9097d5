"""What an inversion answers."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class InversionResult(NamedTuple):
    """The images found and how each search ended. Failures stay in: they belong in every denominator.

    How far the images moved is for `image_distances`, `ssim`, `psnr` and `attribute_selectivity` to say.

    Attributes:
        images: (b, h, w, channels) in [0, 1]; the last image tried where the search failed.
        attributes: (b, n) what the encoder makes of `images`.
        success: (b,) whether the classifier names the target, by `config.margin`.
        num_steps: (b,) updates made.
        loss: (b,) MSE + lambda (1 - SSIM) at `images`; NaN where the target is infeasible.
        reason: (b,) a `Status`. SOLVED: the classifier names the target. INFEASIBLE: the wanted attributes are not
            finite, as no change reaches the target or none is known. BUDGET: max_steps ran out. STALLED: the image
            stopped changing. NOT_FINITE: the loss or its gradient became NaN or infinite. UNRESOLVED: the target was
            named during the search, but not when the image was evaluated once more, with other rounding errors.
        survives_rounding: (b,) success whose target the classifier names, by any lead, also after rounding to 8 bits
            per channel, as a PNG file does.
        images_8bit: (b, h, w, channels) the image to write to a file, on the 256 levels: `images` rounded to the
            nearest or, where that loses the target, by what config.survive_steps allow: first by a lower threshold
            than a half, then by whole levels where the gradient is steepest, see `spectra_jax.inversion.rounding`.
        success_8bit: (b,) the same for images_8bit.
        forward_passes: (b,) images put through the encoder for this sample, all stages together; a product with the
            Jacobian counts as one.
        backward_passes: (b,) of these, how many were followed by a backward pass.
        requested: (b, n) delta, the change of the attributes that was asked for.
        realised: (b, n) phi(x') - phi(x).
    """

    images: Float[Array, "b h w k"]
    attributes: Float[Array, "b n"]
    success: Bool[Array, " b"]
    num_steps: Int[Array, " b"]
    loss: Float[Array, " b"]
    reason: Int[Array, " b"]
    survives_rounding: Bool[Array, " b"]
    images_8bit: Float[Array, "b h w k"]
    success_8bit: Bool[Array, " b"]
    forward_passes: Int[Array, " b"]
    backward_passes: Int[Array, " b"]
    requested: Float[Array, "b n"]
    realised: Float[Array, "b n"]
