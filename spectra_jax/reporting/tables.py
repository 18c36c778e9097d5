"""Tables: cells with sort keys, headings with units, and the same rows as a CSV at full precision."""

import base64
import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.reporting.formatting import choose_decimals, csv_text, format_number, is_number, scalar
from spectra_jax.reporting.items import Column, Estimate

_IN_WORDS = {"class": readable_class, "attribute": readable_attribute}


def table_view(title: str, columns: Sequence[str | Column], rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """A table as the template's plain values.

    Raises:
        ValueError: if a row has another number of cells than there are columns.
    """
    headings = [Column(c) if isinstance(c, str) else c for c in columns]
    cells = []
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {index} of table {title!r} has {len(row)} cells for {len(columns)} columns")
        cells.append([Estimate(*map(scalar, c)) if isinstance(c, Estimate) else scalar(c) for c in row])
    shown = [_column_view(column, [row[place] for row in cells]) for place, column in enumerate(headings)]
    return {
        "title": title,
        "headings": [
            {"name": c.name, "unit": c.unit, "definition": c.definition, "kind": c.kind, "numeric": numeric}
            for c, (numeric, _) in zip(headings, shown, strict=True)
        ],
        "rows": [[view[row] for _, view in shown] for row in range(len(cells))],
        "csv": csv_uri([c.name for c in headings], cells),
    }


def _column_view(column: Column, cells: list[Any]) -> tuple[bool, list[dict[str, Any]]]:
    values = [c.value if isinstance(c, Estimate) else c for c in cells]
    numeric = any(is_number(v) for v in values) and not any(isinstance(v, str) for v in values)
    decimals = column.decimals
    if decimals is None and column.unit != "%":
        whole = all(isinstance(v, int) or v is None for v in values)
        decimals = 0 if whole else choose_decimals(values)

    def text(value: Any) -> str:
        if column.kind and isinstance(value, str):
            return _IN_WORDS[column.kind](value)
        # The unit stands in the heading; "%" still has to turn the fraction into a percentage.
        shown = format_number(value, unit=column.unit if column.unit == "%" else "", decimals=decimals)
        return shown.removesuffix("\u00a0%")

    views = []
    for cell, value in zip(cells, values, strict=True):
        interval = f"{text(cell.low)} to {text(cell.high)}" if isinstance(cell, Estimate) else ""
        views.append({"text": text(value), "interval": interval, "key": _key(value)})
    return numeric, views


def _key(value: Any) -> str:
    """What a numeric column is sorted by; "" (not defined) always comes last."""
    if not is_number(value) or math.isnan(value):
        return ""
    return "Infinity" if value == math.inf else "-Infinity" if value == -math.inf else repr(value)


def csv_uri(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a CSV data URI; a column with an Estimate is followed by its low and high."""
    rows = list(rows)
    wide = [any(isinstance(row[i], Estimate) for row in rows) for i in range(len(names))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")

    def spread(cells: Iterable[Any], parts: Any) -> list[str]:
        return [text for cell, w in zip(cells, wide, strict=True) for text in (parts(cell) if w else [csv_text(cell)])]

    writer.writerow(spread(names, lambda name: [name, f"{name} low", f"{name} high"]))
    for row in rows:
        writer.writerow(spread(row, lambda c: map(csv_text, c if isinstance(c, Estimate) else (c, None, None))))
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(file.getvalue().encode('utf-8', 'replace')).decode()}"


def extremes_per_row(
    values: NDArray[np.floating], rows: Sequence[str], columns: Sequence[str], *, skip_diagonal: bool
) -> Iterator[tuple[str, str | None, float | None, str | None, float | None]]:
    """For each row of a matrix: the column of its lowest and of its highest finite entry, with the entries."""
    allowed = np.isfinite(values)
    if skip_diagonal:
        allowed &= ~np.eye(len(rows), dtype=bool)
    for name, row, usable in zip(rows, values, allowed, strict=True):
        places = np.flatnonzero(usable)
        if not places.size:
            yield name, None, None, None, None
            continue
        low, high = places[np.argmin(row[places])], places[np.argmax(row[places])]
        yield name, columns[low], float(row[low]), columns[high], float(row[high])
