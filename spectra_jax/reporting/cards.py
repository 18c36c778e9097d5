"""What the template needs to draw a counterfactual card: pictures, bar lengths, words."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectra_jax.reporting.formatting import choose_decimals, format_number, scalar
from spectra_jax.reporting.images import LARGEST_PNG_SIDE, data_uri, difference_picture, image_format, to_uint8
from spectra_jax.reporting.items import AttributeChange, CounterfactualCard


def card_view(
    card: CounterfactualCard, *, amplification: int | None, max_attributes: int, format: str
) -> dict[str, Any]:
    """A card as the template's plain values."""
    ordered = sorted(card.attributes, key=_size, reverse=True)
    return {
        "source": card.source_class,
        "target": card.target_class,
        "success": bool(card.success),
        "reason": card.reason,
        "steps": None if card.steps is None else format_number(card.steps),
        "note": card.note,
        "pictures": _pictures(card, amplification, format),
        "attributes": _attribute_bars(ordered[:max_attributes]),
        "more_attributes": len(ordered[max_attributes:]),
        "probabilities": _probability_bars(card),
    }


def picture_view(pixels: NDArray[np.uint8], caption: str, alt: str, *, format: str) -> dict[str, Any]:
    """A picture with its data URI; small ones are shown with sharp pixels."""
    uri = data_uri(pixels, format=format)
    return {
        "uri": uri,
        "caption": caption,
        "alt": alt,
        "note": "",
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "sharp": max(pixels.shape[:2]) <= LARGEST_PNG_SIDE,
        "extension": image_format(pixels) if format == "auto" else format,
    }


def not_finite_note(count: int) -> str:
    """A remark on values that had to be drawn grey; "" if there were none."""
    return f"{count:,} values were not finite and are drawn grey" if count else ""


def _pictures(card: CounterfactualCard, amplification: int | None, format: str) -> list[dict[str, Any]]:
    source, target = (name.replace("_", " ") for name in (card.source_class, card.target_class))
    before = to_uint8(card.original)
    views = [picture_view(before.pixels, "Original", f"Original image, classified as {source}", format=format)]
    views[0]["note"] = not_finite_note(before.num_not_finite)
    if card.counterfactual is None:
        return views
    after = to_uint8(card.counterfactual)
    outcome = f"classified as {target}" if card.success else f"which did not reach {target}"
    change = difference_picture(card.original, card.counterfactual, amplification=amplification)
    views.append(picture_view(after.pixels, "Counterfactual", f"Counterfactual image, {outcome}", format=format))
    views[1]["note"] = not_finite_note(after.num_not_finite)
    largest = format_number(change.largest, unit="%")
    alt = f"Counterfactual minus original, times {change.amplification}, around grey; largest change {largest}"
    views.append(picture_view(change.pixels, f"Difference × {change.amplification}", alt, format=format))
    views[2]["note"] = f"largest change {largest}"
    return views


def _size(change: AttributeChange) -> float:
    value = scalar(change.requested)
    return -1.0 if value is None or math.isnan(value) else abs(value)


def _finite(value: Any) -> float | None:
    value = scalar(value)
    return None if value is None or not math.isfinite(value) else float(value)


def _attribute_bars(changes: Sequence[AttributeChange]) -> list[dict[str, Any]]:
    """Bars around zero on one scale for the whole card."""
    sizes = [abs(v) for c in changes for v in (_finite(c.requested), _finite(c.achieved)) if v is not None]
    scale = max(sizes, default=0.0) or 1.0
    decimals = min(choose_decimals(sizes), choose_decimals([scale]) + 1)

    def bar(value: Any) -> dict[str, Any]:
        half = 50 * (_finite(value) or 0.0) / scale
        text = format_number(value, signed=True, decimals=decimals)
        return {"text": text, "left": f"{50 + min(half, 0):.1f}", "width": f"{abs(half):.1f}" if half else ""}

    def row(change: AttributeChange) -> dict[str, Any]:
        before = format_number(change.before, decimals=decimals)
        return {"name": change.name, "before": before, "first": bar(change.requested), "second": bar(change.achieved)}

    return [row(change) for change in changes]


def _probability_bars(card: CounterfactualCard) -> list[dict[str, Any]]:
    """Before and after for every class named in either list: source and target first."""
    before, after = dict(card.probabilities_before), dict(card.probabilities_after)
    order = {name: index for index, name in enumerate((card.source_class, card.target_class))}
    names = sorted({**before, **after}, key=lambda name: order.get(name, 2))

    def bar(values: dict[str, Any], name: str) -> dict[str, Any]:
        width = 100 * min(max(_finite(values.get(name)) or 0.0, 0.0), 1.0)
        text = format_number(values.get(name), unit="%")
        return {"text": text, "left": "0", "width": f"{width:.1f}" if width else ""}

    role = {card.source_class: "predicted", card.target_class: "target"}
    return [
        {"name": name, "role": role.get(name, ""), "first": bar(before, name), "second": bar(after, name)}
        for name in names
    ]
