"""Searches for many images with a fixed number of lanes: a lane whose sample is done takes the next from the queue.

A sample needs anything from no step to its whole budget. In a plain batch all would cost what the slowest costs; here
the cost follows the work that is left, and what is found for a sample does not depend on its neighbours.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from spectra_jax.inversion.config import InversionConfig, Method
from spectra_jax.inversion.encoder import EncodeFn, as_partial, per_sample
from spectra_jax.inversion.step import Sample
from spectra_jax.perturbations import lanes as queues
from spectra_jax.perturbations import projection_perturbation
from spectra_jax.perturbations.batching import varying_like
from spectra_jax.types import Head, Status


class Found(NamedTuple):
    """How the search of each sample ended.

    Attributes:
        images: (b, h, w, channels).
        num_steps: (b,) updates made.
        evaluations: (b,) how often the method looked at an image.
        reason: (b,) a `Status`.
    """

    images: Float[Array, "b h w k"]
    num_steps: Int[Array, " b"]
    evaluations: Int[Array, " b"]
    reason: Int[Array, " b"]


class Lanes(NamedTuple):
    """What is under way; `place` is the sample's row in the queue, -1 for none."""

    sample: Sample
    place: Int[Array, " l"]
    running: Bool[Array, " l"]
    found: Found
    state: PyTree


class InversionProgress(NamedTuple):
    """The current state of the samples being searched; its arrays are valid only during the call that receives them.

    Attributes:
        rows: (l,) which samples; -1 for none.
        num_steps: (l,) updates made.
        images: (l, h, w, channels) as they are now.
    """

    rows: Int[Array, " l"]
    num_steps: Int[Array, " l"]
    images: Float[Array, "l h w k"]


class Progress(NamedTuple):
    """The lanes, how many samples of the queue have been taken and are to be taken, and the answers so far."""

    lanes: Lanes
    taken: Int[Array, ""]
    total: Int[Array, ""]
    answers: Found


def search(
    encode: jax.tree_util.Partial, head: Head, method: Method, queue: Sample, mutable: Bool[Array, " n"] | None,
    num_lanes: int, *, config: InversionConfig, stepwise: bool,
    progress: Callable[[InversionProgress], None] | None = None,
) -> Found:  # fmt: skip
    """Searches for every sample of the queue; rows of aims that are not finite are infeasible.

    Args:
        encode: images -> attributes.
        head: classifier.
        method: how to search; a pytree, so that arrays it holds are inputs of the compiled steps.
        queue: all samples.
        mutable: attributes that new aims may change.
        num_lanes: samples searched side by side.
        config: the options that all methods share.
        stepwise: call one compiled step after another from here in place of one lax.while_loop: on CPUs convolutions
            within a loop run up to three times slower. Not possible under a transformation.
        progress: called after every step, where it is stepwise; what it raises ends the search.

    Returns:
        Found, in the order of the queue.
    """
    order, back = _feasible_first(queue.aims)
    queue = jax.tree.map(lambda column: column[order], queue)
    run = functools.partial(_search_by_steps, told=progress) if stepwise else _search_on_device
    found = run(encode, head, method, queue, mutable, num_lanes=num_lanes, config=config)
    return jax.tree.map(lambda column: column[back], found)


@jax.jit
def _feasible_first(aims: Float[Array, "b n"]) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
    """The order that puts infeasible rows last, where they take up no lane, and its inverse."""
    order = jnp.argsort(~jnp.all(jnp.isfinite(aims), axis=-1), stable=True)
    return order, jnp.argsort(order)


def _search_by_steps(
    encode, head, method, queue, mutable, *, num_lanes: int, config: InversionConfig,
    told: Callable[[InversionProgress], None] | None,
) -> Found:  # fmt: skip
    progress = _open(method, queue, num_lanes=num_lanes)
    total = int(progress.total)
    while True:
        progress = _exchange(method, queue, progress)
        running = jax.device_get(progress.lanes.running)
        if not running.any():
            return progress.answers
        waiting = int(progress.taken) < total
        lanes = progress.lanes
        while running.any():
            lanes = _step(encode, head, method, mutable, lanes, config=config)
            before, running = running, jax.device_get(lanes.running)
            if told is not None:
                told(InversionProgress(lanes.place, lanes.found.num_steps, lanes.found.images))
            if waiting and (before & ~running).any():
                break
        progress = progress._replace(lanes=lanes)


@functools.partial(jax.jit, static_argnames=("num_lanes", "config"))
def _search_on_device(encode, head, method, queue, mutable, *, num_lanes: int, config: InversionConfig) -> Found:
    # Under shard_map everything in the loop differs from device to device, the classifier included.
    head, mutable = varying_like(queue, (head, mutable))

    def work(progress: Progress) -> Progress:
        progress = _exchange(method, queue, progress)
        started = progress.lanes.running

        def go_on(lanes):
            ended = jnp.any(started & ~lanes.running) & (progress.taken < progress.total)
            return jnp.any(lanes.running) & ~ended

        step = functools.partial(_step, encode, head, method, mutable, config=config)
        return progress._replace(lanes=jax.lax.while_loop(go_on, step, progress.lanes))

    def unfinished(progress: Progress):
        return (progress.taken < progress.total) | jnp.any(progress.lanes.running)

    start = varying_like(queue, _open(method, queue, num_lanes=num_lanes))
    progress = jax.lax.while_loop(unfinished, work, start)
    return _exchange(method, queue, progress).answers


