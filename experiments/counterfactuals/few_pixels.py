"""How few pixels of a found change keep the flip (Section 5.2.4)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectra_jax import Head, head_logits
from spectra_jax.perturbations import formulas

BATCH = 16
MOST_ROUNDS = 12
MOST_EVALUATIONS = 4000  # of images in the last step


class Pruned(NamedTuple):
    """A set of changed pixels that keeps the flip.

    Attributes:
        image: (h, w, 3) the original with only these pixels changed.
        mask: (h, w) the pixels.
        minimal: whether no single pixel of them can be left out; the search may stop before that is known.
    """

    image: np.ndarray
    mask: np.ndarray
    minimal: bool


def leads(encode: Callable[[Any], Any], head: Head, images: Any, targets: Any) -> Any:
    """(b,) the lead that each target has in its image."""
    return formulas.lead(head_logits(head, encode(images)), targets)


def importance(encode: Callable[[Any], Any], head: Head, images: Any, change: Any, targets: Any) -> Any:
    """(b, h, w) what the change of each pixel adds to the target's lead, to first order: gradient times change."""
    slope = jax.grad(lambda pixels: jnp.sum(leads(encode, head, pixels, targets)))(images)
    return jnp.sum(slope * change, axis=-1)


def fewest_pixels(
    encode: Callable[[Any], Any], head: Head, original: np.ndarray, changed: np.ndarray, target: int
) -> Pruned:
    """Leaves out as many changed pixels as it can while the classifier still names the target.

    Three steps: the largest changes alone, their number found by bisection; the same with the pixels that matter most
    to first order (gradient times change), again and again while that helps; at last pixel by pixel, the least
    important first. The result is a small set, not provably the smallest.

    Args:
        encode: images -> attributes.
        head: the classifier.
        original, changed: (h, w, 3) in [0, 1]; the classifier names the target for `changed`.
        target: its class.

    Raises:
        ValueError: the classifier does not name the target for `changed`.
    """
    first, last = jnp.asarray(original), jnp.asarray(changed)
    evaluated = 0

    @jax.jit
    def ask(masks: Any) -> Any:
        targets = jnp.full(len(masks), target, jnp.int32)
        return leads(encode, head, jnp.where(masks[..., None], last[None], first[None]), targets) > 0

    @jax.jit
    def slope(weights: Any) -> Any:
        change, targets = (last - first)[None], jnp.asarray([target], jnp.int32)
        return importance(encode, head, first[None] + weights[None, ..., None] * change, change, targets)[0]

    def flips(masks: np.ndarray) -> np.ndarray:
        nonlocal evaluated
        evaluated += len(masks)
        padded = np.concatenate([masks, np.repeat(masks[-1:], BATCH - len(masks), axis=0)])  # one compilation
        return np.asarray(ask(padded))[: len(masks)]

    def keep(order: np.ndarray, count: int) -> np.ndarray:
        mask = np.zeros(original.shape[:2], bool)
        mask.flat[order[:count]] = True
        return mask

    def ranked(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return pixels[np.argsort(weight.flat[pixels], kind="stable")]

    def weights(mask: np.ndarray) -> np.ndarray:
        return np.asarray(slope(jnp.asarray(mask, first.dtype)))

    def bisect(order: np.ndarray) -> int:
        """Smallest count of the leading pixels that was seen to flip; all of them together do."""
        low, high = 0, len(order)  # `low` does not flip, `high` does
        while high - low > 1:
            counts = np.unique(np.linspace(low, high, BATCH + 2)[1:-1].astype(int))
            counts = counts[(counts > low) & (counts < high)]
            flipped = flips(np.stack([keep(order, k) for k in counts]))
            first_flip = int(np.argmax(flipped)) if flipped.any() else len(counts)
            high = int(counts[first_flip]) if flipped.any() else high
            low = int(counts[first_flip - 1]) if first_flip else low
        return high

    size = np.abs(changed - original).max(axis=-1)
    everywhere = np.flatnonzero(size > 0)
    if not len(everywhere) or not flips(keep(everywhere, len(everywhere))[None])[0]:
        raise ValueError(
            "changed is not classified as the target; expected an image that is, and differs from original"
        )
    order = ranked(everywhere, -size)
    mask = keep(order, bisect(order))
    for _ in range(MOST_ROUNDS):
        order = ranked(everywhere, -weights(mask))  # pixels that were dropped may come back
        if not flips(keep(order, len(order))[None])[0]:
            break
        count = bisect(order)
        if count >= mask.sum():
            break
        mask = keep(order, count)

    minimal = False
    budget = evaluated + MOST_EVALUATIONS
    while not minimal and evaluated < budget:
        candidates = ranked(np.flatnonzero(mask), weights(mask))
        before = mask.sum()
        for start in range(0, len(candidates), BATCH):
            if evaluated >= budget:
                break
            block = candidates[start : start + BATCH]
            without = np.repeat(mask[None], len(block), axis=0)
            without.reshape(len(block), -1)[np.arange(len(block)), block] = False
            free = block[flips(without)]
            if not len(free):
                continue
            # The first, the first two, ... of those are left out at once.
            dropped = np.repeat(mask[None], len(free), axis=0)
            for k in range(len(free)):
                dropped[k].flat[free[: k + 1]] = False
            mask = dropped[int(np.flatnonzero(flips(dropped))[-1])]
        else:
            minimal = mask.sum() == before
    return Pruned(np.where(mask[..., None], changed, original), mask, minimal)
