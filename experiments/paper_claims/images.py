"""The pictures that the claims are measured on, each made once and kept: class flips and single-attribute requests."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.counterfactuals.few_pixels import leads
from experiments.counterfactuals.find import Counterfactuals
from experiments.paper_claims.pruning import make_pruner
from experiments.paper_claims.regions import Regions
from experiments.runs.loading import LoadedRun
from experiments.runs.store import Store
from spectra_jax import Head, InversionConfig, causal_split, invert
from spectra_jax.logging import Console
from spectra_jax.models import Params

CHUNK = 16


class Singles(NamedTuple):
    """Pictures in which one attribute was to move by a fixed number of its standard deviations; one row each.

    Rows come in twos: the attribute of the same picture was to rise, then to fall.

    Attributes:
        index: position of the image in the test split.
        attribute: column f.
        sign: +1 or -1.
        requested: change of the attribute that was asked for.
        before, after: (p, n) attributes of the original and of the picture.
        change: (p, h, w, 3) float16, picture minus original.
        success: whether the attribute moved as far as asked.
        num_steps: of the search.
    """

    index: Any
    attribute: Any
    sign: Any
    requested: Any
    before: Any
    after: Any
    change: Any
    success: Any
    num_steps: Any


class FlipChecks(NamedTuple):
    """What was asked of the model about each class flip; one row each.

    Attributes:
        step: (p, n) attributes after a gradient step on the class logits instead, as long as the change found.
        inside, elsewhere: (p, 4) flips and attribute share of the change inside the region alone, then outside of it
            alone; the region is the part, or one as large elsewhere on the bird. NaN without one.
    """

    step: Any
    inside: Any
    elsewhere: Any


def choose_singles(
    run: LoadedRun, regions: Regions, labels: np.ndarray, count: int, *, seed: int, columns: Sequence[int]
) -> list[tuple[int, int]]:
    """(image, attribute): `count` random test images of different classes for every attribute, its part visible.

    The choice depends on the data and the seed alone, so all models see the same. Where a part is visible in no image
    that was tried, or there are fewer classes than images wanted, there are fewer.
    """
    chosen = []
    for f in columns:
        name = run.info.attribute_names[f]
        order = np.random.default_rng([seed, 13, f]).permutation(len(labels))
        used: set[int] = set()
        for index in order[: 20 * count + 50]:
            if len(used) == count:
                break
            visible = not regions.parts_of(name) or regions.own(int(index), name) is not None
            if int(labels[index]) not in used and visible:
                chosen.append((int(index), int(f)))
                used.add(int(labels[index]))
    return chosen


@functools.cache  # the same function for the same model, so that a second run compiles nothing again
def one_attribute(encode: Callable[..., Any]) -> Callable[..., Any]:
    """(params, unit (n,), images) -> (b, 1), the attribute that `unit` picks, in the unit that it sets."""
    return lambda params, unit, images: jnp.sum(encode(params, images) * unit[None], axis=-1, keepdims=True)


def find_singles(
    run: LoadedRun, params: Params, spread: np.ndarray, chosen: Sequence[tuple[int, int]], *, size: float,
    config: InversionConfig, store: Store, name: str, console: Console,
) -> Singles:  # fmt: skip
    """Searches, for every (image, attribute), the picture where it rises and the one where it falls by `size` sd.

    The attribute is all that the search sees of the encoder. The pictures are not rounded to 8 bits: some networks move
    an attribute by so small a change that rounding would be most of it.

    Args:
        run: the model and its data.
        params: of the encoder; those of the run, or random ones.
        spread: (n,) standard deviation of each attribute.
        chosen: from `choose_singles`.
        size: of the request, in standard deviations.
        config: of the search.
        store, name: that keep the pictures.
        console: shows the progress.
    """
    encode, alone = jax.jit(run.model.encode), one_attribute(run.model.encode)
    pixels = run.config.image_size
    sign = np.array([1.0, -1.0], np.float32)
    targets = jnp.asarray([1, 2], jnp.int32)

    def pair(index: int, f: int) -> dict[str, Any]:
        original = run.dataset.images("test", np.array([index, index]), image_size=pixels)
        images = jnp.asarray(original, jnp.float32) / 255
        unit = np.zeros(len(spread), np.float32)
        unit[f] = 1 / spread[f]
        before = np.asarray(encode(params, images))
        now = float(before[0] @ unit)
        # Class 0 is "not far enough", 1 is "risen by `size`", 2 is "fallen by it"; a logit is a standard deviation.
        head = Head(jnp.asarray([[0.0], [1.0], [-1.0]]), jnp.asarray([0, -(now + size), now - size], jnp.float32))
        goal = jnp.asarray(now + (size + config.margin) * sign[:, None], jnp.float32)
        search = functools.partial(alone, params, jnp.asarray(unit))
        found = invert(search, head, images, goal, targets, config=config)
        values = (
            np.full(2, index), np.full(2, f), sign.astype(int), sign * size * spread[f], before,
            np.asarray(encode(params, found.images)), np.asarray(found.images - images).astype(np.float16),
            np.asarray(found.success), np.asarray(found.num_steps),
        )  # fmt: skip
        return dict(zip(Singles._fields, values, strict=True))

    def compute(rows: np.ndarray) -> dict[str, Any]:
        made = [pair(*chosen[row]) for row in rows]
        return {key: np.concatenate([part[key] for part in made]) for key in made[0]}

    stored = store.get_rows(name, len(chosen), compute, chunk=CHUNK, console=console, title=f"attributes ({name})")
    return Singles(**stored)


def pictures_of(run: LoadedRun, singles: Singles, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(k, h, w, 3) originals and changed pictures of some rows, in [0, 1]."""
    original = run.dataset.images("test", singles.index[rows], image_size=run.config.image_size)
    images = jnp.asarray(original, jnp.float32) / 255
    return images, jnp.clip(images + jnp.asarray(singles.change[rows], jnp.float32), 0, 1)


