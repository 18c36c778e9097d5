"""Answers as tables."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from spectra_jax.checks import check_choice
from spectra_jax.counterfactuals.sentences import number, percent
from spectra_jax.extras import extra
from spectra_jax.names import readable_class
from spectra_jax.types import Status

if TYPE_CHECKING:
    from spectra_jax.counterfactuals.explanation import Explanation

_SHOWN_ROWS = 200
_MORE = '... and more rows: table("arrow") has all of them.'


def columns(explanation: "Explanation", *, limit: int | None = None) -> dict[str, list[Any]]:
    """A row for each attribute that changes, and one for each answer without any; columns without content left out.

    Args:
        explanation: of any size.
        limit: stop after the answer that completes as many rows.
    """
    rows: list[dict[str, Any]] = []
    for answer in explanation:
        if limit is not None and len(rows) >= limit:
            break
        head = {
            "sample": answer.sample,
            "class": answer.predicted,
            "target": answer.target,
            "answer": answer.rank + 1,
            "status": answer.status.name.lower(),
            "distance": answer.distance,
            "proven": answer.proven,
        }
        empty = {"attribute": None, "from": None, "to": None, "change": None}
        for change in answer.changes:
            rows.append(
                head
                | {
                    "attribute": change.name,
                    "from": change.before,
                    "to": change.after,
                    "change": change.after - change.before,
                    "achieved": change.achieved,
                    "spreads": change.in_spreads,
                    "probability_from": change.probability_before,
                    "probability_to": change.probability_after,
                }
            )
        if not answer.changes:
            rows.append(head | empty)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: [row.get(name) for row in rows] for name in names}
    return {name: values for name, values in table.items() if not _is_empty(values)}


def as_table(explanation: "Explanation", kind: str) -> Any:
    """See `Explanation.table`."""
    check_choice("kind", kind, ("text", "arrow", "pandas"))
    if kind == "text":
        return as_text(explanation)
    with extra("experiments"):
        import pyarrow

    table = pyarrow.table(columns(explanation))
    return table if kind == "arrow" else table.to_pandas()


def as_text(explanation: "Explanation") -> str:
    """A table for a terminal, and below it what could not be answered."""
    with extra("experiments"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

    names, rows = _shown(explanation)
    table = Table(*names, box=None, pad_edge=False, header_style="")
    for row in rows[:_SHOWN_ROWS]:
        table.add_row(*map(Text, row))  # names may contain what rich takes for markup
    buffer = io.StringIO()
    Console(file=buffer, width=160, color_system=None, highlight=False).print(table)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())
    return text + ("\n" + _MORE if len(rows) > _SHOWN_ROWS else "")


def as_html(explanation: "Explanation") -> str:
    """A table for a notebook."""
    with extra("experiments"):
        from markupsafe import escape

    names, rows = _shown(explanation)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[:_SHOWN_ROWS])
    more = f"<p>{escape(_MORE)}</p>" if len(rows) > _SHOWN_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _shown(explanation: "Explanation") -> tuple[list[str], list[list[str]]]:
    """Headings and cells as people read them; what repeats from row to row is said once."""
    table = columns(explanation, limit=_SHOWN_ROWS + 1)
    titles = {
        "sample": "sample", "class": "class", "target": "target", "answer": "answer", "distance": "distance",
        "attribute": "attribute", "from": "from", "to": "to", "achieved": "achieved", "spreads": "spreads",
    }  # fmt: skip
    if set(table.get("answer", [])) <= {1}:
        del titles["answer"]
    names = [name for name in titles if name in table]
    probabilities = "probability_from" in table
    rows, before = [], None
    for index in range(len(table.get("sample", []))):
        place = tuple(table[name][index] for name in ("sample", "target", "answer"))
        row = []
        for name in names:
            value = table[name][index]
            if name in ("sample", "class", "target", "answer", "distance") and place == before:
                row.append("")
            elif name == "distance":
                solved = table["status"][index] == Status.SOLVED.name.lower()
                bound = "" if table["proven"][index] else " (not proven)"
                row.append(number(value) + bound if solved else table["status"][index])
            elif name in ("class", "target"):
                row.append(readable_class(value))
            elif value is None or (isinstance(value, float) and np.isnan(value)):
                row.append("")
            else:
                row.append(number(value) if isinstance(value, float) else str(value))
        if probabilities:
            first, last = table["probability_from"][index], table["probability_to"][index]
            row.append("" if first is None or np.isnan(first) else f"{percent(first)} -> {percent(last)}")
        rows.append(row)
        before = place
    return names + (["probability"] if probabilities else []), rows


def _is_empty(values: list[Any]) -> bool:
    return all(value is None or (isinstance(value, float) and np.isnan(value)) for value in values)
