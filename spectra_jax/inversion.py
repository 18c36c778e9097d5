"""From an attribute vector to an image that has it (Section 2.6)."""

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from spectra_jax.checks import check_attributes, check_choice, check_images, check_targets
from spectra_jax.perturbations.geometry import head_logits
from spectra_jax.similarity import WINDOW, ssim
from spectra_jax.types import Head

EncodeFn = Callable[[Float[Array, "b h w k"]], Float[Array, "b n"]]
METHODS = ("adam", "gradient_descent")


class InversionReason(enum.IntEnum):
    """Why a sample stopped moving."""

    SUCCESS = 0
    BUDGET = 1
    TARGET_INFEASIBLE = 2
    STALLED = 3
    NOT_FINITE = 4

    @property
    def description(self) -> str:
        """In words, for a report."""
        return {
            InversionReason.SUCCESS: "the classifier names the target",
            InversionReason.BUDGET: "the step budget ran out before the classifier named the target",
            InversionReason.TARGET_INFEASIBLE: "no attribute change reaches the target, so there is nothing to invert",
            InversionReason.STALLED: "the image stopped changing before the classifier named the target",
            InversionReason.NOT_FINITE: "the loss or its gradient became NaN or infinite",
        }[self]


@dataclass(frozen=True)
class InversionConfig:
    """How to search for the image.

    Attributes:
        method: "gradient_descent" is the paper's plain descent; "adam" adapts each pixel's step.
        step_size: learning rate eta, in pixel units for "adam".
        ssim_weight: lambda in MSE + lambda (1 - SSIM).
        max_steps: image updates before giving up.
        margin: lead of the target over every other class, in logits, at which a sample stops. 0 is the paper's
            rule; a small margin lets the flip survive rounding to 8 bits.
        shrink_steps: halvings that then shorten the change x' - x of a success as far as the image, rounded to 8
            bits a channel, still has the target lead by the margin; 0, the paper's rule, keeps the first image found.
    """

    method: Literal["adam", "gradient_descent"] = "adam"
    step_size: float = 0.005
    ssim_weight: float = 0.1
    max_steps: int = 200
    margin: float = 0.0
    shrink_steps: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; expected a positive number")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; expected at least 1")
        for name in ("ssim_weight", "margin", "shrink_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number >= 0")


class InversionResult(NamedTuple):
    """The images found and how each search ended. Failures stay in: they belong in every denominator.

    Attributes:
        images: (b, h, w, channels) in [0, 1]; the last image tried where the search failed.
        attributes: (b, n) what the encoder makes of `images`.
        success: (b,) whether the classifier names the target, by `config.margin`.
        num_steps: (b,) updates made.
        loss: (b,) MSE + lambda (1 - SSIM) at `images`.
        reason: (b,) an `InversionReason`.
        survives_rounding: (b,) success that holds after rounding to 8 bits a channel, as a PNG file does.
    """

    images: Float[Array, "b h w k"]
    attributes: Float[Array, "b n"]
    success: Bool[Array, "b"]
    num_steps: Int[Array, "b"]
    loss: Float[Array, "b"]
    reason: Int[Array, "b"]
    survives_rounding: Bool[Array, "b"]


def invert(
    encode_fn: EncodeFn,
    head: Head,
    images: Float[Array, "b h w k"],
    target_attributes: Float[Array, "b n"],
    targets: Int[Array, "b"],
    *,
    config: InversionConfig | None = None,
) -> InversionResult:
    """Moves images until the encoder gives the wanted attributes and the classifier the target (Section 2.6).

    Descends MSE(phi(x'), e + delta) + lambda (1 - SSIM(x', x)) from x' = x, clipped to [0, 1]. A sample that is done
    does not change any more. The loop is a lax.while_loop: the result cannot be differentiated in reverse.

    Args:
        encode_fn: images -> attributes (b, n). Pass functools.partial(model.encode, params) so that a second call
            with other parameters reuses the compiled loop.
        head: classifier on the attributes.
        images: (b, h, w, channels) in [0, 1], where to start from.
        target_attributes: (b, n) e + delta; rows that are not finite are reported as TARGET_INFEASIBLE.
        targets: (b,) class indices.
        config: search options.

    Returns:
        InversionResult.

    Raises:
        ValueError: shapes do not match (the encoder's included), images not in [0, 1] or smaller than SSIM's window,
            target out of range.
    """
    config = InversionConfig() if config is None else config
    check_images(images)
    check_attributes(head, target_attributes, ndim=2)
    batch = images.shape[0]
    if target_attributes.shape[0] != batch or jnp.shape(targets) != (batch,):
        raise ValueError(
            f"{batch} images, target_attributes {target_attributes.shape} and targets {jnp.shape(targets)} disagree; "
            "expected one row of attributes and one target an image"
        )
    if min(images.shape[1:3]) < WINDOW and config.ssim_weight > 0:
        raise ValueError(f"images are {images.shape[1:3]} pixels; SSIM needs {WINDOW}x{WINDOW}, or set ssim_weight=0")
    if batch == 0:
        raise ValueError("images is empty; expected at least one image")
    check_targets(head, targets)
    encode = _as_partial(encode_fn)
    return _invert(encode, head, images, target_attributes, jnp.asarray(targets, jnp.int32), config=config)


