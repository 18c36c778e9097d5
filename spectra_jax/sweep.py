"""Every counterfactual of every sample, a block of samples at a time, on all devices of this process.

Only arrays here: where the rows come from and where the answers go is `sweep_sources`' and `sweep_files`' business.
Each device solves blocks of the same number of rows by itself: there is one compilation, nothing is exchanged while
solving, and the answers do not depend on how many devices there are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import check_choice, check_head, check_margin, check_mutable, is_concrete
from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.all_pairs import METHODS, all_pairs_norms
from spectra_jax.perturbations.all_projections import all_pairs_projection
from spectra_jax.perturbations.geometry import relative_logits, safe_norm
from spectra_jax.perturbations.pinv import pinv_perturbation
from spectra_jax.perturbations.projection import projection_perturbation
from spectra_jax.perturbations.single_attribute import single_attribute_perturbations
from spectra_jax.sharding import BATCH_AXIS, data_mesh, replicated, row_sharded
from spectra_jax.types import Head

# Numbers held at once by work that is vmapped over pairs and attributes: 64 MB in float32.
_HELD = 1 << 24


class PairAnswers(NamedTuple):
    """The answers of one method for every (sample, target) pair of a block.

    Attributes:
        norm: (b, c) length of the change; 0 at the predicted class, inf where the target cannot be reached, NaN where
            it is unresolved.
        active_constraints: (b, c) number of active rivals at the change; -1 where the method has no such notion.
        feasible: (b, c) whether the method has an answer; False where it is inf and where it is NaN.
        residual: (b, c) largest violation of the optimality conditions, relative to ||e|| + ||delta||; NaN for closed
            forms.
        delta: (b, c, n) the change itself, or None.
    """

    norm: Float[Array, "b c"]
    active_constraints: Int[Array, "b c"]
    feasible: Bool[Array, "b c"]
    residual: Float[Array, "b c"]
    delta: Float[Array, "b c n"] | None


class SampleAnswers(NamedTuple):
    """The answers for each sample.

    Attributes:
        predicted: (b,) class with the largest logit.
        length: (b,) ||e||.
        nearest: (b,) the nearest other class, -1 where none can be reached or it is not known.
        distance: (b,) distance to it, inf where there is none, NaN where the method leaves a class unresolved that may
            be nearer; by the projection if it is among the methods, else by the boundary.
        attackability: (b,) ||e|| / distance (Eq. 5); inf on a boundary, 0 where no class can be reached, NaN where the
            distance is.
        single_attribute: (b,) the attribute that alone reaches the nearest class with the smallest change, in units of
            its spread; -1 where none does.
        single_delta: (b,) that change, NaN where there is none.
        largest_attribute: (b,) the attribute that changes most on the shortest way to the nearest class, in attribute
            units; -1 where there is none.
        largest_delta: (b,) its change, NaN where there is none.
    """

    predicted: Int[Array, " b"]
    length: Float[Array, " b"]
    nearest: Int[Array, " b"]
    distance: Float[Array, " b"]
    attackability: Float[Array, " b"]
    single_attribute: Int[Array, " b"]
    single_delta: Float[Array, " b"]
    largest_attribute: Int[Array, " b"]
    largest_delta: Float[Array, " b"]


class SweepAnswers(NamedTuple):
    """A block of a sweep.

    Attributes:
        samples: per sample.
        pairs: per (sample, target) pair, one entry per method, in the order they were asked for.
    """

    samples: SampleAnswers
    pairs: tuple[PairAnswers, ...]


def sweep_block(
    head: Head,
    attributes: Float[Array, "b n"],
    *,
    methods: Sequence[str] = ("projection", "boundary"),
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, " n"] | None = None,
    spread: Float[Array, " n"] | None = None,
    deltas: bool = False,
) -> SweepAnswers:
    """All methods on all pairs of some samples, and the answers for each sample.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        methods: of `all_pairs_norms`, at least one.
        margin: required lead, in logits.
        mutable: (n,) attributes that may change; all by default. Not with "pinv".
        spread: (n,) standard deviation of each attribute over the data, the unit in which changes of single attributes
            are compared; those of spread 0 are never chosen. All 1 by default.
        deltas: whether to return the changes themselves.

    Returns:
        SweepAnswers.

    Raises:
        ValueError: shapes do not match, an unknown method, margin negative, mutable with "pinv".
    """
    check_methods(methods, mutable)
    check_margin(margin)
    # Without a margin the nearest exit of a convex region is through a single facet: the boundary's answer is exact.
    one_facet = "projection" not in methods or (is_concrete(margin) and float(margin) == 0)
    margin = jnp.asarray(margin, attributes.dtype)
    logits = relative_logits(head, attributes)
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    solve: dict[str, Callable[..., PairAnswers]]
    solve = {"projection": _projection, "boundary": functools.partial(_boundary, logits), "pinv": _pinv}
    pairs = tuple(solve[method](head, attributes, predicted, margin, mutable, deltas) for method in methods)
    # Where the projection is unresolved the boundary is a lower bound of it; without a margin the nearest of all
    # boundaries is as far as the nearest of all projections.
    bounds = all_pairs_norms(head, attributes, method="boundary", margin=margin, mutable=mutable, logits=logits)
    norms = pairs[list(methods).index("projection")].norm if "projection" in methods else bounds
    samples = _samples(head, attributes, norms, bounds, predicted, margin, mutable, spread, one_facet)
    return SweepAnswers(samples, pairs)


def check_methods(methods: Sequence[str], mutable: object) -> None:
    """Raises ValueError unless `methods` are different methods, at least one, that `mutable` applies to."""
    if not methods or len(set(methods)) != len(methods):
        raise ValueError(f"methods is {tuple(methods)}; expected one or more different ones of {METHODS}")
    for method in methods:
        check_choice("methods", method, METHODS)
    if "pinv" in methods and mutable is not None:
        raise ValueError('mutable is given with the method "pinv"; expected None there: omit one of the two')


def _projection(head, attributes, predicted, margin, mutable, deltas) -> PairAnswers:
    if not deltas:
        found = all_pairs_projection(head, attributes, margin=margin, mutable=mutable)
        return PairAnswers(found.norms, found.num_active, found.feasible, found.kkt_residual, None)
    classes = _all_targets(head)
    own = classes == predicted[:, None]
    at_once = max(1, _HELD // head.weights.size)

    def figures(sample):
        def one_pair(target):
            return projection_perturbation(head, sample, target, margin=margin, mutable=mutable)

        found = jax.vmap(one_pair)(classes[0])
        active = jnp.sum(found.feasible[:, None] & (found.multipliers > 0), axis=-1, dtype=jnp.int32)
        return found.norm, active, found.feasible, found.kkt_residual, found.delta

    norm, active, feasible, residual, delta = jax.lax.map(figures, attributes, batch_size=at_once)
    return PairAnswers(
        norm=jnp.where(own, 0, norm),
        active_constraints=jnp.where(own, 0, active),
        feasible=feasible | own,
        residual=jnp.where(own, 0, residual),
        delta=jnp.where(own[..., None], 0, delta),
    )


def _boundary(logits, head, attributes, predicted, margin, mutable, deltas) -> PairAnswers:
    norm = all_pairs_norms(head, attributes, method="boundary", margin=margin, mutable=mutable, logits=logits)
    direction = _facet_normals(head, predicted[:, None], _all_targets(head), mutable) if deltas else None
    feasible = jnp.isfinite(norm)
    return PairAnswers(
        norm=norm,
        active_constraints=(feasible & (norm > 0)).astype(jnp.int32),
        feasible=feasible,
        residual=jnp.full_like(norm, jnp.nan),
        delta=None if direction is None else _along(norm[..., None], direction),
    )


def _pinv(head, attributes, predicted, margin, mutable, deltas) -> PairAnswers:
    norm = all_pairs_norms(head, attributes, method="pinv", margin=margin)
    classes = _all_targets(head)[0]
    own = classes[None, :] == predicted[:, None]

    def one_target(target):
        return jax.vmap(lambda sample: pinv_perturbation(head, sample, target, margin=margin))(attributes)

    # One factorisation per target, shared by the samples.
    delta = jnp.swapaxes(jax.lax.map(one_target, classes), 0, 1) if deltas else None
    return PairAnswers(
        norm=norm,
        active_constraints=jnp.full(norm.shape, -1, jnp.int32),
        feasible=jnp.isfinite(norm),
        residual=jnp.full_like(norm, jnp.nan),
        delta=None if delta is None else jnp.where(own[..., None], 0, delta),
    )


def _all_targets(head: Head) -> Int[Array, "1 c"]:
    return jnp.arange(head.weights.shape[0], dtype=jnp.int32)[None, :]


def _facet_normals(head, predicted, targets, mutable) -> Float[Array, "... n"]:
    """Unit vectors from the predicted class towards each target; 0 where their rows coincide."""
    difference = head.weights[targets] - head.weights[predicted]
    if mutable is not None:
        difference = jnp.where(mutable, difference, jnp.zeros_like(difference))
    length = safe_norm(difference)[..., None]
    return difference / jnp.where(length > 0, length, 1)


def _along(norm, direction):
    # 0 in the other components, but not 0 * inf: what cannot be reached has no finite change at all.
    return jnp.where(jnp.isfinite(norm), norm * direction, norm)


def _samples(head, attributes, norms, bounds, predicted, margin, mutable, spread, one_facet) -> SampleAnswers:
    num_classes, num_attributes = head.weights.shape
    others = _all_targets(head) != predicted[:, None]
    unresolved = others & jnp.isnan(norms)
    distances = jnp.where(unresolved, bounds if one_facet else jnp.inf, jnp.where(others, norms, jnp.inf))
    distance, length = jnp.min(distances, axis=-1), safe_norm(attributes)
    # No answer is not "out of reach": the class may be the nearest unless its lower bound says otherwise.
    told = one_facet | ~jnp.any(unresolved & ~(bounds >= distance[:, None]), axis=-1)
    distance = jnp.where(told, distance, jnp.nan)
    known = jnp.isfinite(distance)
    nearest = jnp.argmin(distances, axis=-1).astype(jnp.int32)
    spread = jnp.ones(num_attributes, attributes.dtype) if spread is None else spread
    unit = jnp.where(spread > 0, spread, 1)

    def one_sample(sample):
        attributes, target, predicted, distance = sample
        single = single_attribute_perturbations(head, attributes, target, margin=margin).delta
        allowed = spread > 0 if mutable is None else mutable & (spread > 0)
        cost = jnp.where(allowed & ~jnp.isnan(single), jnp.abs(single) / unit, jnp.inf)
        best = jnp.argmin(cost).astype(jnp.int32)
        if one_facet:
            change = _along(distance, _facet_normals(head, predicted, target, mutable))
        else:
            change = projection_perturbation(head, attributes, target, margin=margin, mutable=mutable).delta
        size = jnp.where(jnp.isfinite(change), jnp.abs(change), 0)
        largest = jnp.argmax(size).astype(jnp.int32)
        return best, single[best], jnp.isfinite(cost[best]), largest, change[largest], size[largest] > 0

    at_once = max(1, _HELD // (4 * num_classes * num_attributes))
    best, single, alone, largest, change, moves = jax.lax.map(
        one_sample, (attributes, nearest, predicted, distance), batch_size=at_once
    )
    alone, moves = alone & known, moves & known
    return SampleAnswers(
        predicted=predicted,
        length=length,
        nearest=jnp.where(known, nearest, -1),
        distance=distance,
        attackability=formulas.attackability(distance, length),
        single_attribute=jnp.where(alone, best, -1),
        single_delta=jnp.where(alone, single, jnp.nan),
        largest_attribute=jnp.where(moves, largest, -1),
        largest_delta=jnp.where(moves, change, jnp.nan),
    )


def make_sweep(
    head: Head,
    *,
    rows_per_device: int,
    methods: Sequence[str] = ("projection", "boundary"),
    margin: float = 0.0,
    mutable: Bool[np.ndarray, " n"] | None = None,
    spread: Float[np.ndarray, " n"] | None = None,
    deltas: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[..., SweepAnswers]:
    """Compiles a sweep for some devices.

    Args:
        head: weights (c, n), optional bias (c,); its type is the one everything is computed in.
        rows_per_device: samples that a device solves at once. Answers may depend on it in the last digits, as sums are
            ordered by the shapes of products; on nothing else.
        methods, margin, mutable, spread, deltas: see `sweep_block`.
        devices: of this process; all of them by default.

    Returns:
        A function of attributes (k, n), any k >= 1, giving SweepAnswers with k rows as NumPy arrays. Given several such
        arrays, it answers all their rows in order; each is cut into the blocks that it is cut into alone, so that what
        is solved together does not show. It takes `on_rows`, called with the number of rows finished whenever there
        are more.

    Raises:
        ValueError: as `sweep_block`.
    """
    check_head(head)
    check_methods(methods, mutable)
    check_margin(margin)
    check_mutable(head, mutable)
    mesh = data_mesh(jax.local_devices() if devices is None else devices)
    dtype = np.asarray(head.weights).dtype
    given = (
        head,
        None if mutable is None else np.asarray(mutable),
        np.ones(head.weights.shape[1], dtype) if spread is None else np.asarray(spread, dtype),
    )
    constants = jax.device_put(given, replicated(mesh))

    def block(constants, attributes):
        head, mutable, spread = constants
        return sweep_block(
            head, attributes, methods=methods, margin=margin, mutable=mutable, spread=spread, deltas=deltas
        )

    # Every device loops until its own pairs are done: automatic sharding would ask all of them after each step.
    by_device = jax.shard_map(
        block,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(BATCH_AXIS)),
        out_specs=PartitionSpec(BATCH_AXIS),
        check_vma=False,
    )
    rows = jax.ShapeDtypeStruct((rows_per_device * mesh.size, head.weights.shape[1]), dtype, sharding=row_sharded(mesh))
    solve = jax.jit(by_device).lower(constants, rows).compile()

    def padded(block: np.ndarray) -> np.ndarray:
        # Padding repeats the first row: a row of zeros would be a sample of its own kind, slow to solve for nothing.
        missing = np.broadcast_to(block[:1], (rows_per_device - len(block), block.shape[1]))
        return np.concatenate([block, missing]).astype(dtype, copy=False)

    def launch(blocks: list[np.ndarray]) -> SweepAnswers:
        idle = [blocks[-1]] * (mesh.size - len(blocks))  # only the last blocks of all leave a device without its own
        rows = np.concatenate([padded(block) for block in (*blocks, *idle)])
        return solve(constants, jax.device_put(rows, row_sharded(mesh)))

    def fetch(answers: SweepAnswers, blocks: list[np.ndarray]) -> SweepAnswers:
        kept = np.concatenate([np.arange(rows_per_device) < len(block) for block in blocks])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(kept)][kept], answers)

    def run(*attributes: np.ndarray, on_rows: Callable[[int], None] = lambda rows: None) -> SweepAnswers:
        blocks = [
            part[start : start + rows_per_device]
            for part in attributes
            for start in range(0, len(part), rows_per_device)
        ]
        turns = [blocks[start : start + mesh.size] for start in range(0, len(blocks), mesh.size)]
        parts: list[SweepAnswers] = []
        ahead = launch(turns[0])  # launched, not fetched: the devices need not wait for the host
        finished = 0
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            answers = ahead
            if following is not None:
                ahead = launch(following)
            parts.append(fetch(answers, turn))
            finished += sum(len(block) for block in turn)
            on_rows(finished)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return run
