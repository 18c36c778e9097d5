"""Long tables and histograms that a reader filters: the first rows as HTML, all rows as data for the page's script."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from spectra_jax.reporting.formatting import format_number, is_number
from spectra_jax.reporting.images import data_uri, thumbnail, to_uint8
from spectra_jax.reporting.items import Column
from spectra_jax.reporting.tables import table_view


def listing_view(
    title: str,
    columns: Sequence[str | Column],
    rows: Iterable[Sequence[Any]],
    thumbnails: Mapping[int, ArrayLike],
    shown: int,
) -> dict[str, Any]:
    """A listing as the template's plain values: `table_view` of the first rows, and every row as JSON."""
    rows = [tuple(row) for row in rows]
    view = table_view(title, columns, rows)
    texts = [[row[place]["text"] for row in view["rows"]] for place in range(len(columns))]
    data = [
        _column_data(heading, [row[place] for row in view["rows"]], texts[place])
        for place, heading in enumerate(view["headings"])
    ]
    pictures = [
        data_uri(thumbnail(to_uint8(thumbnails[row]).pixels), format="jpeg") if row in thumbnails else ""
        for row in range(min(shown, len(rows)))
    ]
    return {
        **{name: view[name] for name in ("title", "headings")},
        "rows": view["rows"][:shown],
        "num_rows": len(rows),
        "pictures": pictures if any(pictures) else [],
        "data": Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")),
    }


def _column_data(heading: Mapping[str, Any], cells: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """A column for the script: numbers as sort keys and text, names as positions in a list of the different ones."""
    if heading["numeric"]:
        return {
            "name": heading["name"],
            "percent": heading["unit"] == "%",
            "keys": [cell["key"] for cell in cells],
            "texts": texts,
        }
    names = list(dict.fromkeys(texts))
    place = {name: index for index, name in enumerate(names)}
    return {
        "name": heading["name"],
        "names": names,
        "places": [place[text] for text in texts],
        "opens": heading["kind"] == "class",
    }


def histogram_view(
    counts: ArrayLike, edges: ArrayLike, *, value_name: str, counted: str, unit: str, marks: Mapping[str, float]
) -> dict[str, Any]:
    """A histogram as the template's plain values: bars in percent of the highest, with words and the range they count.

    Raises:
        ValueError: unless there is one edge more than counts, and the edges increase.
    """
    sizes, ends = np.asarray(counts), np.asarray(edges, np.float64)
    if sizes.ndim != 1 or ends.shape != (len(sizes) + 1,) or not (np.diff(ends) > 0).all():
        raise ValueError(f"a histogram needs n counts and n + 1 increasing edges; got {sizes.shape} and {ends.shape}")
    highest = max(sizes.max(initial=0), 1)
    bars = []
    for place, size in enumerate(map(int, sizes)):
        low, high = map(float, ends[place : place + 2])
        if place == len(sizes) - 1:
            high = math.nextafter(high, math.inf)  # the last bar counts its end too
        words = " to ".join(format_number(end, unit=unit) for end in (low, high))
        bars.append(
            {
                "height": f"{100 * size / highest:.1f}",
                "range": f"{low!r}..{high!r}",
                "words": f"{value_name} {words}: {size:,} {counted}",
                "count": size,
            }
        )
    span = ends[-1] - ends[0]
    shown = [
        {"name": name, "text": format_number(value, unit=unit), "left": f"{100 * (value - ends[0]) / span:.1f}"}
        for name, value in marks.items()
        if is_number(value) and ends[0] <= value <= ends[-1]
    ]
    first, last = (format_number(end, unit=unit) for end in (ends[0], ends[-1]))
    return {"bars": bars, "marks": shown, "low": first, "high": last, "highest": f"{highest:,}", "name": value_name}
