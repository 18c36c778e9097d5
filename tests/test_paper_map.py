"""BUILD.md's table from the paper's sections to functions, tests and commands: every name in it exists."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("2.3", "2.4", "2.5.1", "2.5.2", "2.5.3", "2.6", "2.7", "3.1", "3.2", "3.3", "Eq. 5", "Eq. 7", "4", "5")


def rows() -> list[list[str]]:
    text = (ROOT / "BUILD.md").read_text().split("## The paper, section by section")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return cells[2:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_section_is_there():
    named = " ".join(row[0].replace(" and 6", ", Eq. 6") for row in rows())
    missing = [section for section in SECTIONS if not re.search(rf"(?<![\d.]){re.escape(section)}(?![\d.]\d)", named)]
    assert not missing


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_what_a_row_names_exists(row):
    functions, tests, commands = (quoted(cell) for cell in row[1:])
    assert functions and tests
    texts = [(ROOT / test).read_text() for test in tests]
    for name in functions:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name
        used = attribute if attribute != "main" else module.rpartition(".")[2]
        whole = re.compile(rf"(?<!\w){re.escape(used)}(?!\w)")
        assert any(whole.search(text) for text in texts), f"no test of the row uses {used}"
    for command in commands:
        python, dash_m, module = shlex.split(command)[:3]
        assert (python, dash_m) == ("python", "-m")
        assert importlib.util.find_spec(module) is not None, command
