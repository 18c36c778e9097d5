"""The public call: checks what is given, searches, and completes the answer."""

import dataclasses
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
from spectra_jax.inversion.search import Found, InversionProgress, passes, search
from spectra_jax.inversion.step import Sample
from spectra_jax.inversion.types import InversionReason, InversionResult
from spectra_jax.similarity import WINDOW
from spectra_jax.switches import public
from spectra_jax.types import Head

_LANES, _LANES_ON_CPU = 256, 16


@public(rows="images")
def invert(
    encode_fn: EncodeFn,
    head: Head,
    images: Float[Array, "b h w k"],
    target_attributes: Float[Array, "b n"],
    targets: Int[Array, "b"],
    *,
    config: InversionConfig | None = None,
    max_steps: Int[Array, "b"] | None = None,
    region: Bool[Array, "b h w"] | None = None,
    mutable: Bool[Array, "n"] | None = None,
    progress: Callable[[InversionProgress], None] | None = None,
) -> InversionResult:
    """Moves images until the encoder gives the wanted attributes and the classifier the target (Section 2.6).

    The paper's loop descends MSE(phi(x'), e + delta) + lambda (1 - SSIM(x', x)) from x' = x, clipped to [0, 1];
    `config.method` has better ones. Samples are searched `config.batch_size` at a time: one that is done does not
    change any more and makes room for the next, so neither the order nor the batch size decides what is found.
    Under jit or shard_map the search is one lax.while_loop, while the first and the last evaluation are written out for
    every batch_size samples: hand over few batches at once there. The result cannot be differentiated in reverse. For
    several devices, shard_map this function over the rows: each device then finishes on its own. All images and answers
    stay in the memory of the device, up to six times the images.

    Everything is computed in the type of the images, half precision in float32: the encoder is shown the images in the
    type given, and its answers, the wanted attributes and the head are taken in the type of the search.

    Args:
        encode_fn: images -> attributes (b, n). Pass functools.partial(model.encode, params) so that a second call
            with other parameters reuses the compiled loop; booleans, whole numbers and strings may be bound by keyword.
        head: classifier on the attributes.
        images: (b, h, w, channels) in [0, 1], where to start from.
        target_attributes: (b, n) e + delta; rows that are not finite are reported as TARGET_INFEASIBLE.
        targets: (b,) class indices.
        config: search options.
        max_steps: (b,) a budget of updates for each sample, in place of config.max_steps.
        region: (b, h, w) pixels that may change; all by default.
        mutable: (n,) attributes that may move. The others are wanted as they are at the start, whatever
            target_attributes says of them. Not for method="nearest", which looks at no single attribute.
        progress: called after every step of the samples that are being searched; what it raises ends the search. Not
            under jit or another transformation.

    Returns:
        InversionResult.

    Raises:
        ValueError: shapes do not match (the encoder's included), images not in [0, 1] or smaller than SSIM's window,
            target out of range, mutable with method="nearest", progress under a transformation.
    """
    config = InversionConfig() if config is None else config
    check_images(images)
    check_attributes(head, target_attributes, ndim=2)
    check_finite_head(head)
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
    check_mutable(head, mutable)
    if mutable is not None and config.method == "nearest":
        raise ValueError('mutable does not apply to method="nearest", which looks at no single attribute')
    if max_steps is not None and jnp.shape(max_steps) != (batch,):
        raise ValueError(f"max_steps has shape {jnp.shape(max_steps)}; expected {(batch,)}, one budget an image")
    if max_steps is not None and not jnp.issubdtype(jnp.result_type(max_steps), jnp.integer):
        raise ValueError(f"max_steps is of type {jnp.result_type(max_steps)}; expected whole numbers of updates")
    if max_steps is not None and is_concrete(max_steps) and np.min(np.asarray(max_steps)) < 0:
        raise ValueError(f"max_steps contains {np.min(np.asarray(max_steps))}; expected 0 or more updates")
    if region is not None and jnp.result_type(region) != jnp.bool_:
        raise ValueError(f"region is of type {jnp.result_type(region)}; expected True where a pixel may change")
    if region is not None and jnp.shape(region) != images.shape[:3]:
        raise ValueError(f"region has shape {jnp.shape(region)}; expected {images.shape[:3]}, one flag a pixel")

    images = jnp.asarray(images)
    given_type, images = images.dtype, at_least_float32(images)
    bare = as_partial(encode_fn)
    encode = in_types(bare, given_type, images.dtype)
    head, wanted = jax.tree.map(lambda leaf: jnp.asarray(leaf, images.dtype), (head, target_attributes))
    on_cpu = jax.default_backend() == "cpu"
    num_lanes = min(batch, config.batch_size or (_LANES_ON_CPU if on_cpu else _LANES))
    in_chunks = functools.partial(_in_chunks, num_lanes)

    before = in_chunks(functools.partial(_encode, encode), images)
    given = (before, images, head, wanted, targets, max_steps, region, mutable)  # `before` knows encode_fn's closure
    concrete = all(is_concrete(leaf) for leaf in jax.tree.leaves(given))
    if progress is not None and not concrete:
        raise ValueError("progress cannot be told under jit or another transformation; leave it out, or call invert "
                         "outside")  # fmt: skip
    stepwise = concrete and (on_cpu or progress is not None)
    if before.shape != wanted.shape:
        raise ValueError(f"encode_fn gives shape {before.shape}; expected {wanted.shape}, the head's width")
    queue = Sample(
        images=images,
        aims=wanted if mutable is None else jnp.where(mutable, wanted, before),
        targets=jnp.asarray(targets, jnp.int32),
        budgets=jnp.asarray(jnp.full(batch, config.max_steps) if max_steps is None else max_steps, jnp.int32),
        region=None if region is None else jnp.asarray(region, images.dtype)[..., None],
    )
    # What the queue and the lanes say already must not cost a compilation of its own.
    config = dataclasses.replace(config, max_steps=1, batch_size=None)
    explore = functools.partial(search, config=config, stepwise=stepwise, progress=progress)
    if config.encoder_dtype == "same":
        found = explore(encode, head, queue, mutable, num_lanes)
    else:
        coarse = explore(in_bfloat16(bare), head, queue, mutable, num_lanes)
        attributes = in_chunks(functools.partial(_encode, encode), coarse.images)
        confirmed = (coarse.reason == InversionReason.SUCCESS) & lead_of(head, attributes, queue.targets).by(
            config.margin
        )
        rest = queue._replace(aims=jnp.where(confirmed[:, None], jnp.nan, queue.aims))  # NaN: nothing to search for
        found = _merged(confirmed, coarse, explore(encode, head, rest, mutable, num_lanes))
    success = found.reason == InversionReason.SUCCESS
    requested = queue.aims - before
    end: Finished = in_chunks(
        functools.partial(finish, encode, head, config=config), queue, before, requested, found.images, success
    )
    if config.survive_steps:
        rounding = (queue, end.images, end.rounded, end.holds & ~end.survives_rounding)
        write = functools.partial(write_stepwise if stepwise else write_on_device, encode, head,
                                  tries=config.survive_steps)  # fmt: skip
        written = write(*rounding, num_lanes=num_lanes) if stepwise else in_chunks(write, *rounding)
    else:
        nothing = jnp.zeros(batch, jnp.int32)
        written = Written(end.rounded, nothing > 0, nothing)
    lost = success & ~end.holds
    forward, backward = passes(config)
    feasible = found.reason != InversionReason.TARGET_INFEASIBLE
    return InversionResult(
        images=end.images,
        attributes=end.attributes,
        success=end.holds,
        num_steps=found.num_steps,
        loss=jnp.where(feasible, end.loss, jnp.nan),
        reason=jnp.where(lost, jnp.asarray(InversionReason.NOT_CONFIRMED, jnp.int32), found.reason),
        survives_rounding=end.survives_rounding,
        images_8bit=written.images,
        success_8bit=end.survives_rounding | written.success,
        forward_passes=(
            found.evaluations * forward + 1 + int(config.encoder_dtype != "same") + end.forward_passes + written.tries
        ),
        backward_passes=found.evaluations * backward + written.tries,
        distances=end.distances,
        ssim=end.ssim,
        psnr=end.psnr,
        requested=requested,
        realised=end.realised,
        selectivity=end.selectivity,
    )


@jax.jit
def _encode(encode: jax.tree_util.Partial, images: Float[Array, "b h w k"]) -> Float[Array, "b n"]:
    return encode(images)


def _merged(first_counts: Bool[Array, "b"], first: Found, second: Found) -> Found:
    """The first search's answer where it counts, else the second's; the cost of both."""

    def choose(one, other):
        return jnp.where(per_sample(first_counts, one), one, other)

    merged = jax.tree.map(choose, first, second)
    return merged._replace(evaluations=first.evaluations + second.evaluations)


def _in_chunks(size: int, function: Callable[..., PyTree], *columns: PyTree) -> PyTree:
    """The function applied to at most so many rows at a time, which bounds its memory; the last chunk is filled up."""
    count = len(jax.tree.leaves(columns)[0])
    if count <= size:
        return function(*columns)
    size = -(-count // -(-count // size))  # as even as possible: little is filled up
    parts = []
    for start in range(0, count, size):
        rows = jnp.arange(start, start + size) % count
        part = function(*jax.tree.map(lambda column, rows=rows: column[rows], columns))
        parts.append(jax.tree.map(lambda column, keep=count - start: column[:keep], part))
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)
