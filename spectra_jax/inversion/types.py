"""The result of an inversion."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class InversionResult(NamedTuple):
    """The images found and how each search ended. Failures are included: they belong in every denominator.

    To measure how far the images moved, use `image_distances`, `ssim`, `psnr` and `attribute_selectivity`.

    Attributes:
        images: (b, h, w, channels) in [0, 1]; the last image tried where the search failed.
        attributes: (b, n) the encoder's output for `images`.
        success: (b,) whether the classifier predicts the target by `config.margin`.
        num_steps: (b,) updates made.
        loss: (b,) MSE + lambda (1 - SSIM) at `images`; NaN where the target is infeasible.
        reason: (b,) a `Status`. SOLVED: the classifier predicts the target. INFEASIBLE: the wanted attributes are not
            finite, because no change reaches the target or none is known. BUDGET: max_steps ran out. STALLED: the image
            stopped changing. NOT_FINITE: the loss or its gradient became NaN or infinite. UNRESOLVED: the target was
            predicted during the search, but not in a last evaluation of the image, with other rounding errors.
        survives_rounding: (b,) successes whose target is still predicted, by any lead, after rounding to 8 bits per
            channel, as in a PNG file.
        images_8bit: (b, h, w, channels) the image to write to a file, on the 256 levels: `images` rounded to the
            nearest or, where that loses the target, as far as config.survive_steps allow: first with a threshold below
            one half, then by whole levels where the gradient is steepest, see `spectra_jax.inversion.rounding`.
        success_8bit: (b,) the same for images_8bit.
        forward_passes: (b,) encoder evaluations for this sample, all stages together; a product with the Jacobian
            counts as one.
        backward_passes: (b,) how many of these were followed by a backward pass.
        requested: (b, n) delta, the requested attribute change.
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
