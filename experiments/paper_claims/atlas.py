"""The atlas of attributes: how far each can be moved, at what cost, where, and whether its sign is meaningful."""

from typing import Any

import numpy as np

from experiments.paper_claims.comparisons import CLEAR, Material
from experiments.paper_claims.statistics import agreement
from experiments.runs.part_names import group_of


def make_atlas(material: Material, spread: np.ndarray) -> dict[str, Any]:
    """One row per attribute: how far it can be moved, at which price, where, and whether its sign means something."""
    run, singles, columns = material.run, material.singles, material.columns
    info, count = run.info, len(spread)
    weights, truth = np.asarray(run.model.head(run.params).weights), info.class_attributes
    labels = run.dataset.arrays("test", image_size=8).attributes
    per_length = columns["achieved"] / np.where(columns["length"] > 0, columns["length"], np.nan)
    sources = {
        "reached": np.asarray(singles.success, float),
        "achieved_over_requested": columns["ratio"],
        "moved_per_l2": per_length,
        "lift": columns["lift"],
        "lift_elsewhere": columns["lift_elsewhere"],
        "percentile": columns["percentile"],
        "fine_detail_share": columns["fine"],
        "colour_cosine": columns["toward"],
    }
    if material.witness is not None:
        moved = material.witness[np.arange(len(singles.index)), singles.attribute] * singles.sign
        sources["witness_agreement"] = agreement(moved, np.ones(len(moved)))
    atlas: dict[str, Any] = {
        "attribute": list(info.attribute_names),
        "group": [group_of(name) for name in info.attribute_names],
        "part": [" and ".join(material.regions.parts_of(name)) for name in info.attribute_names],
        "frequency": labels.mean(axis=0),
        "spread": spread,
        "requests": np.bincount(singles.attribute, minlength=count),
    }
    for name, values in sources.items():
        known = np.isfinite(values)
        total = np.bincount(singles.attribute[known], weights=values[known], minlength=count)
        number = np.bincount(singles.attribute[known], minlength=count)
        atlas[name] = np.divide(total, number, out=np.full(count, np.nan), where=number > 0)
    signs = np.full(count, np.nan)
    for f in range(count):
        differ = truth[:, None, f] - truth[None, :, f]
        clear = np.abs(differ) >= CLEAR
        if clear.any():
            signs[f] = np.nanmean(agreement(weights[:, None, f] - weights[None, :, f], differ)[clear])
    atlas["sign_agreement"] = signs
    return atlas
