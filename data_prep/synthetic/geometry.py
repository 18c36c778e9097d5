"""Small plane geometry on (points, 2) arrays: smooth curves, ribbons, frames. Image convention: y runs down."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]


class Frame(NamedTuple):
    """A local frame: `forward` and `side` are its axes in world coordinates, `origin` its zero."""

    origin: Points
    forward: Points
    side: Points

    def at(self, points: ArrayLike) -> Points:
        """World coordinates of local points (..., 2)."""
        local = np.asarray(points, float)
        return self.origin + local[..., :1] * self.forward + local[..., 1:] * self.side


def frame(origin: ArrayLike, degrees: float, *, side: int = 1) -> Frame:
    """A frame whose first axis points `degrees` above the horizontal, the second below it (`side` = -1: above)."""
    angle = math.radians(degrees)
    forward = np.array([math.cos(angle), -math.sin(angle)])
    below = np.array([math.sin(angle), math.cos(angle)])
    return Frame(np.asarray(origin, float), forward, side * below)


def smooth(points: ArrayLike, *, steps: int = 6) -> Points:
    """Closed Catmull-Rom curve through the points; a point given twice stays a sharp corner."""
    knots = np.asarray(points, float)
    before, after, beyond = np.roll(knots, 1, 0), np.roll(knots, -1, 0), np.roll(knots, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (array[:, None, :] for array in (before, knots, after, beyond))
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    return curve.reshape(-1, 2)


def bend(start: ArrayLike, control: ArrayLike, end: ArrayLike, *, steps: int = 9) -> Points:
    """Quadratic Bezier curve, ends included."""
    t = np.linspace(0, 1, steps)[:, None]
    return (
        (1 - t) ** 2 * np.asarray(start, float)
        + 2 * t * (1 - t) * np.asarray(control, float)
        + t**2 * np.asarray(end, float)
    )


def normals(line: Points) -> Points:
    """Unit normals of an open polyline, to the right of its direction in image coordinates (y down)."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    return np.stack([-tangent[:, 1], tangent[:, 0]], 1)


def ribbon(line: ArrayLike, width: ArrayLike) -> Points:
    """Polygon of an open polyline drawn with a width (scalar or one per point)."""
    spine = np.asarray(line, float)
    offset = normals(spine) * (np.asarray(width, float).reshape(-1, 1) / 2)
    return np.concatenate([spine + offset, (spine - offset)[::-1]])


def ellipse(center: ArrayLike, radius_x: float, radius_y: float | None = None, *, steps: int = 20) -> Points:
    """Polygon of an axis-parallel ellipse."""
    angle = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    radii = np.array([radius_x, radius_x if radius_y is None else radius_y])
    return np.asarray(center, float) + radii * np.stack([np.cos(angle), np.sin(angle)], 1)
