"""The formulas of Sections 2.5 and 2.6 that more than one module needs, one function each, for arrays of JAX or NumPy.

Other modules call them through this one, as `formulas.boundary_distance(...)`: who changes a formula changes it here.
Written once more in tests/test_formulas.py, as a table of every formula and who uses it.
"""

from typing import Any

from jaxtyping import Float, Int


def offset(rival_logits: Any, target_logits: Any, margin: Any) -> Any:
    """h_k = l_k - l_target + margin: what the constraint normal w_target - w_k must reach, of any shapes that fit."""
    return rival_logits - target_logits + margin


def offset_rounding(rival_logits: Any, target_logits: Any, margin: Any) -> Any:
    """The rounding error to expect in `offset`: that of the numbers it is made of; none for a class masked by -inf."""
    xp = rival_logits.__array_namespace__()
    sizes = abs(rival_logits) + abs(target_logits) + margin
    return xp.where(xp.isfinite(sizes), float(xp.finfo(rival_logits.dtype).eps) * sizes, 0)


def offsets(
    logits: Float[Any, "... c"], targets: Int[Any, "..."], margins: Float[Any, "..."] | Float[Any, ""]
) -> Float[Any, "... c"]:
    """`offset` of every rival; -inf for the target itself, which asks for nothing.

    The target wins by the margin exactly where every offset is <= 0.

    Args:
        logits: (..., c).
        targets: (...) class indices.
        margins: (...) required leads, or one for all.

    Returns:
        (..., c).
    """
    xp = logits.__array_namespace__()
    own = xp.take_along_axis(logits, targets[..., None], axis=-1)
    return xp.where(_is_target(logits, targets), -xp.inf, offset(logits, own, margins[..., None]))


def lead(logits: Float[Any, "... c"], targets: Int[Any, "..."]) -> Float[Any, "..."]:
    """How far the logit of the target is above its best rival's: l_target - max_{k != target} l_k.

    Args:
        logits: (..., c).
        targets: (...) class indices.

    Returns:
        (...), negative where another class wins.
    """
    xp = logits.__array_namespace__()
    own = xp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return own - xp.max(xp.where(_is_target(logits, targets), -xp.inf, logits), axis=-1)


def _is_target(logits: Any, targets: Any) -> Any:
    xp = logits.__array_namespace__()
    classes = xp.arange(logits.shape[-1], dtype=xp.int32).reshape([1] * targets.ndim + [-1])
    return classes == targets[..., None]


def crossing(offset: Any, slope: Any) -> Any:
    """The t at which slope * t reaches the offset, h_k / (w_target,f - w_k,f) (Eq. 1); the offset where slope is 0."""
    xp = slope.__array_namespace__()
    return offset / xp.where(slope == 0, 1, slope)


def interval(offset: Any, slope: Any) -> tuple[Any, Any]:
    """The t at which slope * t is at least the offset (Eq. 2-4).

    A rival of smaller slope than the target bounds t from below, one of larger slope from above; one of the same slope
    that is ahead is never overtaken.

    Returns:
        The ends of each interval: -inf or inf where it has none, (inf, inf) where no t is enough.
    """
    xp = slope.__array_namespace__()
    t = crossing(offset, slope)
    lower = xp.where(slope > 0, t, xp.where((slope == 0) & (offset > 0), xp.inf, -xp.inf))
    return lower, xp.where(slope < 0, t, xp.inf)


def nearest_to_zero(lower: Any, upper: Any) -> Any:
    """The number of [lower, upper] that is nearest to 0: the smallest change of a single attribute."""
    xp = lower.__array_namespace__()
    return xp.minimum(xp.maximum(lower, 0), upper)


def boundary_distance(offset: Any, length: Any) -> Any:
    """Distance to the boundary with one rival (Section 2.5.2): (l_k - l_target + margin) / ||w_target - w_k||.

    Args:
        offset: see `offset`.
        length: of the constraint normal; 0 where the two classes have equal weights.

    Returns:
        The distance; negative where the target is ahead, inf where no change of finite length makes up for the offset.
    """
    xp = length.__array_namespace__()
    unreachable = (offset == xp.inf) | ((length == 0) & (offset > 0))
    distance = xp.where(unreachable, 0, offset) / xp.where(length == 0, 1, length)  # NaN stays NaN
    return xp.where(unreachable, xp.inf, distance)


def attackability(distance: Any, length: Any) -> Any:
    """||e|| / ||delta|| (Eq. 5); inf on a boundary, 0 where no class can be reached.

    Args:
        distance: ||delta||, to the nearest other class.
        length: ||e||, of the attributes.
    """
    xp = distance.__array_namespace__()
    on_boundary = distance == 0
    return xp.where(on_boundary, xp.inf, length / xp.where(on_boundary, 1, distance))


def relative_margin(distance: Any, length: Any) -> Any:
    """||delta|| / ||e||, the reciprocal of the attackability (Eq. 5) that no rescaling of e or W changes.

    An erased sample, e = 0, counts as one of the smallest length above 0.
    """
    xp = distance.__array_namespace__()
    return distance / xp.maximum(length, float(xp.finfo(distance.dtype).tiny))


def relative_residual(residual: Any, length: Any, distance: Any) -> Any:
    """A violation of the optimality conditions, as a distance, relative to ||e|| + ||delta||.

    Args:
        residual: the largest violation.
        length: ||e||.
        distance: ||delta||; what is not finite is left out.
    """
    xp = residual.__array_namespace__()
    size = length + xp.where(xp.isfinite(distance), distance, 0)
    return residual / xp.where(size > 0, size, 1)
