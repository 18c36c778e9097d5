"""The template around the sections, and the file on disk."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from spectra_jax.reporting.items import Opens

_HERE = Path(__file__).parent


def render(
    *, title: str, subtitle: str, sections: Sequence[Mapping[str, Any]], glossary: Any, provenance: Mapping[str, str]
) -> str:
    """The whole page; every text that is not Markup is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ids = {section["title"]: section["id"] for section in reversed(sections)}
    places = {c["key"]: f"{s['id']}--card-{n}" for s in sections for n, c in enumerate(s.get("cards", ()), 1)}

    def target(opens: Opens) -> str:
        if opens.section not in ids:  # it may have been added after what opens it, so only now is it known
            raise ValueError(f"the report has no section {opens.section!r} to open; it has {sorted(ids)}")
        return ids[opens.section]

    environment.filters |= {"target": target, "where": lambda opens: urlencode(opens.where), "place": places.get}
    return environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        glossary=glossary,
        provenance=provenance,
        css=_files("report.css", "cards.css"),
        js=_files("report.js", "explore.js", "heatmap.js"),
    )


def _files(*names: str) -> Markup:
    return Markup("\n".join((_HERE / name).read_text(encoding="utf-8") for name in names))


def write_atomically(path: Path, text: str) -> None:
    """Writes a file under a temporary name beside it, then renames: never a part of a file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8", "replace"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens of a text, for ids and file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
