"""Spots, stripes and head markings as polygons in the local frame of their part (see anatomy.py for the frames)."""

import numpy as np

from data_prep.synthetic.geometry import Points, bend, ellipse, ribbon


def _spots(u_range: tuple[float, float], v_range: tuple[float, float], *, step: float, radius: float) -> list[Points]:
    rows = np.arange(v_range[0], v_range[1] + 1e-9, 0.87 * step)
    return [
        ellipse((u, v), radius, 0.85 * radius, steps=10)
        for row, v in enumerate(rows)
        for u in np.arange(u_range[0] + 0.5 * step * (row % 2), u_range[1] + 1e-9, step)
    ]


def trunk(part: str, pattern: str, depth: float) -> list[Points]:
    """Polygons in the trunk frame (forward, down) for back, breast or belly; `depth` is the trunk's half-height."""
    u_range, v_range = {
        "back": ((-0.95, 0.75), (-1.05 * depth, -0.1 * depth)),
        "breast": ((0.2, 1.0), (-0.8 * depth, 1.0 * depth)),
        "belly": ((-0.95, 0.55), (-0.2 * depth, 1.05 * depth)),
    }[part]
    middle = 0.5 * (u_range[0] + u_range[1])
    if pattern == "spotted":
        return _spots(u_range, v_range, step=0.26, radius=0.078)
    if pattern == "striped":
        if part == "breast":  # streaks run down the front, bars cross back and belly
            return [ribbon([(u_range[0], v), (u_range[1], v)], 0.085) for v in np.arange(*v_range, 0.21)]
        return [ribbon([(u, v_range[0]), (u + 0.06, v_range[1])], 0.09) for u in np.arange(*u_range, 0.23)]
    if pattern == "multi-colored":
        if part == "belly":  # the flank's rear half
            return [np.array([(-1.1, -depth), (middle, -depth), (middle, 1.2 * depth), (-1.1, 1.2 * depth)])]
        if part == "breast":  # a broad band across the lower breast
            return [np.array([(0.1, 0.28 * depth), (1.1, 0.28 * depth), (1.1, 1.2 * depth), (0.1, 1.2 * depth)])]
        return [np.array([(-1.1, -1.3 * depth), (middle, -1.3 * depth), (middle, 0.2), (-1.1, 0.2)])]
    return []


def wing(pattern: str, depth: float, tip: float) -> list[Points]:
    """Polygons in the trunk frame; `tip` is the (negative) forward coordinate of the wing's tip."""
    if pattern == "spotted":
        return _spots((tip, 0.5), (-0.5 * depth, 0.8 * depth), step=0.27, radius=0.08)
    if pattern == "striped":
        return [ribbon(bend((u + 0.14, -0.7 * depth), (u, 0.1), (u + 0.1, 0.95 * depth)), 0.13) for u in (0.12, -0.22)]
    if pattern == "multi-colored":
        edge = bend((-0.02, -0.7 * depth), (-0.28, 0.1 * depth), (-0.16, 1.0 * depth))
        return [np.concatenate([edge, [(tip - 0.3, 1.0 * depth), (tip - 0.3, -0.7 * depth)]])]
    return []


def tail(pattern: str, length: float) -> list[Points]:
    """Polygons in the tail frame (backward, down)."""
    if pattern == "spotted":
        return _spots((0.3 * length, 1.25 * length), (-0.42, 0.05), step=0.22, radius=0.07)
    if pattern == "striped":
        return [ribbon([(f * length, -0.6), (f * length, 0.6)], 0.1) for f in np.arange(0.36, 1.3, 0.21 / length)]
    if pattern == "multi-colored":
        return [np.array([(0.68 * length, -0.7), (1.4 * length, -0.7), (1.4 * length, 0.7), (0.68 * length, 0.7)])]
    return []


def head(pattern: str, eye: float) -> list[Points]:
    """Polygons in the head frame (forward, up; head radius 1) of one of CUB's head patterns.

    "plain" and "capped" need no ink (a cap is the crown's and forehead's own colour) and a crest is a shape of its own.
    """
    if pattern == "spotted":
        return _spots((-0.95, 0.95), (-0.85, 0.95), step=0.36, radius=0.105)
    if pattern == "malar":
        return [ribbon(bend((0.88, -0.14), (0.45, -0.52), (-0.20, -0.86)), [0.16, *[0.26] * 8])]
    if pattern == "masked":
        top = bend((1.05, 0.30), (0.3, 0.66), (-0.66, 0.26))
        return [np.concatenate([top, bend((-0.60, -0.10), (0.3, -0.42), (1.05, -0.10))])]
    if pattern == "unique_pattern":  # a round cheek patch and a chin strap
        return [ellipse((-0.12, -0.24), 0.34, 0.30), ribbon(bend((0.86, -0.42), (0.4, -0.74), (-0.3, -0.95)), 0.16)]
    if pattern == "eyebrow":
        return [ribbon(bend((0.98, 0.26), (0.36, 0.42 + 1.5 * eye), (-0.72, 0.26)), 0.2)]
    if pattern == "eyering":
        return [ellipse((0.36, 0.16), 1.62 * eye)]
    if pattern == "eyeline":
        return [ribbon(bend((1.02, 0.06), (0.3, 0.2), (-0.8, 0.02)), 0.2)]
    if pattern == "striped":
        angle = np.radians(np.linspace(20, 155, 12))
        arc = np.stack([np.cos(angle), np.sin(angle)], 1)
        return [ribbon(0.86 * arc, 0.13), ribbon(0.58 * arc + [0, 0.02], 0.12)]
    return []
