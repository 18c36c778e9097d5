"""Which single attribute reaches which class: a walk along the upper envelope of the logits (Section 2.5.1).

Along e + t 1_f the logits are c straight lines l_k + t W_kf. The classes that some t makes the winner are those on
the upper envelope of the lines, about six of 200 for each attribute. Starting at t = 0 with the predicted class,
the next class to the right is the steeper one whose line is met first, found by looking at every class once; the
left side is the right side of the mirrored lines. The t where a class is entered is the nearest feasible one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectra_jax.perturbations import formulas

# Samples walked side by side. On a CPU their running minima should stay in its caches; an accelerator wants more
# work in each of the many small steps.
_SAMPLES_ON_CPU, _SAMPLES_ON_ACCELERATOR = 16, 1024


class _Best(NamedTuple):
    """The best found so far: rank (b, c), inf where nothing was, and attribute (b, c), n where nothing was."""

    rank: Float[Array, "b c"]
    attribute: Int[Array, "b c"]


class _Corner(NamedTuple):
    """The class on top, its slope and its logit at t = 0, for every (sample, attribute)."""

    name: Int[Array, "b n"]
    slope: Float[Array, "b n"]
    logit: Float[Array, "b n"]


def choose_attributes(
    weights: Float[Array, "c n"],
    logits: Float[Array, "b c"],
    margin: Float[Array, ""],
    unit: Float[Array, " n"],
    *,
    margin_is_zero: bool | None,
) -> Int[Array, "b c"]:
    """The attribute f with the smallest |delta_f| / unit_f that alone makes each class win by the margin.

    Args:
        weights: (c, n), finite.
        logits: (b, c), finite or -inf.
        margin: required lead, in logits.
        unit: (n,) positive; 0 for an attribute that must not change.
        margin_is_zero: what is known of the margin while tracing; without one there is half as much to do.

    Returns:
        (b, c) int32, the lowest index among equals; -1 where there is none. Not differentiable.
    """

    def in_blocks(size: int):
        def run(weights, logits, margin, unit):
            count, num_classes = logits.shape
            block = min(size, count)
            padded = jnp.pad(logits, ((0, -count % block), (0, 0)), mode="edge").reshape(-1, block, num_classes)
            choose = functools.partial(_choose, weights, margin, unit, margin_is_zero=margin_is_zero)
            return jax.lax.map(choose, padded).reshape(-1, num_classes)[:count]

        return run

    if not logits.shape[0]:
        return jnp.zeros(logits.shape, jnp.int32)
    return jax.lax.platform_dependent(
        weights, logits, margin, unit, cpu=in_blocks(_SAMPLES_ON_CPU), default=in_blocks(_SAMPLES_ON_ACCELERATOR)
    )


def _choose(weights, margin, unit, logits, *, margin_is_zero: bool | None) -> Int[Array, "b c"]:
    num_attributes = weights.shape[1]
    # A class that is on top already needs no change, whatever the attribute.
    nothing = (logits == jnp.max(logits, axis=-1, keepdims=True)) & (margin == 0) & jnp.any(unit > 0)
    best = _Best(
        rank=jnp.where(nothing, 0, jnp.inf).astype(logits.dtype),
        attribute=jnp.where(nothing, jnp.argmax(unit > 0), num_attributes).astype(jnp.int32),
    )

    def one_side(side, best):
        slopes = jnp.where(side == 0, weights, -weights)
        return _walk_right(slopes, logits, margin, unit, best, margin_is_zero=margin_is_zero)

    best = jax.lax.fori_loop(0, 2, one_side, best)
    return jnp.where(best.attribute < num_attributes, best.attribute, -1)


def _walk_right(slopes, logits, margin, unit, best: _Best, *, margin_is_zero: bool | None) -> _Best:
    """Visits the classes that are on top at some t >= 0, one corner of every (sample, attribute) at a time."""
    num_classes, num_attributes = slopes.shape
    shape = (logits.shape[0], num_attributes)
    samples = jnp.arange(shape[0], dtype=jnp.int32)[:, None]
    numbers = jnp.arange(num_attributes, dtype=jnp.int32)[None, :]
    units = jnp.broadcast_to(unit, shape)
    everywhere = jnp.full(shape, jnp.inf, logits.dtype)
    nobody = jnp.full(shape, num_classes, jnp.int32)

    def over_classes(turn, start):
        def body(k, state):
            return turn(k, jnp.broadcast_to(slopes[k], shape), jnp.broadcast_to(logits[:, k][:, None], shape), state)

        return jax.lax.fori_loop(0, num_classes, body, start)

    def at(name) -> _Corner:
        return _Corner(name, jnp.take_along_axis(slopes, name, 0), jnp.take_along_axis(logits, name, 1))

    def meeting(here: _Corner, slope, logit):
        """t at which a steeper line overtakes the one on top."""
        rise = slope - here.slope
        return jnp.where(rise > 0, formulas.crossing(formulas.offset(here.logit, logit, 0), rise), jnp.inf)

    def steepest(belongs):
        """The steepest of the lines that belong, the first among equals."""

        def turn(k, slope, logit, state):
            best_slope, name = state
            better = belongs(slope, logit) & (slope > best_slope)
            return jnp.where(better, slope, best_slope), jnp.where(better, k, name)

        return over_classes(turn, (-everywhere, nobody))[1]

    def first_meeting(here: _Corner):
        """The smallest t of a meeting, whose it is, and whether several lines share it."""

        def turn(k, slope, logit, state):
            first, name, shared = state
            t = meeting(here, slope, logit)
            return jnp.minimum(first, t), jnp.where(t < first, k, name), (t == first) | (shared & (t > first))

        return over_classes(turn, (everywhere, here.name, jnp.zeros(shape, bool)))

    def interval(here: _Corner):
        """The t at which the line on top leads all others by the margin; lower > upper where there are none."""

        def turn(k, slope, logit, state):
            ends = formulas.interval(formulas.offset(logit, here.logit, margin), here.slope - slope)
            # The line on top is no rival of its own.
            lower, upper = jnp.where(k == here.name, -jnp.inf, ends[0]), ends[1]
            return jnp.maximum(state[0], lower), jnp.minimum(state[1], upper)

        return over_classes(turn, (-everywhere, everywhere))

    def rank(t):
        """|t| in units of the attribute, inf where it does not count."""
        counts = (units > 0) & (jnp.abs(t) < jnp.inf)
        return jnp.where(counts, jnp.abs(t) / jnp.where(counts, units, 1), jnp.inf)

    def enter(best: _Best, name, ranks) -> _Best:
        """Takes one class of each (sample, attribute) into account."""
        least = best.rank.at[samples, name].min(ranks)
        lowest = jnp.where(least < best.rank, num_attributes, best.attribute)
        won = (ranks == least[samples, name]) & (ranks < jnp.inf)
        return _Best(least, lowest.at[samples, name].min(jnp.where(won, numbers, num_attributes)))

    def enter_all(best: _Best, here: _Corner, first) -> _Best:
        """Takes every class into account that meets the line on top at the same t."""
        ranks = rank(first)

        def turn(k, slope, logit, best):
            mine = jnp.where(meeting(here, slope, logit) == first, ranks, jnp.inf)
            least = jnp.min(mine, axis=1)
            attribute = jnp.min(jnp.where((mine == least[:, None]) & (mine < jnp.inf), numbers, num_attributes), axis=1)
            old = _Best(best.rank[:, k], best.attribute[:, k])
            attribute = jnp.where(least > old.rank, num_attributes, attribute)
            kept = jnp.where(least < old.rank, num_attributes, old.attribute)
            return _Best(
                best.rank.at[:, k].set(jnp.minimum(least, old.rank)),
                best.attribute.at[:, k].set(jnp.minimum(attribute, kept)),
            )

        return over_classes(turn, best)

    def step(state):
        name, best, _ = state
        here = at(name)
        first, following, shared = first_meeting(here)
        some_shared = jnp.any(shared & (first < jnp.inf))

        def touching(best):
            # Without a margin it is enough to touch the envelope, in one point.
            return jax.lax.cond(
                some_shared,
                lambda best: enter_all(best, here, first),
                lambda best: enter(best, following, rank(first)),
                best,
            )

        def leading(best):
            lower, upper = interval(here)
            nearest = formulas.nearest_to_zero(lower, upper)
            return enter(best, name, jnp.where(lower <= upper, rank(nearest), jnp.inf))

        if margin_is_zero is None:
            best = jax.lax.cond(margin == 0, touching, leading, best)
        else:
            best = touching(best) if margin_is_zero else leading(best)
        following = jax.lax.cond(
            some_shared,
            lambda: steepest(lambda slope, logit: meeting(here, slope, logit) == first),
            lambda: following,
        )
        more = first < jnp.inf
        return jnp.where(more, following, name), best, jnp.any(more)

    top = jnp.broadcast_to(jnp.max(logits, axis=-1, keepdims=True), shape)
    start = steepest(lambda slope, logit: logit == top)
    _, best, _ = jax.lax.while_loop(lambda state: state[2], step, (start, best, jnp.asarray(True)))
    return best