@functools.partial(jax.jit, static_argnames="num_lanes")
def _open(method: Method, queue: Sample, *, num_lanes: int) -> Progress:
    """Empty lanes."""
    sample = jax.tree.map(lambda column: jnp.zeros((num_lanes, *column.shape[1:]), column.dtype), queue)
    lanes = Lanes(
        sample=sample,
        place=jnp.full(num_lanes, -1, jnp.int32),
        running=jnp.zeros(num_lanes, bool),
        found=_untouched(sample.images),
        state=method.init(sample.images),
    )
    total = jnp.sum(jnp.all(jnp.isfinite(queue.aims), axis=-1), dtype=jnp.int32)
    return Progress(lanes, jnp.asarray(0, jnp.int32), total, _untouched(queue.images))


def _untouched(images: Float[Array, "b h w k"]) -> Found:
    """What there is to say of images that were not searched for."""
    num_steps, evaluations, reason = (jnp.full(len(images), value, jnp.int32) for value in (0, 0, Status.INFEASIBLE))
    return Found(images, num_steps, evaluations, reason)


@functools.partial(jax.jit, donate_argnums=2)
def _exchange(method: Method, queue: Sample, progress: Progress) -> Progress:
    """Stores the answers of the lanes that have ended and hands them the next samples."""
    lanes, taken, total, answers = progress
    free = ~lanes.running
    where = jnp.where(free & (lanes.place >= 0), lanes.place, len(queue.targets))  # out of bounds is dropped
    answers = jax.tree.map(lambda old, new: old.at[where].set(new, mode="drop"), answers, lanes.found)
    chosen, place, taken = queues.refill(free, taken, total)
    row = jnp.where(chosen, place, 0)

    def fill(old, new):
        return jnp.where(per_sample(chosen, old), new, old)

    sample = jax.tree.map(lambda old, column: fill(old, column[row]), lanes.sample, queue)
    lanes = Lanes(
        sample=sample,
        place=jnp.where(chosen, place, jnp.where(free, -1, lanes.place)),
        running=lanes.running | chosen,
        found=jax.tree.map(fill, lanes.found, _untouched(sample.images)),
        state=jax.tree.map(fill, lanes.state, method.init(sample.images)),
    )
    return Progress(lanes, taken, total, answers)


@functools.partial(jax.jit, static_argnames="config")
def _step(encode, head, method, mutable, lanes: Lanes, *, config: InversionConfig) -> Lanes:
    """One evaluation and one update in every running lane."""
    found, running = lanes.found, lanes.running
    sample = lanes.sample

    def aim(attributes):
        return _aim_anew(head, mutable, lanes, attributes, config) if config.reaim_every else sample.aims

    move = method.step(encode, head, sample, aim, found.images, lanes.state, config=config)
    images = move.images if sample.region is None else jnp.where(sample.region > 0, move.images, sample.images)
    still = jnp.all(images == found.images, axis=tuple(range(1, images.ndim)))
    exhausted = found.num_steps >= sample.budgets
    stop = move.finished | ~move.finite | exhausted | still
    codes = [jnp.asarray(code, jnp.int32) for code in (Status.SOLVED, Status.NOT_FINITE, Status.BUDGET, Status.STALLED)]
    reason = jnp.select([move.success, ~move.finite, exhausted], codes[:3], codes[3])
    go_on, end = running & ~stop, running & stop
    return Lanes(
        sample=sample._replace(aims=move.aims),
        place=lanes.place,
        running=go_on,
        found=Found(
            images=jnp.where(
                per_sample(go_on, images), images, jnp.where(per_sample(end, images), move.answer, found.images)
            ),
            num_steps=found.num_steps + go_on.astype(jnp.int32),
            evaluations=found.evaluations + running.astype(jnp.int32),
            reason=jnp.where(end, reason, found.reason),
        ),
        state=move.state,
    )


def search_step(
    encode_fn: EncodeFn, head: Head, images: Float[Array, "b h w k"], target_attributes: Float[Array, "b n"],
    targets: Int[Array, " b"], *, config: InversionConfig,
) -> Callable[[], Lanes]:  # fmt: skip
    """The first step of a search on a full batch, ready to be timed: what a benchmark of its cost needs."""
    encode = as_partial(encode_fn)
    budgets = jnp.full(len(images), config.max_steps, jnp.int32)
    queue = Sample(images, target_attributes, jnp.asarray(targets, jnp.int32), budgets, None)
    method = config.build_method()
    progress = _exchange(method, queue, _open(method, queue, num_lanes=len(images)))
    return functools.partial(_step, encode, head, method, None, progress.lanes, config=config)


def _aim_anew(
    head: Head,
    mutable: Bool[Array, " n"] | None,
    lanes: Lanes,
    attributes: Float[Array, "l n"],
    config: InversionConfig,
) -> Float[Array, "l n"]:
    """The wanted attributes, replaced where that is due by the nearest ones of the target's region."""
    steps, aims = lanes.found.num_steps, lanes.sample.aims
    due = lanes.running & (steps > 0) & (steps % config.reaim_every == 0)
    here = attributes if mutable is None else jnp.where(mutable, attributes, aims)

    def project(_):
        margin = jnp.asarray(config.reaim_margin, aims.dtype)
        delta = jax.vmap(lambda e, j: projection_perturbation(head, e, j, margin=margin, mutable=mutable).delta)
        wanted = here + delta(here, lanes.sample.targets)
        usable = due & jnp.all(jnp.isfinite(wanted), axis=-1)
        return jnp.where(usable[:, None], wanted, aims)

    return jax.lax.cond(jnp.any(due), project, lambda _: aims, None)
