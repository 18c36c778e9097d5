"""The public call: checks its inputs, searches, and completes the answer."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from spectra_jax.checks import (
    at_least_float32,
    check_attributes,
    check_finite_head,
    check_images,
    check_mutable,
    check_targets,
    is_concrete,
)
from spectra_jax.inversion.config import InversionConfig
from spectra_jax.inversion.encoder import EncodeFn, as_partial, in_bfloat16, in_types, lead_of, per_sample
from spectra_jax.inversion.finish import Finished, finish
from spectra_jax.inversion.rounding import Written, write_on_device, write_stepwise
from spectra_jax.inversion.search import Found, InversionProgress, search
from spectra_jax.inversion.step import Sample
from spectra_jax.inversion.types import InversionResult
from spectra_jax.similarity import WINDOW
from spectra_jax.switches import public
from spectra_jax.types import Head, Status

_LANES, _LANES_ON_CPU = 256, 16


@public(rows="images")
def invert(
    encode_fn: EncodeFn,
    head: Head,
    images: Float[Array, "b h w k"],
    target_attributes: Float[Array, "b n"],
    targets: Int[Array, " b"],
    *,
    config: InversionConfig | None = None,
    targeted: bool = True,
    max_steps: Int[Array, " b"] | None = None,
    region: Bool[Array, "b h w"] | None = None,
    mutable: Bool[Array, " n"] | None = None,
    progress: Callable[[InversionProgress], None] | None = None,
) -> InversionResult:
    """Moves images until the encoder gives the wanted attributes and the classifier the target (Section 2.6).

    The paper's loop descends MSE(phi(x'), e + delta) + lambda (1 - SSIM(x', x)) from x' = x, clipped to [0, 1];
    `config.method` offers better ones. `config.batch_size` samples are searched at a time: a finished one no longer
    changes and makes room for the next, so neither the order nor the batch size affects what is found. Under jit or
    shard_map the search is one lax.while_loop, while the first and the last evaluation are unrolled over the batches:
    pass only a few of them there. The result has no reverse-mode derivative. For several devices, shard_map this
    function over the rows: each device then finishes on its own. All images and answers stay in device memory, up to
    six times the size of the images.

    Everything is computed in the type of the images, half precision in float32: the encoder gets the images in their
    own type; its output, the wanted attributes and the head are cast to the type of the search.

    Args:
        encode_fn: images -> attributes (b, n). Pass functools.partial(model.encode, params) so that a second call
            with other parameters reuses the compiled loop; booleans, whole numbers and strings may be bound by keyword.
        head: classifier on the attributes.
        images: (b, h, w, channels) in [0, 1], where the search starts.
        target_attributes: (b, n) e + delta; rows that are not finite are reported as INFEASIBLE.
        targets: (b,) class indices.
        config: search options.
        targeted: False searches for any class other than those in `targets` (an untargeted attack). Only for the method
            "nearest", which does not use the attributes: pass any finite target_attributes.
        max_steps: (b,) a budget of updates for each sample, in place of config.max_steps.
        region: (b, h, w) pixels that may change; all by default.
        mutable: (n,) attributes that may move. The others should stay as they are at the start, whatever their
            target_attributes. Not for the method "nearest", which does not consider single attributes.
        progress: called after every step with the samples being searched; an exception that it raises ends the search.
            Not under jit or another transformation.

    Returns:
        InversionResult.

    Raises:
        ValueError: shapes do not match (the encoder's included), images not in [0, 1] or smaller than SSIM's window,
            target out of range, mutable with the method "nearest" or targeted=False with another, progress under a
            transformation.
    """
    config = InversionConfig() if config is None else config
    _check(head, images, target_attributes, targets, config, max_steps, region, mutable)
    if not targeted and config.method_name != "nearest":
        raise ValueError(
            f'targeted is False, but the method "{config.method_name}" aims at attributes; expected "nearest", which '
            "can leave a class"
        )
    batch, images = len(images), jnp.asarray(images)
    given_type, images = images.dtype, at_least_float32(images)
    bare, method = as_partial(encode_fn), config.build_method()
    encode = in_types(bare, given_type, images.dtype)
    head, wanted = jax.tree.map(lambda leaf: jnp.asarray(leaf, images.dtype), (head, target_attributes))
    on_cpu = jax.default_backend() == "cpu"
    num_lanes = min(batch, config.batch_size or (_LANES_ON_CPU if on_cpu else _LANES))
    in_chunks = functools.partial(_in_chunks, num_lanes)

    before = in_chunks(functools.partial(_encode, encode), images)
    given = (
        before,
        images,
        head,
        wanted,
        targets,
        max_steps,
        region,
        mutable,
        method,
    )  # `before` knows encode_fn's closure
    concrete = all(is_concrete(leaf) for leaf in jax.tree.leaves(given))
    if progress is not None and not concrete:
        raise ValueError("progress is given under jit or another transformation; omit it, or call invert outside")
    stepwise = concrete and (on_cpu or progress is not None)
    if before.shape != wanted.shape:
        raise ValueError(f"encode_fn returns shape {before.shape}; expected {wanted.shape}, the width of the head")
    queue = Sample(
        images=images,
        aims=wanted if mutable is None else jnp.where(mutable, wanted, before),
        targets=jnp.asarray(targets, jnp.int32) if targeted else ~jnp.asarray(targets, jnp.int32),
        budgets=jnp.asarray(jnp.full(batch, config.max_steps) if max_steps is None else max_steps, jnp.int32),
        region=None if region is None else jnp.asarray(region, images.dtype)[..., None],
    )
    # What a search does not ask for must not cost it a compilation of its own.
    margin, ssim_weight = config.margin, config.ssim_weight
    compiled = InversionConfig(ssim_weight=ssim_weight, margin=margin, reaim_every=config.reaim_every,
                               reaim_margin=config.reaim_margin)  # fmt: skip
    explore = functools.partial(
        search, head=head, method=method, mutable=mutable, num_lanes=num_lanes, config=compiled, stepwise=stepwise,
        progress=progress,
    )  # fmt: skip
    if config.encoder_dtype == "same":
        found = explore(encode, queue=queue)
    else:
        coarse = explore(in_bfloat16(bare), queue=queue)
        attributes = in_chunks(functools.partial(_encode, encode), coarse.images)
        leads = lead_of(head, attributes, queue.targets).by(margin)
        confirmed = (coarse.reason == Status.SOLVED) & leads
        rest = queue._replace(aims=jnp.where(confirmed[:, None], jnp.nan, queue.aims))  # NaN: nothing to search for
        found = _merged(confirmed, coarse, explore(encode, queue=rest))
    requested = queue.aims - before
    end: Finished = in_chunks(
        functools.partial(
            finish, encode, head, margin=margin, ssim_weight=ssim_weight, shrink_steps=config.shrink_steps
        ),
        *(queue, before, requested, found.images, found.reason == Status.SOLVED),
    )
    return _result(config, found, requested, end, _written(encode, head, queue, end, config, num_lanes, stepwise))


def _check(head, images, target_attributes, targets, config: InversionConfig, max_steps, region, mutable) -> None:
    """Refuses what `invert` cannot work with."""
    check_images(images)
    check_attributes(head, target_attributes, ndim=2)
    check_finite_head(head)
    batch, size = images.shape[0], images.shape[1:3]
    if target_attributes.shape[0] != batch or jnp.shape(targets) != (batch,):
        raise ValueError(
            f"target_attributes is {target_attributes.shape} and targets {jnp.shape(targets)}; expected one row and "
            f"one target for each of {batch} images"
        )
    if min(size) < WINDOW and config.ssim_weight > 0:
        raise ValueError(f"images is {size} pixels; expected at least {WINDOW}x{WINDOW} for SSIM; set ssim_weight=0")
    if batch == 0:
        raise ValueError("images is empty; expected at least one image")
    check_targets(head, targets)
    check_mutable(head, mutable)
    if mutable is not None and config.method_name == "nearest":
        raise ValueError('mutable does not apply to the method "nearest", which does not consider single attributes')
    if max_steps is not None:
        if jnp.shape(max_steps) != (batch,):
            raise ValueError(f"max_steps is {jnp.shape(max_steps)}; expected {(batch,)}, one budget per image")
        if not jnp.issubdtype(jnp.result_type(max_steps), jnp.integer):
            raise ValueError(f"max_steps is of type {jnp.result_type(max_steps)}; expected whole numbers of updates")
        if is_concrete(max_steps) and np.min(np.asarray(max_steps)) < 0:
            raise ValueError(f"max_steps contains {np.min(np.asarray(max_steps))}; expected 0 or more updates")
    if region is not None:
        if jnp.result_type(region) != jnp.bool_:
            raise ValueError(f"region is of type {jnp.result_type(region)}; expected True where a pixel may change")
        if jnp.shape(region) != images.shape[:3]:
            raise ValueError(f"region is {jnp.shape(region)}; expected {images.shape[:3]}, one flag per pixel")


def _written(
    encode, head: Head, queue: Sample, end: Finished, config: InversionConfig, num_lanes: int, stepwise: bool
) -> Written:
    """The images for files, on 256 levels."""
    if not config.survive_steps:
        nothing = jnp.zeros(len(end.images), jnp.int32)
        return Written(end.rounded, nothing > 0, nothing)
    rounding = (queue, end.images, end.rounded, end.success & ~end.survives_rounding)
    if stepwise:
        return write_stepwise(encode, head, *rounding, tries=config.survive_steps, num_lanes=num_lanes)
    write = functools.partial(write_on_device, encode, head, tries=config.survive_steps)
    return _in_chunks(num_lanes, write, *rounding)


def _result(
    config: InversionConfig, found: Found, requested: Float[Array, "b n"], end: Finished, written: Written
) -> InversionResult:
    """The answer of all stages together."""
    lost = (found.reason == Status.SOLVED) & ~end.success
    forward, backward = config.build_method().passes
    again = int(config.encoder_dtype != "same")
    return InversionResult(
        images=end.images,
        attributes=end.attributes,
        success=end.success,
        num_steps=found.num_steps,
        loss=jnp.where(found.reason != Status.INFEASIBLE, end.loss, jnp.nan),
        reason=jnp.where(lost, jnp.asarray(Status.UNRESOLVED, jnp.int32), found.reason),
        survives_rounding=end.survives_rounding,
        images_8bit=written.images,
        success_8bit=end.survives_rounding | written.success,
        forward_passes=found.evaluations * forward + 1 + again + end.forward_passes + written.tries,
        backward_passes=found.evaluations * backward + written.tries,
        requested=requested,
        realised=end.realised,
    )


@jax.jit
def _encode(encode: jax.tree_util.Partial, images: Float[Array, "b h w k"]) -> Float[Array, "b n"]:
    return encode(images)


def _merged(first_counts: Bool[Array, " b"], first: Found, second: Found) -> Found:
    """The first search's answer where it counts, else the second's; the cost of both."""

    def choose(one, other):
        return jnp.where(per_sample(first_counts, one), one, other)

    merged = jax.tree.map(choose, first, second)
    return merged._replace(evaluations=first.evaluations + second.evaluations)


def _in_chunks(size: int, function: Callable[..., PyTree], *columns: PyTree) -> PyTree:
    """Applies the function to at most `size` rows at a time, which bounds its memory; the last chunk is padded."""
    count = len(jax.tree.leaves(columns)[0])
    if count <= size:
        return function(*columns)
    size = -(-count // -(-count // size))  # as even as possible: little padding
    parts = []
    for start in range(0, count, size):
        rows = jnp.arange(start, start + size) % count
        part = function(*jax.tree.map(lambda column, rows=rows: column[rows], columns))
        parts.append(jax.tree.map(lambda column, keep=count - start: column[:keep], part))
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)
