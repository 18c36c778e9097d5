"""What the template needs to draw a counterfactual card: pictures, attributes as probabilities, words."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.reporting.formatting import choose_decimals, format_number, format_probability, scalar
from spectra_jax.reporting.images import (
    LARGEST_PNG_SIDE,
    data_uri,
    difference_picture,
    image_format,
    thumbnail,
    to_uint8,
)
from spectra_jax.reporting.items import AttributeChange, CounterfactualCard
from spectra_jax.reporting.tables import csv_uri

# Attributes whose probability moves by less stay folded, unless there would be fewer than _FEWEST.
_WORTH_SHOWING = 0.05
_FEWEST = 3
# A target that leads the next class by less has only just been reached.
_CLEAR_LEAD = 0.10
OUTCOMES = ("reached", "just reached", "not reached")


def card_view(card: CounterfactualCard, amplification: int | None, format: str) -> dict[str, Any]:
    """A card as the template's plain values."""
    pictures = _pictures(card, amplification, format)
    outcome, badge = _outcome(card)
    shown, absent, present = _attributes(card.attributes)
    distance = _finite(card.distance)
    return {
        "source": readable_class(card.source_class),
        "target": readable_class(card.target_class),
        "success": bool(card.success),
        "outcome": outcome,
        "badge": badge,
        "reason": card.reason,
        "steps": None if card.steps is None else format_number(card.steps),
        "distance": None if distance is None else {"key": distance, "text": format_number(distance)},
        "note": card.note,
        "pictures": pictures,
        "attributes": shown,
        "absent": absent,
        "present": present,
        "raw": _raw(card.attributes),
        "names": [row["name"] for row in shown],
        "probabilities": _probability_bars(card),
        "sort": {m.name: number for m in card.metrics if (number := _finite(m.value)) is not None},
    }


def section_view(cards: Sequence[dict[str, Any]], items: Sequence[CounterfactualCard]) -> dict[str, Any]:
    """What the cards of a section can be filtered and sorted by, and their CSV."""
    outcomes = {o: n for o in OUTCOMES if (n := sum(o in card["outcome"] for card in cards))}
    metrics = list(dict.fromkeys(name for card in cards for name in card["sort"]))
    rows = [
        (item.source_class, item.target_class, card["outcome"][-1], item.steps, item.distance, item.reason,
         *(card["sort"].get(name) for name in metrics))
        for item, card in zip(items, cards, strict=True)
    ]  # fmt: skip
    return {
        "outcomes": outcomes,
        "classes": sorted({name for card in cards for name in (card["source"], card["target"])}),
        "names": sorted({name for card in cards for name in card["names"]}),
        "sorts": [*(["distance"] if any(card["distance"] for card in cards) else []), *metrics],
        "longest": max((card["distance"]["key"] for card in cards if card["distance"]), default=None),
        "csv": csv_uri(["source", "target", "outcome", "steps", "distance", "reason", *metrics], rows),
    }


def picture_view(pixels: NDArray[np.uint8], caption: str, alt: str, *, format: str) -> dict[str, Any]:
    """A picture with its data URI and a thumbnail; small ones are shown with sharp pixels."""
    return {
        "uri": data_uri(pixels, format=format),
        "thumbnail": data_uri(thumbnail(pixels), format="jpeg"),
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


def _outcome(card: CounterfactualCard) -> tuple[list[str], str]:
    """Those of OUTCOMES that hold, and the last of them with the two probabilities that decided."""
    if not card.success:
        return ["not reached"], "✗ not reached"
    after = {name: p for name, value in card.probabilities_after if (p := _finite(value)) is not None}
    target = after.pop(card.target_class, None)
    rival = max(after.values(), default=None)
    if target is None or rival is None or target - rival >= _CLEAR_LEAD:
        return ["reached"], "✓ reached"
    both = " beat ".join(map(format_probability, (target, rival)))
    return ["reached", "just reached"], f"✓ just reached: {both}"


def _pictures(card: CounterfactualCard, amplification: int | None, format: str) -> list[dict[str, Any]]:
    source, target = map(readable_class, (card.source_class, card.target_class))
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


def _finite(value: Any) -> float | None:
    value = scalar(value)
    return None if value is None or not math.isfinite(value) else float(value)


def _probability(attribute: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * attribute))  # a sigmoid that never overflows


def _attributes(changes: Sequence[AttributeChange]) -> tuple[list[Any], list[Any], list[Any]]:
    """The attributes whose probability moves, and those that stay absent or present, the largest moves first.

    Where no image was made, the change is the requested one.
    """
    rows: list[dict[str, Any]] = []
    for change in changes:
        before = _finite(change.before)
        moved = _finite(change.requested if change.achieved is None else change.achieved)
        if before is None or moved is None:
            continue
        first, second = _probability(before), _probability(before + moved)
        flips = (second >= 0.5) - (first >= 0.5)
        rows.append(
            {
                "name": readable_attribute(change.name),
                "before": format_probability(first),
                "after": format_probability(second),
                "role": {1: "appears", -1: "disappears", 0: ""}[flips],
                "present": second >= 0.5,
                "move": abs(second - first),
                "first": _bar(first),
                "second": _bar(second),
            }
        )
    rows.sort(key=lambda row: (not row["role"], -row["move"]))
    count = max(_FEWEST, sum(bool(row["role"]) or row["move"] >= _WORTH_SHOWING for row in rows))
    rest = rows[count:]
    return rows[:count], [r for r in rest if not r["present"]], [r for r in rest if r["present"]]


def _raw(changes: Sequence[AttributeChange]) -> list[list[str]]:
    """Name, value before, requested and achieved change of each, the largest request first."""
    sizes = [abs(v) for c in changes for v in (_finite(c.requested), _finite(c.achieved)) if v is not None]
    decimals = min(choose_decimals(sizes), choose_decimals([max(sizes, default=0.0)]) + 1)
    return [
        [
            readable_attribute(change.name),
            format_number(change.before, decimals=decimals),
            *(format_number(v, signed=True, decimals=decimals) for v in (change.requested, change.achieved)),
        ]
        for change in sorted(changes, key=lambda c: -abs(_finite(c.requested) or 0.0))
    ]


def _bar(share: float | None) -> str:
    """The length of a bar in percent; "" for none."""
    width = 100 * min(max(share or 0.0, 0.0), 1.0)
    return f"{width:.1f}" if width else ""


def _probability_bars(card: CounterfactualCard) -> list[dict[str, Any]]:
    """Before and after for every class named in either list: source and target first."""
    before, after = dict(card.probabilities_before), dict(card.probabilities_after)
    role = {card.source_class: "predicted", card.target_class: "target"}
    order = {name: index for index, name in enumerate(role)}
    return [
        {
            "name": readable_class(name),
            "before": format_probability(before.get(name)),
            "after": format_probability(after.get(name)),
            "role": role.get(name, ""),
            "first": _bar(_finite(before.get(name))),
            "second": _bar(_finite(after.get(name))),
        }
        for name in sorted({**before, **after}, key=lambda name: order.get(name, 2))
    ]
