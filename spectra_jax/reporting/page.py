"""The template around the sections, and the file on disk."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

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
    environment.filters |= {"breakable": _breakable, "pretty": lambda name: str(name).replace("_", " ")}
    return environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        glossary=glossary,
        provenance=provenance,
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
    )


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


def _breakable(name: str) -> Markup:
    """Lets long attribute names wrap after "::" and "_"."""
    return Markup(re.sub(r"(::|_)", r"\1<wbr>", str(escape(name))))
