"""How few pixels keep a flip, for a batch of pictures at once (Section 5.2.4)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.counterfactuals import few_pixels
from spectra_jax import Head

OVERSHOOTS = (8, 4, 2, 1)
ROUNDS = 3


class FewPixels(NamedTuple):
    """Pixels that are enough; (b,) each, -1 where not even the whole change flips.

    Attributes:
        pruned: by importance, as few as were found.
        random: pixels of a random order, the first so many.
        overshoot: factor by which the change was enlarged before.
        masks: (b, h, w) the pixels of `pruned`.
    """

    pruned: Any
    random: Any
    overshoot: Any
    masks: Any


@functools.cache  # the same function for the same model, so that a second run compiles nothing again
def make_pruner(encode: Callable[[Any, Any], Any]) -> Callable[..., FewPixels]:
    """A compiled function (params, head, before (b, h, w, 3), after, targets (b,), key) -> `FewPixels`.

    The change is enlarged by the largest of `OVERSHOOTS` that still flips, because a change as small as possible has
    nothing to spare. Then pixels are kept greedily: those that raise the target's lead most to first order (gradient
    times change) first, their number found by bisection; the order is made again from the gradient at what was kept,
    `ROUNDS` times in all. The result is a small set, not the smallest; `experiments.counterfactuals.few_pixels` goes on
    pixel by pixel for a single picture.
    """

    @jax.jit
    def prune(params: Any, head: Head, before: Any, after: Any, targets: Any, key: Any) -> FewPixels:
        pixels = before.shape[1] * before.shape[2]
        change, encoder = after - before, functools.partial(encode, params)

        def lead(images: Any) -> Any:
            return few_pixels.leads(encoder, head, images, targets)

        def enlarged(factor: Any) -> Any:
            return jnp.clip(before + factor[:, None, None, None] * change, 0, 1)

        factor = jnp.zeros(len(before), before.dtype)
        for candidate in OVERSHOOTS:
            trial = jnp.full_like(factor, candidate)
            factor = jnp.where((factor == 0) & (lead(enlarged(trial)) > 0), trial, factor)
        flips = factor > 0
        goal = enlarged(jnp.where(flips, factor, 1))

        def keep(rank: Any, count: Any) -> Any:
            return jnp.where((rank < count[:, None]).reshape(before.shape[:3])[..., None], goal, before)

        def ranks(weight: Any) -> Any:
            order = jnp.argsort(-weight.reshape(len(before), -1), axis=-1)
            return jnp.argsort(order, axis=-1).astype(jnp.int32)

        def fewest(rank: Any) -> Any:
            def halve(_: Any, ends: Any) -> Any:
                low, high = ends
                middle = (low + high) // 2
                enough = lead(keep(rank, middle)) > 0
                return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

            ends = jnp.zeros(len(before), jnp.int32), jnp.full(len(before), pixels, jnp.int32)
            return jax.lax.fori_loop(0, int(np.ceil(np.log2(pixels))) + 1, halve, ends)[1]

        best_rank = ranks(jnp.sum(jnp.square(goal - before), axis=-1))
        best = fewest(best_rank)
        for _ in range(ROUNDS):
            rank = ranks(few_pixels.importance(encoder, head, keep(best_rank, best), goal - before, targets))
            count = fewest(rank)
            better = count < best
            best_rank, best = jnp.where(better[:, None], rank, best_rank), jnp.where(better, count, best)
        shuffled = fewest(ranks(jax.random.uniform(key, before.shape[:3], before.dtype)))
        masks = (best_rank < best[:, None]).reshape(before.shape[:3])
        absent = jnp.asarray(-1, jnp.int32)
        return FewPixels(
            jnp.where(flips, best, absent), jnp.where(flips, shuffled, absent), factor, masks & flips[:, None, None]
        )

    return prune
