"""Sphinx: pages in Markdown, the API from the docstrings, notebooks executed at build time."""

import re
import tomllib
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project, author, release = "SPECTRA-JAX", "the SPECTRA-JAX authors", PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_typehints = "none"  # jaxtyping's shapes are in the docstrings, where they can be explained
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True  # the fields of a result as one list
napoleon_attr_annotations = False
napoleon_custom_sections = [("Raises", "params_style")]
suppress_warnings = ["myst.xref_missing_outside"]

nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "docs" / "_build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True


def setup(app):
    """Formulas as MathML: they need neither a network nor a script. Links out of docs/ go to the repository's files."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("source-read", _link_to_repository)
    app.connect("autodoc-process-docstring", _plain_text, priority=400)  # before napoleon writes markup of its own


def _inline(translator, node):
    translator.body.append(convert(node.astext()))
    raise _skip()


def _block(translator, node):
    translator.body.append(f'<div class="math" role="math">{convert(node.astext(), display="block")}</div>')
    raise _skip()


def _skip():
    from docutils import nodes

    return nodes.SkipNode()


def _plain_text(app, what, name, obj, options, lines):
    """Docstrings are read in editors first: norms such as |delta| and patterns such as size* are no markup."""
    lines[:] = [re.sub(r"([|*])", r"\\\1", line) if "`" not in line else line for line in lines]


def _link_to_repository(app, docname, source):
    """`../BUILD.md` lies above the site: such links show the file's name instead."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", source[0])
