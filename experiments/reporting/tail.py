"""The note beside the paper's mean attackability, for which no honest interval exists."""

import math
from collections.abc import Mapping
from typing import Any


def mean_note(summary: Mapping[str, Any], prefix: str) -> str:
    """A note on what drives the mean; figures missing from the summaries of older runs are omitted."""
    parts = ["mean, as the paper defines it"]
    for name, text in (
        ("top_1_percent_share", "the top 1 % of the samples account for {:.0%} of it"),
        ("tail_index", "tail index {:.2f}: the population mean is infinite if it is <= 1"),
    ):
        value = summary.get(f"{prefix}/attackability_{name}")
        if value is not None and not math.isnan(value):
            parts.append(text.format(value))
    return "; ".join(parts)
