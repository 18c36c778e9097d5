"""Counterfactuals of test images: the pairs, the four attribute-space answers, and the images that realise one."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments.cli.command import UserError
from experiments.counterfactuals.options import PairConfig
from experiments.runs.loading import LoadedRun, checksum
from experiments.runs.store import Store
from spectra_jax import (
    Head,
    Status,
    all_pairs_norms,
    attribute_selectivity,
    best_single_attributes,
    boundary_perturbation,
    certify,
    class_change,
    frequency_split,
    head_logits,
    image_distances,
    invert,
    nearest_target,
    perturbation_noise_ratio,
    pinv_perturbation,
    projection_perturbation,
    psnr,
    ssim,
)
from spectra_jax.logging import Console
from spectra_jax.similarity import WINDOW

SOLVERS = ("boundary", "pinv", "projection")
SELECTED = 10  # a dense request moves all attributes: those it moves most, in spreads, count as the requested ones
CHUNK = 32


def all_norms(head: Head, attributes: np.ndarray) -> dict[str, np.ndarray]:
    """(N, c) lengths of all counterfactuals by each method of SOLVERS."""
    solve = jax.jit(all_pairs_norms, static_argnames="method")
    return {method: np.asarray(solve(head, jnp.asarray(attributes), method=method)) for method in SOLVERS}


@dataclass(frozen=True)
class Counterfactuals:
    """What was asked and found, a row per pair; the keys of counterfactuals.npz.

    Attributes:
        index: row of the image in the test split, see `TestSplit`.
        label, predicted, target: classes.
        images: before, 8-bit.
        results: after, in [0, 1]; on 256 levels where the target survives that.
        before, after: attributes of both.
        requested: change that was asked for; inf where the target cannot be reached.
        norms: ||delta|| of each of SOLVERS.
        reached: whether that delta alone makes the classifier name the target.
        single_attribute, single_delta: the best single attribute and its change, -1 and inf where there is none.
        kkt_residual: of the projection.
        success, survives_rounding, num_steps, reason: how the search for the image ended.
        psnr, ssim: of the result against the original.
        certified: no image at a smaller L2 distance from the original is named as the target; NaN where nothing is
            proven of the encoder.
    """

    index: Int[np.ndarray, " p"]
    label: Int[np.ndarray, " p"]
    predicted: Int[np.ndarray, " p"]
    target: Int[np.ndarray, " p"]
    images: UInt8[np.ndarray, "p h w 3"]
    results: Float[np.ndarray, "p h w 3"]
    before: Float[np.ndarray, "p n"]
    after: Float[np.ndarray, "p n"]
    requested: Float[np.ndarray, "p n"]
    norms: Float[np.ndarray, "p 3"]
    reached: Bool[np.ndarray, "p 3"]
    single_attribute: Int[np.ndarray, " p"]
    single_delta: Float[np.ndarray, " p"]
    kkt_residual: Float[np.ndarray, " p"]
    success: Bool[np.ndarray, " p"]
    survives_rounding: Bool[np.ndarray, " p"]
    num_steps: Int[np.ndarray, " p"]
    reason: Int[np.ndarray, " p"]
    psnr: Float[np.ndarray, " p"]
    ssim: Float[np.ndarray, " p"]
    certified: Float[np.ndarray, " p"]

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as they are stored."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@jax.jit
def _solve(head: Head, attributes: jax.Array, targets: jax.Array, margin: jax.Array) -> dict[str, jax.Array]:
    """The attribute-space answers for one row of (sample, target) pairs."""
    over_pairs = functools.partial(jax.vmap, in_axes=(0, 0))
    projection = over_pairs(lambda e, j: projection_perturbation(head, e, j, margin=margin))(attributes, targets)
    deltas = {
        "boundary": over_pairs(lambda e, j: boundary_perturbation(head, e, j, margin=margin))(attributes, targets),
        "pinv": over_pairs(lambda e, j: pinv_perturbation(head, e, j, margin=margin))(attributes, targets),
        "projection": projection.delta,
    }
    change, attribute = best_single_attributes(head, attributes, margin=margin)
    rows = jnp.arange(len(targets), dtype=jnp.int32)
    change, attribute = change[rows, targets], attribute[rows, targets]
    chosen = jnp.arange(attributes.shape[1], dtype=jnp.int32)[None, :] == attribute[:, None]
    unreachable = jnp.where((attribute < 0)[:, None], jnp.inf, 0)
    deltas["single"] = jnp.where(chosen, change[:, None], 0) + unreachable

    def names_target(delta: jax.Array) -> jax.Array:
        return jnp.argmax(head_logits(head, attributes + delta), axis=-1) == targets

    return deltas | {
        "norms": jnp.stack([jnp.linalg.norm(deltas[name], axis=-1) for name in SOLVERS], axis=-1),
        "reached": jnp.stack([names_target(deltas[name]) for name in SOLVERS], axis=-1),
        "single_attribute": attribute,
        "single_delta": change,
        "kkt_residual": projection.kkt_residual,
    }


def choose_pairs(
    run: LoadedRun, attributes: np.ndarray, labels: np.ndarray, config: PairConfig, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of test images, spread over the classes, and a target class for each that is not the predicted one.

    Raises:
        UserError: an unknown class or too few images.
    """
    rng = np.random.default_rng(seed)
    head = run.model.head(run.params)
    wanted = _class(run, config.source) if config.source is not None else None
    order = rng.permutation(len(labels))
    if wanted is not None:
        order = order[labels[order] == wanted]
    else:  # the first image of every class, then the second of every class, and so on
        turn = np.zeros(len(order), int)
        for label in np.unique(labels):
            turn[labels[order] == label] = np.arange((labels == label).sum())
        order = order[np.argsort(turn, kind="stable")]
    choices = ("nearest", "random", "mixed")
    fixed = None if config.targets in choices else _class(run, config.targets, besides=choices)
    logits = np.asarray(head_logits(head, jnp.asarray(attributes)))
    such = "images of that class" if wanted is not None else "images"
    if fixed is not None:
        order = order[logits[order].argmax(axis=-1) != fixed]
        such += f" that are not classified as {run.info.class_names[fixed]} already"
    if not len(order):
        raise UserError(f"There are no {such} in the test split; choose another --source or --targets.")
    if len(order) < config.num_pairs:
        raise UserError(f"--num-pairs {config.num_pairs}: there are only {len(order)} {such}; ask for as many or fewer")
    index = order[: config.num_pairs]
    if fixed is not None:
        return index, np.full(len(index), fixed, np.int32)
    predicted = logits[index].argmax(axis=-1)
    drawn = (predicted + rng.integers(1, logits.shape[1], len(index))) % logits.shape[1]
    if config.targets == "random":
        return index, drawn.astype(np.int32)
    norms = all_pairs_norms(head, jnp.asarray(attributes[index]), method="boundary")
    nearest = np.asarray(nearest_target(norms).target)
    target = np.where(nearest >= 0, nearest, drawn)  # where no class is known to be reachable, any will do
    if config.targets == "mixed":
        target[1::2] = drawn[1::2]
    return index, target.astype(np.int32)


