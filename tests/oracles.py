"""Nearest points by Lawson and Hanson's reduction to non-negative least squares, without the library's solvers."""

import numpy as np
from scipy.optimize import nnls


def nearest_point(normals, offsets):
    """The shortest d with normals @ d >= offsets, and its length; inf where there is none."""
    asked = offsets > -np.inf
    normals, offsets = normals[asked], offsets[asked]
    if not len(normals) or np.all(offsets <= 0):
        return np.zeros(normals.shape[1]), 0.0
    lengths = np.linalg.norm(normals, axis=1)
    lengths[lengths == 0] = 1
    normals, offsets = normals / lengths[:, None], offsets / lengths
    scale = np.abs(offsets).max()
    system = np.vstack([normals.T, offsets / scale])
    solution, length = nnls(system, np.append(np.zeros(normals.shape[1]), 1.0), maxiter=10_000)
    left = system @ solution
    left[-1] -= 1
    if length < 1e-9:
        return np.full(normals.shape[1], np.inf), np.inf
    delta = -left[:-1] / left[-1] * scale
    return delta, float(np.linalg.norm(delta))


def constraints_of(weights, bias, sample, target, margin=0.0):
    """Constraint normals and offsets of the target's rivals, in float64."""
    weights, sample = np.asarray(weights, float), np.asarray(sample, float)
    logits = weights @ sample + (0 if bias is None else np.asarray(bias, float))
    return np.delete(weights[target] - weights, target, 0), np.delete(logits - logits[target] + margin, target)


def region_distance(head, sample, target, margin=0.0, mutable=None):
    """Distance to the region of a target; inf where it is empty."""
    normals, offsets = constraints_of(head.weights, head.bias, sample, target, margin)
    return nearest_point(normals if mutable is None else normals * mutable, offsets)[1]


def region_distances(head, samples, margin=0.0, mutable=None):
    """(b, c) distances of all samples to the regions of all classes."""
    classes = range(len(head.weights))
    return np.array([[region_distance(head, row, target, margin, mutable) for target in classes] for row in samples])
