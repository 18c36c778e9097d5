"""The report builder: sections in the order they are added, written as one self-contained HTML file."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from spectra_jax.names import readable_class
from spectra_jax.reporting import cards, figures, images, listing, page, plots, provenance, tables
from spectra_jax.reporting.formatting import format_number, is_number, scalar
from spectra_jax.reporting.glossary import Definition, Terms
from spectra_jax.reporting.items import Column, CounterfactualCard, Example, Metric, Opens, Picture

# More numbers than this in large type are no headline: the others are one click away.
_TILES_SHOWN = 6


class Report:
    """Collects sections and writes them as one HTML file that needs no network.

    Example:
        report = Report("SPECTRA quickstart", subtitle="cnn on synthetic birds, seed 0")
        report.finding("24 of 24 images changed their class", [("What you see", "The original, and the image found.")])
        report.headline([Metric("Class accuracy", 0.912, "%", interval=(0.90, 0.92))])
        report.counterfactuals(cards)
        report.fold_rest()
        report.curves("Training", rows)
        report.provenance(seed=0, seconds=184.2)
        report.write(run_dir / "report.html")

    Args:
        title: the page's heading.
        subtitle: one line below it: the model, the data, the seed.
    """

    def __init__(self, title: str, *, subtitle: str = "") -> None:
        self._title, self._subtitle = title, subtitle
        self._sections: list[dict[str, Any]] = []
        self._terms = Terms()
        self._folded = False
        # Taken by the template; all its other ids contain "--", which no slug does.
        self._anchors = {"main", "glossary", "provenance", "announce", "tip", "viewer"}
        self._provenance: dict[str, str] | None = None

    def finding(self, sentence: str, points: Iterable[tuple[str, str]] = (), examples: Sequence[Example] = ()) -> None:
        """The first thing to read: what was found, what it means, and one or two examples as pictures.

        Args:
            sentence: the finding.
            points: a few words and a sentence each, such as ("What it does not mean", "...").
            examples: cards, best also given to `counterfactuals`: their titles then lead there.
        """
        drawn = [
            {"title": item.title, "key": id(item.card), "card": cards.card_view(item.card, None, "auto")}
            for item in examples
        ]
        self._add("finding", "In short", caption="", sentence=sentence, points=list(points), examples=drawn)

    def fold_rest(self) -> None:
        """Sections added from here on show only their heading until they are opened."""
        self._folded = True

    def headline(self, metrics: Sequence[Metric], *, title: str = "Results", caption: str = "") -> None:
        """Numbers in large type, the most important first; if there are more than six, all but four are folded."""
        tiles = [self._metric(m) for m in metrics]
        shown = len(tiles) if len(tiles) <= _TILES_SHOWN else _TILES_SHOWN - 2
        self._add("tiles", title, caption=caption, tiles=tiles[:shown], more=tiles[shown:])

    def counterfactuals(
        self,
        items: Sequence[CounterfactualCard],
        *,
        title: str = "Counterfactuals",
        caption: str = "",
        amplification: int | None = None,
        format: str = "auto",
    ) -> None:
        """Cards of original, counterfactual, amplified difference, attributes and class probabilities.

        A card is one line until it is opened; a reader filters and sorts them.

        Args:
            items: one card each, drawn in this order; failed ones are marked and counted.
            title: heading of the section.
            caption: text below it.
            amplification: factor of every difference picture; None chooses one per card. It is stated on the card.
            format: "png" (exact), "jpeg" (smaller), or "auto": JPEG above 128 pixels.
        """
        for name in ("Counterfactual", "Just reached", "Requested change", "Achieved change", "Difference picture"):
            self._terms.anchor(name)
        drawn = []
        for item in items:
            card = cards.card_view(item, amplification, format)
            drawn.append(card | {"key": id(item), "metrics": [self._metric(m) for m in item.metrics]})
        lossy = any(p["extension"] == "jpeg" for card in drawn for p in card["pictures"])
        section = cards.section_view(drawn, items)
        self._add("cards", title, caption=caption, cards=drawn, lossy=lossy, **section)

    def curves(
        self,
        title: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        x: str = "step",
        names: Sequence[str] | None = None,
        caption: str = "",
    ) -> None:
        """Training curves, one panel per metric and one line per split, from the rows of a metrics.jsonl.

        Args:
            title: heading of the section.
            rows: mappings with `x`, optionally "split", and name: number.
            x: the key of the horizontal axis; a row without it counts by its index.
            names: metrics to draw, in this order; None draws all.
            caption: text below the heading.
        """
        lines = plots.collect_series(rows, x=x, names=names)
        drawings = []
        for metric in dict.fromkeys(line.metric for line in lines):
            panel = [line for line in lines if line.metric == metric]
            left_out = sum(line.num_not_finite for line in panel)
            total = left_out + sum(len(line.y) for line in panel)
            note = f"{left_out} of {total} values are not finite and not drawn." if left_out else ""
            alt = plots.describe_curves(panel, x=x)
            drawings.append(self._drawing(plots.in_words(metric), plots.curve_figure(panel, x=x), alt, note))
        columns = ["Metric", "Split", "Points", "First", "Last", "Lowest", "Highest"]
        summary = [
            (
                plots.in_words(s.metric),
                s.split,
                len(s.y),
                *((s.y[0], s.y[-1], min(s.y), max(s.y)) if s.y else (None,) * 4),
            )
            for s in lines
        ]
        table = self._table(f"{title} as numbers", columns, summary)
        table["csv"] = tables.csv_uri(
            ["metric", "split", x, "value"],
            [(s.metric, s.split, a, b) for s in lines for a, b in zip(s.x, s.y, strict=True)],
        )
        self._add("plots", title, caption=caption, drawings=drawings, table=table)

    def table(
        self,
        title: str,
        columns: Sequence[str | Column],
        rows: Iterable[Sequence[Any]],
        *,
        caption: str = "",
    ) -> None:
        """A sortable table with its CSV.

        Args:
            title: heading of the section.
            columns: names, or Columns with unit and definition.
            rows: as many cells each: text, number, None, bool or Estimate; the first one names the row.
            caption: text below the heading.
        """
        self._add("table", title, caption=caption, table=self._table(title, columns, rows))

    def listing(
        self,
        title: str,
        columns: Sequence[str | Column],
        rows: Iterable[Sequence[Any]],
        *,
        thumbnails: Mapping[int, ArrayLike] | None = None,
        shown: int = 20,
        files: Mapping[str, str] | None = None,
        caption: str = "",
    ) -> None:
        """A table of any length: its first rows, and others when a reader sorts, filters or asks for more.

        Args:
            title: heading of the section; `Opens` finds it by this.
            columns: as of `table`; those of kind "class" can be chosen from.
            rows: as of `table`, without Estimates.
            thumbnails: row -> image, of rows that are shown at first.
            shown: how many rows are shown at first.
            files: name of a file beside the report -> what it holds, to be linked.
            caption: text below the heading.
        """
        view = listing.listing_view(title, columns, rows, thumbnails or {}, shown)
        self._add("listing", title, caption=caption, files=files or {}, listing=self._with_terms(view))

    def histogram(
        self,
        title: str,
        counts: ArrayLike,
        edges: ArrayLike,
        *,
        value_name: str,
        counted: str,
        unit: str = "",
        marks: Mapping[str, float] | None = None,
        opens: Opens | None = None,
        caption: str = "",
    ) -> None:
        """A histogram whose bars say what they count.

        Args:
            title: heading of the section.
            counts: (b,) of each bar.
            edges: (b + 1,) increasing; a bar counts from its edge up to the next, the last one that edge as well.
            value_name: what is on the axis; the name of the column that `opens` filters.
            counted: what is counted: "test images".
            unit: of the axis; "%" multiplies by 100.
            marks: name -> place of a vertical line, such as the median.
            opens: the listing in which a bar shows what it counts.
            caption: text below the heading.
        """
        view = listing.histogram_view(
            counts, edges, value_name=value_name, counted=counted, unit=unit, marks=marks or {}
        )
        for bar in view["bars"]:
            bar["opens"] = opens and Opens(opens.section, {**opens.where, value_name: bar["range"]})
        self._add("histogram", title, caption=caption, histogram=view, total=sum(b["count"] for b in view["bars"]),
                  counted=counted)  # fmt: skip

    def figure(self, title: str, figure: Figure, *, alt: str, caption: str = "", format: str = "auto") -> None:
        """A matplotlib figure; `alt` says in words what it shows. Draw it inside `plot_style` to follow dark mode."""
        drawing = self._drawing(title, figure, alt, "", format=format)
        self._add("plots", title, caption=caption, drawings=[drawing], table=None)

    def matrix(
        self,
        title: str,
        values: ArrayLike,
        row_names: Sequence[str],
        column_names: Sequence[str],
        *,
        row_title: str = "from",
        column_title: str = "to",
        value_name: str = "median distance",
        log: bool = False,
        opens: Opens | None = None,
        caption: str = "",
    ) -> None:
        """A heat map of class-to-class values, for example median distances, with its lowest entries as a table.

        Args:
            title: heading of the section.
            values: (rows, columns); entries that are not finite are hatched and counted.
            row_names: classes of the rows; shown in words.
            column_names: classes of the columns.
            row_title: what a row is.
            column_title: what a column is.
            value_name: what an entry is, with its unit.
            log: logarithmic scale; entries <= 0 are then hatched too.
            opens: the listing in which an entry shows the rows whose column `row_title` is its class.
            caption: text below the heading.
        """
        array = np.asarray(values, np.float64)
        if array.shape != (len(row_names), len(column_names)) or 0 in array.shape:
            wanted = (len(row_names), len(column_names))
            raise ValueError(f"a matrix needs values of shape {wanted} for its names, not empty; got {array.shape}")
        drawn = np.isfinite(array) & ((array > 0) | (not log))
        num_left_out = int((~drawn).sum())
        note = f"Hatched: {num_left_out} of {array.size} entries without a drawable value." if num_left_out else ""
        rows, names = ([readable_class(name) for name in which] for which in (row_names, column_names))
        figure = plots.matrix_figure(
            array, rows, names, row_title=row_title, column_title=column_title, label=value_name, log=log
        )
        same = list(row_names) == list(column_names)
        summary = list(tables.extremes_per_row(array, rows, names, skip_diagonal=same))
        finite = array[np.isfinite(array)]
        span = f"from {format_number(finite.min())} to {format_number(finite.max())}" if finite.size else "none finite"
        alt = (
            f"Heat map of {value_name}, {len(row_names)} {row_title} by {len(column_names)} {column_title}, {span}. "
            "The table below lists the lowest and highest entry of each row."
        )
        columns = [row_title, f"lowest {column_title}", value_name, f"highest {column_title}", f"{value_name} there"]
        table = self._table(f"{title}: lowest and highest entry of each row", columns, summary)
        table["csv"] = tables.csv_uri(
            [f"{row_title} \\ {column_title}", *column_names],
            [(name, *map(float, row)) for name, row in zip(row_names, array, strict=True)],
        )
        drawing = self._drawing(title, figure, alt, note)
        self._add(
            "matrix", title, caption=caption, drawings=[drawing], table=table, opens=opens,
            names={"rows": rows, "columns": names, "rowTitle": row_title},
        )  # fmt: skip

    def gallery(
        self,
        title: str,
        pictures: Sequence[Picture],
        *,
        caption: str = "",
        format: str = "auto",
        large: bool = False,
    ) -> None:
        """Captioned pictures side by side; a handful may be `large`, four in a row."""
        drawn = []
        for item in pictures:
            picture = images.to_uint8(item.image)
            view = cards.picture_view(picture.pixels, item.caption, item.alt, format=format)
            drawn.append(view | {"note": cards.not_finite_note(picture.num_not_finite)})
        self._add("gallery", title, caption=caption, pictures=drawn, large=large)

    def text(self, text: str, *, title: str = "", warning: bool = False) -> None:
        """Plain paragraphs (separated by blank lines); a warning is set off from the rest."""
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]
        self._add("text", title, caption="", paragraphs=paragraphs, warning=warning)

    def define(self, term: str, definition: str, *, equation: str = "", formula: str = "") -> None:
        """Adds a glossary entry; a metric or column of that name links to it."""
        self._terms.add(term, Definition(definition, equation, formula))

    def provenance(
        self,
        *,
        command: str | None = None,
        seed: int | None = None,
        seconds: float | None = None,
        device: str | None = None,
        date: str | None = None,
        **more: Any,
    ) -> None:
        """Where the numbers come from; command, device, date and versions are filled in when not given.

        Args:
            command: the command line; None takes the running one.
            seed: random seed.
            seconds: how long the run took.
            device: what it ran on; None asks JAX, if it is loaded.
            date: when; None is now (give it to make the file reproducible byte for byte).
            **more: further entries; underscores in names become spaces.
        """
        entries = {
            "command": command or provenance.command_line(),
            "seed": "" if seed is None else str(seed),
            "run time": "" if seconds is None else format_number(seconds, unit="s"),
            "device": device or provenance.device(),
            "versions": provenance.versions(),
            "date": date or provenance.now(),
        }
        entries |= {name.replace("_", " "): format_number(value) for name, value in more.items()}
        self._provenance = {name: value for name, value in entries.items() if value}

    def html(self) -> str:
        """The page as text."""
        if self._provenance is None:
            self.provenance()
        return page.render(
            title=self._title,
            subtitle=self._subtitle,
            sections=self._sections,
            glossary=self._terms.listing(),
            provenance=self._provenance or {},
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page; a reader sees the old file or the whole new one, never a part.

        Args:
            path: the file; missing folders are made.

        Returns:
            The path.
        """
        page.write_atomically(Path(path), self.html())
        return Path(path)

    def _add(self, kind: str, title: str, **content: Any) -> None:
        anchor = self._unique(title or kind)
        self._sections.append({"kind": kind, "title": title, "id": anchor, "folded": self._folded, **content})

    def _unique(self, title: str) -> str:
        base, number = page.slug(title) or "section", 2
        anchor = base
        while anchor in self._anchors:
            anchor, number = f"{base}-{number}", number + 1
        self._anchors.add(anchor)
        return anchor

    def _drawing(self, title: str, figure: Figure, alt: str, note: str, *, format: str = "auto") -> dict[str, Any]:
        anchor = self._unique(f"figure-{title}")
        drawing = figures.draw(figure, prefix=anchor, alt=alt, format=format)
        file = f"{anchor}.{drawing.extension}"
        return {**drawing._asdict(), "markup": Markup(drawing.markup), "alt": alt, "note": note, "file": file}

    def _table(self, title: str, columns: Sequence[str | Column], rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
        view = self._with_terms(tables.table_view(title, columns, rows))
        return {**view, "file": f"{self._unique('table-' + title)}.csv"}

    def _with_terms(self, view: dict[str, Any]) -> dict[str, Any]:
        for heading in view["headings"]:
            heading["define"] = self._terms.anchor(heading["name"], heading["definition"])
        return view

    def _metric(self, metric: Metric) -> dict[str, Any]:
        numbers: dict[str, Any] = {"unit": metric.unit, "decimals": metric.decimals}
        interval = ""
        if metric.interval is not None:
            low, high = (format_number(v, **numbers) for v in metric.interval)
            interval = f"{metric.interval_name} {low} to {high}"
        value = scalar(metric.value)
        return {
            "name": metric.name,
            "text": format_number(value, **numbers),
            "words": value is None or (is_number(value) and not math.isfinite(value)),
            "interval": interval,
            "note": metric.note,
            "define": self._terms.anchor(metric.name, metric.definition),
            "opens": metric.opens,
        }