def pair_options(
    run: LoadedRun, config: PairConfig, seed: int, attributes: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Everything that decides the results of `find_counterfactuals`, the trained model itself included."""
    model = checksum(run, attributes, labels)
    return {**dataclasses.asdict(config), "seed": seed, "step": run.step, "model": model}


def _class(run: LoadedRun, name: str, *, besides: tuple[str, ...] = ()) -> int:
    try:
        return run.info.find_class(name)
    except ValueError as error:
        words = f" (or one of: {', '.join(besides)})" if besides else ""
        raise UserError(f"{error}{words}") from error


def find_counterfactuals(
    run: LoadedRun, labels: np.ndarray, index: np.ndarray, target: np.ndarray, config: PairConfig, store: Store,
    *, console: Console,
) -> Counterfactuals:  # fmt: skip
    """Solves and inverts the pairs batch by batch; a batch already in `store` is not computed again.

    Args:
        run: the trained model.
        labels: (N,) of the test split.
        index, target: (p,) the pairs, from `choose_pairs`.
        config: how to search.
        store: of `pair_options`.
        console: shows the progress.
    """
    encode = functools.partial(run.model.encode, run.params)

    def compute(rows: np.ndarray) -> dict[str, np.ndarray]:
        wrapped = np.resize(rows, config.batch_size)  # a last batch wraps: one compilation
        part = _one_batch(run, encode, labels, index[wrapped], target[wrapped], config)
        return {name: value[: len(rows)] for name, value in part.items()}

    stored = store.get_rows(
        "pairs", len(index), compute, chunk=config.batch_size, console=console, title="inverting", unit="pairs"
    )
    found = Counterfactuals(**stored)
    if words := _advice(found, config):
        console.say(words)
    return found


def _one_batch(
    run: LoadedRun, encode: Any, labels: np.ndarray, index: np.ndarray, target: np.ndarray, config: PairConfig
) -> dict[str, np.ndarray]:
    """The arrays of `Counterfactuals`."""
    head, size = run.model.head(run.params), run.config.image_size
    pixels = run.dataset.images("test", index, image_size=size)
    images, targets = jnp.asarray(pixels, jnp.float32) / 255, jnp.asarray(target, jnp.int32)
    before = jax.jit(run.model.encode)(run.params, images)
    solved = _solve(head, before, targets, jnp.asarray(config.margin, jnp.float32))
    requested = solved[config.request]
    result = invert(encode, head, images, before + requested, targets, config=config.inversion)
    # What people look at is a file, so where the flip survives 8 bits that image is the one reported.
    written = result.success_8bit[:, None, None, None]
    results = jnp.where(written, result.images_8bit, result.images)
    found = dict(
        index=index,
        label=labels[index],
        predicted=jnp.argmax(head_logits(head, before), axis=-1),
        target=target,
        images=pixels,
        results=results,
        before=before,
        after=jax.jit(run.model.encode)(run.params, results),
        requested=requested,
        norms=solved["norms"],
        reached=solved["reached"],
        single_attribute=solved["single_attribute"],
        single_delta=solved["single_delta"],
        kkt_residual=solved["kkt_residual"],
        success=result.success,
        survives_rounding=result.success_8bit,
        num_steps=result.num_steps,
        reason=result.reason,
        psnr=psnr(results, images),
        ssim=ssim(results, images) if size >= WINDOW else np.full(len(index), np.nan, np.float32),
        certified=np.full(len(index), np.nan),
    )
    if run.has_proof:
        found["certified"] = certify(run.model, run.params, images, targets=target).radius
        reached = np.asarray(image_distances(results, images).l2, float)
        check_sandwich(run, found["certified"], reached, np.asarray(results), target, np.asarray(result.success))
    return jax.device_get(found)


def check_sandwich(
    run: LoadedRun,
    certified: np.ndarray,
    reached: np.ndarray,
    images: np.ndarray,
    target: np.ndarray,
    success: np.ndarray,
) -> None:
    """Certified distance <= distance of the image found, but for the rounding of float32 lengths, wherever one was.

    Flips are found in float32 and certificates are about exact arithmetic: what seems to break one is named again in
    float64.
    """
    broken = np.flatnonzero(success & (reached < certified * (1 - 1e-6)))
    if broken.size:
        broken = broken[certify(run.model, run.params, images[broken]).answer == target[broken]]
    if broken.size:
        row = broken[0]
        raise RuntimeError(
            f"An image was found at distance {reached[row]:.6g}, but the certificate excludes any nearer than "
            f"{certified[row]:.6g}: the certificate is wrong. Please report this with the run folder."
        )


@jax.jit
def measure(
    head: Head, images: Any, results: Any, before: Any, after: Any, requested: Any, targets: Any, spread: Any
) -> dict[str, jax.Array]:
    """The numbers of `pair_metrics` for one batch of images in [0, 1]."""
    distances, parts = image_distances(results, images), frequency_split(results, images)
    change = class_change(head_logits(head, before), head_logits(head, after), targets)
    realised = after - before
    varies = jnp.where(spread > 0, spread, jnp.inf)[None, :]
    size = jnp.where(jnp.isfinite(requested), jnp.abs(requested), 0) / varies
    threshold = jax.lax.top_k(size, min(SELECTED, size.shape[1]))[0][:, -1:]
    chosen = (size >= threshold) & (size > 0)
    selectivity = attribute_selectivity(realised, requested, scale=spread, chosen=chosen)
    energy = jnp.square(parts.low) + jnp.square(parts.high)
    return {
        **distances._asdict(),
        "pixels_changed": distances.l0 / (images.shape[1] * images.shape[2]),
        "low_frequency_l2": parts.low,
        "high_frequency_l2": parts.high,
        "high_frequency_share": jnp.square(parts.high) / energy,
        "class_after": change.after,
        "class_changed": change.changed,
        "source_probability_before": change.source_before,
        "source_probability_after": change.source_after,
        "target_probability_before": change.target_before,
        "target_probability_after": change.target_after,
        "attribute_share": jnp.where(jnp.any(chosen, axis=-1), selectivity.share, jnp.nan),
        "attribute_cosine": selectivity.cosine,
        "noise_ratio_realised": perturbation_noise_ratio(results - images, realised),
        "noise_ratio_requested": perturbation_noise_ratio(results - images, requested),
    }


def _advice(found: Counterfactuals, config: PairConfig) -> str:
    """What to try where searches failed; "" where none did, or where only targets without an answer are left."""
    reasons = found.reason[~found.success]
    failed = int((reasons != Status.INFEASIBLE).sum())
    if not failed:
        return ""
    tries = [f"--inversion.max-steps {2 * config.inversion.max_steps}"]
    tries += [] if config.inversion.method == "nearest" else ["--inversion.method nearest"]
    tries += [f"--inversion.margin {config.inversion.margin / 2:g}"] if config.inversion.margin > 0 else []
    return f"{failed} searches failed; try {' or '.join(tries)}."


def pair_metrics(head: Head, found: Counterfactuals, spread: np.ndarray) -> dict[str, np.ndarray]:
    """What changed in each pair's image, class and attributes; names as in metrics.jsonl.

    Args:
        head: of the model the pairs belong to.
        found: the pairs.
        spread: (n,) standard deviation of each attribute over the test split; the unit of attribute_share and
            attribute_cosine.

    Returns:
        name -> (p,); NaN where a measure is not defined, such as the cosine with a request that is infeasible.
    """
    parts = []
    for start in range(0, len(found.index), CHUNK):  # 200 pairs of 224 pixels would take a gigabyte at once
        rows = slice(start, start + CHUNK)
        images = jnp.asarray(found.images[rows], jnp.float32) / 255
        arrays = (found.results, found.before, found.after, found.requested, found.target)
        results, *others = (jnp.asarray(array[rows]) for array in arrays)
        parts.append(measure(head, images, results, *others, jnp.asarray(spread, images.dtype)))
    measured = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return measured | ({} if np.isnan(found.certified).all() else {"certified_l2": found.certified})
