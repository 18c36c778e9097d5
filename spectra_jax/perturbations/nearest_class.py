"""The nearest other class of every sample, at the cost of one matrix product."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.buckets import in_buckets
from spectra_jax.checks import at_least_float32, check_problem
from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.few_rivals import Choice, few_rivals, make_rivals
from spectra_jax.perturbations.geometry import HIGHEST, centred, of_unit_size, relative_logits, safe_norm, safe_sqrt
from spectra_jax.switches import public
from spectra_jax.types import Head

# Logits of a block of samples: on a CPU 4 MB, which stay in its cache and are as fast a product as the whole, which
# smaller blocks are not; many enough to fill an accelerator.
_LOGITS_ON_CPU, _LOGITS_ON_ACCELERATOR = 1_000_000, 4_000_000
# From so many classes on a few rivals are looked at first; blocks are then larger, for each takes some steps.
_MANY, _LOGITS_OF_MANY = 2048, 4_000_000
# Blocks of which they leave more than one sample in so many are done again at once; of the others those samples are,
# in blocks of this part of the size, as they are few.
_LEFT, _PART = 2, 8
# The table of distances between the rows of so many classes is 256 MB; with more, each block has its own.
_TABLE = 8192
# Squared distances below this part of ||w_i||^2 + ||w_k||^2 are not taken from inner products.
_CLOSE = 0.05
# Rows closer than this have logits whose difference is mostly rounding: it is taken from exact sums.
_TWINS = 1e-3


class NearestClass(NamedTuple):
    """How far each sample is from being another class.

    Attributes:
        distance: (b,) length of the smallest change of the attributes after which another class wins; 0 on a boundary,
            inf where no class can be reached, NaN where an input is NaN.
        target: (b,) int32 the class that it reaches; -1 where there is none.
        attackability: (b,) ||e|| / distance (Eq. 5); inf on a boundary, 0 where no class can be reached.
    """

    distance: Float[Array, " b"]
    target: Int[Array, " b"]
    attackability: Float[Array, " b"]


@in_buckets
@public(rows="attributes")
def nearest_class(head: Head, attributes: Float[Array, "b n"], *, block_size: int | None = None) -> NearestClass:
    """The nearest other class of every sample, and how far it is: exact, and about as cheap as the logits.

    The way out of a convex region is through one facet: the smallest of all boundary distances
    (l_i - l_k) / ||w_i - w_k|| is the smallest of all projections. For distances to every class, or to a class of
    your choice, use `all_pairs_norms`; for the change itself `projection_perturbation` towards the target found here.

    Samples are processed block by block: apart from the answers, memory does not grow with their number, and no array
    of size (c, c) is built for more than 8,192 classes. Half precision is read as it is and computed in float32.

    Args:
        head: weights (c, n), optional bias (c,); a bias of -inf masks its class.
        attributes: (b, n) unnormalised attributes.
        block_size: samples processed at once, each with a few rows of c numbers; by default as many as give 1 or 4
            million logits.

    Returns:
        NearestClass; the lowest class among equals. The distance and the attackability have derivatives.

    Raises:
        ValueError: shapes do not match, a concrete number is not finite, block_size below 1.
    """
    check_problem(head, attributes, ndim=2)
    check_block_size(block_size)
    return nearest_and_predicted(head, jnp.asarray(attributes), block_size=block_size)[0]


def check_block_size(block_size: int | None) -> None:
    """Raises ValueError unless it is None or 1 or more."""
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size is {block_size}; expected 1 or more samples, or None for the default")


@functools.partial(jax.jit, static_argnames=("exact", "block_size"))  # eagerly its loop would be compiled at every call
def nearest_and_predicted(
    head: Head, attributes: Float[Array, "b n"], *, exact: bool | None = None, block_size: int | None = None
) -> tuple[NearestClass, Int[Array, " b"], Bool[Array, ""]]:
    """`nearest_class` without its checks, and what else is known.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n).
        exact: whether logits are summed exactly, which costs about twenty products and is needed where rows are nearly
            equal. None decides it for each block; a program of one kind alone takes a third of the time to compile.
        block_size: samples taken at once; None to have it chosen.

    Returns:
        NearestClass, the class of each sample now, and whether one of them has a nearly equal row.
    """
    head = at_least_float32(Head(jnp.asarray(head.weights), None if head.bias is None else jnp.asarray(head.bias)))
    head, _, _ = of_unit_size(head, jnp.zeros((), head.weights.dtype))
    num_classes, still = len(head.weights), jax.lax.stop_gradient(head)
    has_table = num_classes <= min(len(attributes), _TABLE)
    rows_apart = _table(still.weights) if has_table else _on_demand(still.weights)
    few = num_classes >= _MANY and not has_table and not exact

    def among_all(samples: Float[Array, "m n"]) -> Choice:
        samples = jax.lax.stop_gradient(samples).astype(still.weights.dtype)

        def exactly():
            return _choose(relative_logits(still, samples), rows_apart)

        if exact:
            return exactly()
        choice = _choose(_plain_logits(still, samples), rows_apart)
        return jax.lax.cond(jnp.any(choice.twins), exactly, lambda: choice) if exact is None else choice

    def measured(block):
        samples, choice = block
        found = _measured(head, samples.astype(head.weights.dtype), choice)
        return found, choice.predicted, choice.twins

    def in_blocks(at_once: int):
        size = block_size or max(1, at_once // num_classes)

        def answers(samples):
            choose = (
                functools.partial(_few_first, still, rows_apart, among_all)
                if few
                else functools.partial(_map_blocks, among_all)
            )
            return _map_blocks(measured, (samples, choose(samples, size)), size)

        return answers

    found, predicted, twins = jax.lax.platform_dependent(
        attributes,
        cpu=in_blocks(_LOGITS_OF_MANY if few else _LOGITS_ON_CPU),
        default=in_blocks(_LOGITS_ON_ACCELERATOR),
    )
    return found, predicted, jnp.any(twins)


def _map_blocks(function: Callable, rows: Any, size: int) -> Any:
    """function(block) for blocks of at most `size` rows; the last begins earlier where they do not come out even."""
    count = len(jax.tree.leaves(rows)[0])
    if count <= size:
        return function(rows)
    size = -(-count // -(-count // size))  # as many blocks, of one size: little is done twice
    starts = jnp.minimum(jnp.arange(0, count, size, dtype=jnp.int32), count - size)
    blocks = jax.lax.map(lambda start: function(_block(rows, start, size)), starts)
    left = (count - 1) % size + 1

    def joined(leaf):
        return jnp.concatenate([leaf[:-1].reshape(-1), leaf[-1, size - left :]])

    return jax.tree.map(joined, blocks)


def _block(rows: Any, start: Int[Array, ""], size: int) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), rows)


def _few_first(
    head: Head,
    rows_apart: Callable,
    among_all: Callable[[Array], Choice],
    attributes: Float[Array, "b n"],
    size: int,
) -> Choice:
    """Looks at a few rivals of each sample, and at all of those of the samples that this does not settle.

    Samples with a nearly equal row are among the latter, as their logits are to be summed exactly.
    """
    rivals = make_rivals(head.weights, head.bias)
    size = min(size, len(attributes))

    def one_block(samples):
        samples = jax.lax.stop_gradient(samples).astype(head.weights.dtype)
        choice, proven, logits = few_rivals(rivals, samples, twins=_TWINS)
        # Where it settles few of a block, as of samples far within their classes, the logits are there for all of it.
        return jax.lax.cond(
            _LEFT * jnp.sum(~proven) > len(samples),
            lambda: (_choose(logits[:, : len(head.weights)], rows_apart), jnp.ones_like(proven)),
            lambda: (choice, proven),
        )

    choice, proven = _map_blocks(one_block, attributes, size)
    again = ~proven | choice.twins
    count = jnp.sum(again, dtype=jnp.int32)
    order = jnp.argsort(~again, stable=True)
    size = -(-size // _PART)

    def one_more(state):
        done, choice = state
        # The last block begins earlier or goes on into settled samples, whose answers stay as right.
        members = jax.lax.dynamic_slice_in_dim(order, done, size)
        better = among_all(attributes[members])
        return done + size, jax.tree.map(lambda old, new: old.at[members].set(new), choice, better)

    return jax.lax.while_loop(lambda state: state[0] < count, one_more, (jnp.int32(0), choice))[1]


def _plain_logits(head: Head, samples: Float[Array, "m n"]) -> Float[Array, "m c"]:
    logits = jnp.matmul(samples, head.weights.T, precision=HIGHEST)
    return logits if head.bias is None else logits + head.bias[None, :]


def _choose(logits: Float[Array, "m c"], rows_apart: Callable) -> Choice:
    """The nearest class of each sample of a block among all classes, from inner products of their rows."""
    num_classes = logits.shape[1]
    classes = jnp.arange(num_classes, dtype=jnp.int32)[None, :]

    def first(mask):
        return jnp.minimum(jnp.min(jnp.where(mask, classes, num_classes), axis=1), num_classes - 1)

    best = jnp.max(logits, axis=1)
    predicted = first(logits == best[:, None])
    apart, twins = rows_apart(predicted)
    offsets = formulas.offset(best[:, None], logits, 0)
    distances = formulas.boundary_distance(offsets, apart)
    distances = jnp.where(classes == predicted[:, None], jnp.inf, distances)
    least = jnp.min(distances, axis=1)
    nearest = first(distances == least[:, None])
    offset = jnp.take_along_axis(offsets, nearest[:, None], axis=1)[:, 0]
    return Choice(best, predicted, nearest, offset, least, twins)


def _measured(head: Head, samples: Float[Array, "m n"], choice: Choice) -> NearestClass:
    """The distance of the chosen class from the two rows themselves, which is exact and what derivatives go through."""
    best, predicted, nearest, tie, least, _ = choice
    reachable = least < jnp.inf
    normal = head.weights[predicted] - head.weights[nearest]
    offset = jnp.sum(normal * samples, axis=1)
    if head.bias is not None:
        ahead, behind = (head.bias[jnp.where(reachable, index, 0)] for index in (predicted, nearest))
        offset = offset + jnp.where(reachable, ahead - behind, 0)
    # A tie is one to the last digit, and no offset is negative; with the derivatives of the offset.
    offset = offset + jax.lax.stop_gradient(jnp.where(tie == 0, 0, jnp.maximum(offset, 0)) - offset)
    distance = jnp.where(reachable, formulas.boundary_distance(offset, safe_norm(normal)), jnp.inf)
    # NaN in the head or the sample is no proof that nothing can be reached.
    distance = jnp.where(jnp.isfinite(best) & ~jnp.isnan(least), distance, jnp.nan)
    attackability = formulas.attackability(distance, safe_norm(samples))
    return NearestClass(distance, jnp.where(distance < jnp.inf, nearest, -1), attackability)


def _table(weights: Float[Array, "c n"]) -> Callable:
    """Distances from the rows of the predicted classes to all rows, from a table of all of them."""
    distances, twins = _on_demand(weights)(jnp.arange(len(weights), dtype=jnp.int32))
    return lambda predicted: (distances[predicted], twins[predicted])


def _on_demand(weights: Float[Array, "c n"]) -> Callable:
    """The same computed for each block: (m, c) distances, good enough to rank by, and (m,) whether there is a twin.

    K_ii - 2 K_ik + K_kk has lost digits where rows are close; such rows are done again from their differences.
    """
    rows, squares = centred(weights), jnp.sum(jnp.square(weights), axis=-1)
    lengths, numbers = jnp.sum(jnp.square(rows), axis=-1), jnp.arange(len(weights), dtype=jnp.int32)

    def one_row(index, quick, close):
        # Centring rounds, and close rows differ by no more than that: their difference is that of the weights.
        return jax.lax.cond(
            close, lambda: jnp.sum(jnp.square(weights[index][None, :] - weights), axis=-1), lambda: quick
        )

    def apart(predicted):
        sums, others = lengths[predicted][:, None] + lengths[None, :], numbers[None, :] != predicted[:, None]
        quick = sums - 2 * jnp.matmul(rows[predicted], rows.T, precision=HIGHEST)
        close = jnp.any((quick < _CLOSE * sums) & others, axis=1)
        apart = jax.lax.cond(
            jnp.any(close), lambda: jax.lax.map(lambda row: one_row(*row), (predicted, quick, close)), lambda: quick
        )
        twins = (apart < _TWINS * (squares[predicted][:, None] + squares[None, :])) & others
        return safe_sqrt(apart), jnp.any(twins, axis=1)

    return apart