def _as_partial(encode_fn: EncodeFn) -> jax.tree_util.Partial:
    """The function as a pytree: its bound arguments become inputs of the compiled loop, not constants in it."""
    if isinstance(encode_fn, functools.partial):
        return jax.tree_util.Partial(encode_fn.func, *encode_fn.args, **encode_fn.keywords)
    return jax.tree_util.Partial(encode_fn)


class _Search(NamedTuple):
    images: Float[Array, "b h w k"]
    attributes: Float[Array, "b n"]
    optimizer: PyTree
    num_steps: Int[Array, "b"]
    loss: Float[Array, "b"]
    reason: Int[Array, "b"]
    running: Bool[Array, "b"]


@functools.partial(jax.jit, static_argnames="config")
def _invert(encode_fn, head, images, target_attributes, targets, *, config: InversionConfig) -> InversionResult:
    descent = optax.sgd if config.method == "gradient_descent" else optax.adam
    optimizer = descent(config.step_size)
    feasible = jnp.all(jnp.isfinite(target_attributes), axis=-1)
    wanted = jnp.where(feasible[:, None], target_attributes, 0)
    axes = tuple(range(1, images.ndim))

    def objective(candidates):
        attributes = encode_fn(candidates)
        loss = jnp.mean(jnp.square(attributes - wanted), axis=-1)
        if config.ssim_weight > 0:
            loss = loss + config.ssim_weight * (1 - ssim(candidates, images))
        # Samples do not interact, so the gradient of the sum is each sample's own.
        return jnp.sum(loss), (loss, attributes)

    def reached(attributes):
        logits = head_logits(head, attributes)
        rival = jnp.arange(logits.shape[-1], dtype=targets.dtype)[None, :] != targets[:, None]
        best_rival = jnp.max(jnp.where(rival, logits, -jnp.inf), axis=-1)
        lead = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - best_rival
        # At margin 0 a tie counts only if argmax would name the target.
        return (lead >= config.margin) & (jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets)

    def each(flag, array):  # one flag or factor a sample, shaped to meet `array`
        return flag.reshape(-1, *[1] * (array.ndim - 1))

    def step(search: _Search) -> _Search:
        (_, (loss, attributes)), gradient = jax.value_and_grad(objective, has_aux=True)(search.images)
        finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient), axis=axes)
        won = reached(attributes)
        # optax mixes its integer step count with floats, an error under strict promotion that is not of our making.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, search.optimizer, search.images)
        moved = jnp.clip(search.images + updates, 0, 1)
        still = jnp.all(moved == search.images, axis=axes)
        reason = jnp.select(
            [won, ~finite, search.num_steps >= config.max_steps, still],
            [jnp.asarray(code, jnp.int32) for code in _STOPPING],
            jnp.asarray(-1, jnp.int32),
        )
        go_on = search.running & (reason < 0)
        return _Search(
            images=jnp.where(each(go_on, moved), moved, search.images),
            attributes=jnp.where(search.running[:, None], attributes, search.attributes),
            optimizer=state,
            num_steps=search.num_steps + go_on.astype(jnp.int32),
            loss=jnp.where(search.running, loss, search.loss),
            reason=jnp.where(search.running, reason, search.reason),
            running=go_on,
        )

    def shrink(end: _Search, success: Bool[Array, "b"]) -> _Search:
        change = end.images - images

        def shortened(share):
            # On the grid of 8 bits, because a change shorter than that would be lost in any image file.
            return jnp.round((images + each(share, change) * change) * 255) / 255

        def halve(_, interval):
            lost, held = interval
            middle = (lost + held) / 2
            holds = reached(encode_fn(shortened(middle)))
            return jnp.where(holds, lost, middle), jnp.where(holds, middle, held)

        ends = (jnp.zeros_like(end.loss), jnp.ones_like(end.loss))
        _, share = jax.lax.fori_loop(0, config.shrink_steps, halve, ends)
        shrunk = shortened(share)
        _, (loss, attributes) = objective(shrunk)
        kept = success & reached(attributes)  # else not even the full change survives rounding: leave it as it is
        return end._replace(
            images=jnp.where(each(kept, shrunk), shrunk, end.images),
            attributes=jnp.where(kept[:, None], attributes, end.attributes),
            loss=jnp.where(kept, loss, end.loss),
        )

    attributes = encode_fn(images)
    if attributes.shape != target_attributes.shape:
        raise ValueError(
            f"encode_fn gives shape {attributes.shape}; expected {target_attributes.shape}, the head's width"
        )
    start = _Search(
        images=images,
        attributes=attributes,
        optimizer=optimizer.init(images),
        num_steps=jnp.zeros(len(images), jnp.int32),
        loss=jnp.full(len(images), jnp.nan, images.dtype),
        reason=jnp.full(len(images), InversionReason.TARGET_INFEASIBLE, jnp.int32),
        running=feasible,
    )
    end = jax.lax.while_loop(lambda search: jnp.any(search.running), step, start)
    success = end.reason == InversionReason.SUCCESS
    if config.shrink_steps:
        end = shrink(end, success)
    rounded = jnp.round(end.images * 255) / 255
    named = jnp.argmax(head_logits(head, encode_fn(rounded)), axis=-1).astype(targets.dtype)
    return InversionResult(
        images=end.images,
        attributes=end.attributes,
        success=success,
        num_steps=end.num_steps,
        loss=end.loss,
        reason=end.reason,
        survives_rounding=success & (named == targets),
    )


_STOPPING = (
    InversionReason.SUCCESS,
    InversionReason.NOT_FINITE,
    InversionReason.BUDGET,
    InversionReason.STALLED,
)
