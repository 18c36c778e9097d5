"""Matplotlib figures inside the page: one look, and SVG that can live beside other SVG in one HTML document.

Figures are drawn in the page's light colours. In the page those exact colours become CSS variables, so a figure drawn
in `plot_style` follows the reader's light or dark setting; any other figure keeps its colours on a white plate.
"""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, LINE = "#1c2126", "#59626b", "#d8d5cd"
# Staggered in lightness (readable in grey) and distinct for the common colour-vision deficiencies.
SERIES = ("#17507f", "#d98419", "#3f9d8d", "#9c2f63", "#7c8fd6")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"} | {c: f"series-{i}" for i, c in enumerate(SERIES, 1)}
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "hatch.color": MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": "cividis",
    "image.interpolation": "none",
    "axes.prop_cycle": cycler(color=SERIES, linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]),
}
# Text stays text (small, selectable, in the page's font); a fixed salt makes the same figure the same bytes.
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "spectra"}
# A plot with very many marks is smaller, and quicker to show, as pixels.
LARGEST_SVG_BYTES = 400_000


class Drawing(NamedTuple):
    """A figure ready for the page.

    Attributes:
        markup: an <svg> element, or "" if the figure is pixels.
        uri: the standalone file as a data URI: the link target of its download.
        extension: "svg" or "png".
        width: natural width in points.
        themed: whether its colours follow the page.
    """

    markup: str
    uri: str
    extension: str
    width: float
    themed: bool


@contextmanager
def plot_style() -> Iterator[None]:
    """Matplotlib settings of the reports; create and fill figures inside."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float = 4.2, height: float = 2.9) -> Figure:
    """An empty figure (inches) that needs no display and no pyplot; use inside `plot_style`."""
    return Figure(figsize=(width, height), layout="constrained")


def draw(figure: Figure, *, prefix: str, alt: str, format: str = "auto") -> Drawing:
    """Draws a figure for the page.

    Args:
        figure: any matplotlib figure.
        prefix: put before every id, so that several drawings can share a document.
        alt: what the figure shows, in words.
        format: "svg", "png", or "auto": SVG unless that is larger than 400 kB.
    """
    if format not in ("auto", "svg", "png"):
        raise ValueError(f'format must be "auto", "svg" or "png", got {format!r}')
    if format != "png":
        source = _save(figure, "svg")
        if format == "svg" or len(source) <= LARGEST_SVG_BYTES:
            return _svg_drawing(source, prefix, alt)
    width = float(figure.get_size_inches()[0]) * 72
    return Drawing("", _uri("image/png", _save(figure, "png")), "png", width, False)


def _save(figure: Figure, format: str) -> bytes:
    file = io.BytesIO()
    with matplotlib.rc_context(_SVG):
        if format == "svg":
            figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        else:
            FigureCanvasAgg(figure)
            figure.savefig(file, format="png", dpi=192, facecolor="white", bbox_inches="tight")
    return file.getvalue()


def _svg_drawing(source: bytes, prefix: str, alt: str) -> Drawing:
    root = ElementTree.fromstring(source)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    themed = INK.encode() in source
    for element in root.iter():
        element.tag = element.tag.rsplit("}", 1)[-1]
        element.attrib = {
            name.rsplit("}", 1)[-1]: _page_value(name, value, prefix, themed) for name, value in element.attrib.items()
        }
    for parent in list(root.iter()):
        # The metadata names web addresses, and a <style> inside inline SVG would apply to the whole page.
        for child in [c for c in parent if c.tag in ("metadata", "style")]:
            parent.remove(child)
    root.attrib = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": alt}
    plate = b'<rect width="100%" height="100%" fill="#ffffff"/>'
    start = source.index(b">", source.index(b"<svg")) + 1
    standalone = source[:start] + plate + source[start:]
    markup = ElementTree.tostring(root, encoding="unicode")
    return Drawing(markup, _uri("image/svg+xml", standalone), "svg", width, themed)


def _page_value(name: str, value: str, prefix: str, themed: bool) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name.endswith("href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    if themed and name.endswith("style"):
        value = re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], value)
    return value


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
