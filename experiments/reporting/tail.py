"""What to say beside the paper's mean attackability, which has no honest interval."""

import math
from collections.abc import Mapping
from typing import Any


def mean_note(summary: Mapping[str, Any], prefix: str) -> str:
    """A sentence on what the mean hangs on; figures that are missing, in summaries of older runs, are left out."""
    parts = ["mean, as the paper defines it"]
    for name, text in (
        ("top_1_percent_share", "the top 1 % of the samples hold {:.0%} of it"),
        ("tail_index", "tail index {:.2f}: over all samples the mean is infinite if it is <= 1"),
    ):
        value = summary.get(f"{prefix}/attackability_{name}")
        if value is not None and not math.isnan(value):
            parts.append(text.format(value))
    return "; ".join(parts)
