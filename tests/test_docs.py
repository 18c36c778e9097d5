"""Every example in README and docs/ runs, every command in them parses, and what they name exists."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spectra_jax as sj

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
# Tests of their own run these: most begin with a model and data of the reader's.
ELSEWHERE = {
    "README.md": "test_docs.py",
    "first-ten-minutes.md": "test_first_ten_minutes.py",
    "foolbox.md": "test_foolbox_attack.py",
    "pytorch-attacks.md": "test_torch_bridge.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


WITH_EXAMPLES = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("path", [page for page in WITH_EXAMPLES if page.name not in ELSEWHERE], ids=name_of)
def test_examples_run(path):
    names: dict = {}
    for block in blocks(path, "python"):
        if "jax_compilation_cache_dir" not in block:  # a setting of the whole process; test_packaging runs it
            exec(compile(block, name_of(path), "exec"), names)


def test_the_other_examples_have_tests_of_their_own():
    assert set(ELSEWHERE) <= {page.name for page in WITH_EXAMPLES}
    assert all(page in (ROOT / "tests" / test).read_text() for page, test in ELSEWHERE.items())


def test_readme_says_the_truth(capsys):
    names: dict = {}
    exec(compile(blocks(ROOT / "README.md", "python")[0], "README.md", "exec"), names)
    answer = names["answers"].answer(0)
    assert len(answer.changes) <= 3 and answer.proven
    assert not any(change.name.startswith("attribute 1") for change in answer.changes)
    assert "class 7 at distance" in capsys.readouterr().out
    assert (ROOT / "README.md").stat().st_size <= 7 << 10


def commands(path: Path) -> list[list[str]]:
    """The words of every `python -m experiments.X ...` or data_prep.X of a page."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line.split() for line in re.findall(r"python -m ((?:experiments|data_prep)\.\w[^\n`#|]*)", text)]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_commands_exist_and_know_their_options(path):
    for module, *words in commands(path):
        home = Path(importlib.util.find_spec(module.rstrip(".,;:")).origin).parent
        rooms = [home, *(ROOT / "experiments" / room for room in ("cli", "counterfactuals", "attacks", "training"))]
        source = "".join(file.read_text() for room in rooms for file in room.glob("*.py")) + SETTINGS
        for word in words:
            if word.startswith("--"):
                option = re.sub(r"[^\w]", "_", word.removeprefix("--").removeprefix("no-").split(".")[-1]).strip("_")
                assert re.search(rf"\b{option}: ", source), f"{name_of(path)}: {module} has no option {word}"


# Options that come with the library's own settings.
SETTINGS = "".join((ROOT / "spectra_jax" / name).read_text() for name in ("training/_config.py", "inversion/config.py"))


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_pages_link_to_what_is_there(path):
    text = re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    paths = re.findall(r"`((?:spectra_jax|experiments|data_prep|tests)/[a-z_./]*)`", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert [name for name in paths if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def test_site_builds_without_a_warning(tmp_path):
    """All of `make docs` but its notebooks, whose cells need an execution to have a language."""
    pytest.importorskip("sphinx")
    options = ["nb_execution_mode=off", "suppress_warnings=myst.xref_missing_outside,myst-nb.lexer"]
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    settings = [word for option in options for word in ("-D", option)]
    done = subprocess.run([*sphinx, *settings, ROOT / "docs", tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api.html").exists()


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"\.\. auto(?:function|class):: (\w+)", text))
    assert set(sj.__all__) == documented


def test_the_table_of_solvers_names_them_all():
    text = (ROOT / "docs" / "solvers.md").read_text()
    solvers = [name for name in sj.__all__ if name.endswith(("_perturbation", "_perturbations"))]
    assert not [name for name in solvers if name not in text and name != "constrained_perturbations"]


def rows() -> list[list[str]]:
    """The table from the paper's sections to functions, tests and commands."""
    text = (ROOT / "docs" / "paper.md").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return cells[2:]


SECTIONS = ("2.3", "2.4", "2.5.1", "2.5.2", "2.5.3", "2.6", "2.7", "3.1", "3.2", "3.3", "Eq. 5", "Eq. 7", "4", "5")


def test_every_section_of_the_paper_is_there():
    named = " ".join(row[0].replace(" and 6", ", Eq. 6") for row in rows())
    missing = [section for section in SECTIONS if not re.search(rf"(?<![\d.]){re.escape(section)}(?![\d.]\d)", named)]
    assert not missing


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_what_a_section_is_exists_and_is_tested(row):
    functions, tests = (re.findall(r"`([^`]+)`", cell) for cell in row[1:3])
    assert functions and tests
    texts = [(ROOT / test).read_text() for test in tests]
    for name in functions:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name
        used = attribute if attribute != "main" else module.split(".")[1]
        whole = re.compile(rf"(?<!\w){re.escape(used)}(?!\w)")
        assert any(whole.search(text) for text in texts), f"no test of the row uses {used}"