def check_flips(
    run: LoadedRun, found: Counterfactuals, named: np.ndarray, regions: Regions, *, store: Store, console: Console
) -> FlipChecks:
    """Gradient steps as long as the changes found, and the causal split of the changes at part and elsewhere.

    Args:
        run: the model.
        found: the class flips.
        named: (p,) attribute whose share of the change is divided up.
        regions: of the pictures.
        store: that keeps the answers.
        console: shows the progress.
    """
    head, params = run.model.head(run.params), run.params
    encode = functools.partial(run.model.encode, params)

    @jax.jit
    def step(images: Any, results: Any, targets: Any) -> Any:
        slope = jax.grad(lambda pixels: jnp.sum(leads(encode, head, pixels, targets)))(images)
        length = jnp.sqrt(jnp.sum(jnp.square(results - images), axis=(1, 2, 3)))
        tiny = jnp.finfo(images.dtype).tiny
        factor = length / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(slope), axis=(1, 2, 3))), tiny)
        return encode(jnp.clip(images + factor[:, None, None, None] * slope, 0, 1))

    split = jax.jit(functools.partial(causal_split, encode, head))

    def compute(rows: np.ndarray) -> dict[str, Any]:
        wrapped = np.resize(rows, CHUNK)  # a last chunk wraps: one compilation
        images = jnp.asarray(found.images[wrapped], jnp.float32) / 255
        results = rounded(found.results[wrapped])
        targets, f = (jnp.asarray(array[wrapped], jnp.int32) for array in (found.target, named))
        parts = {"step": np.asarray(step(images, results, targets))}
        for key, place in (("inside", regions.own), ("elsewhere", regions.elsewhere)):
            masks = [place(int(found.index[row]), run.info.attribute_names[int(named[row])]) for row in wrapped]
            empty = np.zeros(found.images.shape[1:3], bool)
            region = jnp.asarray(np.stack([empty if mask is None else mask for mask in masks]))
            answer = split(results, images, region, targets, f)
            columns = [answer.flips_inside, answer.share_inside, answer.flips_outside, answer.share_outside]
            values = np.stack([np.asarray(column, np.float64) for column in columns], axis=-1)
            values[[mask is None for mask in masks]] = np.nan
            parts[key] = values
        return {key: values[: len(rows)] for key, values in parts.items()}

    stored = store.get_rows("checks", len(found.index), compute, chunk=CHUNK, console=console, title="checking flips")
    return FlipChecks(**stored)


def few_pixels(
    run: LoadedRun, found: Counterfactuals, rows: np.ndarray, *, seed: int, store: Store, console: Console
) -> dict[str, np.ndarray]:
    """How few pixels keep the flips of `rows`; the fields of `experiments.paper_claims.pruning.FewPixels`."""
    prune, head = make_pruner(run.model.encode), run.model.head(run.params)

    def compute(positions: np.ndarray) -> dict[str, Any]:
        chosen = np.resize(rows[positions], CHUNK)
        images = jnp.asarray(found.images[chosen], jnp.float32) / 255
        targets = jnp.asarray(found.target[chosen], jnp.int32)
        key = jax.random.fold_in(jax.random.key(seed), int(positions[0]))
        answer = prune(run.params, head, images, rounded(found.results[chosen]), targets, key)
        return {name: np.asarray(value)[: len(positions)] for name, value in answer._asdict().items()}

    return store.get_rows("pixels", len(rows), compute, chunk=CHUNK, console=console, title="leaving out pixels")


def witness_changes(
    witness: LoadedRun, spread: np.ndarray, run: LoadedRun, singles: Singles, *, store: Store, console: Console,
) -> np.ndarray:  # fmt: skip
    """(p, n) how another network's attributes move between the same pictures, in its own standard deviations.

    Args:
        witness: the other network, of the same data.
        spread: (n,) standard deviations of its attributes.
        run: the network that the pictures were made for.
        singles: the pictures.
        store: that keeps the answers.
        console: shows the progress.
    """
    encode = jax.jit(witness.model.encode)
    own, theirs = run.config.image_size, witness.config.image_size

    def seen(images: jax.Array) -> np.ndarray:
        if own != theirs:
            images = jax.image.resize(images, (len(images), theirs, theirs, 3), "linear")
        return np.asarray(encode(witness.params, images))

    def compute(rows: np.ndarray) -> dict[str, Any]:
        before, after = map(seen, pictures_of(run, singles, np.resize(rows, CHUNK)))
        return {"change": ((after - before) / np.where(spread > 0, spread, np.inf))[: len(rows)]}

    stored = store.get_rows(
        "witness", len(singles.index), compute, chunk=CHUNK, console=console, title="asking the witness"
    )
    return stored["change"]


def rounded(results: np.ndarray) -> jax.Array:
    """Pictures as an 8-bit file holds them, in [0, 1]."""
    return jnp.round(jnp.asarray(results, jnp.float32) * 255) / 255
