"""Commands read and check their arguments, and show their help, before anything heavy is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "jax", "flax", "optax", "orbax", "tensorflow_datasets", "grain", "sklearn", "scipy", "skimage", "matplotlib",
    "pyarrow", "jinja2", "dm_pix", "foolbox",
)  # fmt: skip
NEEDED = {  # options without which a command asks for them first
    "experiments.invert": ["--run-dir", "nowhere", "--out", "out"],
    "experiments.explain": ["--run-dir", "nowhere", "--out", "out"],
    "experiments.saliency": ["--run-dir", "nowhere", "--out", "out"],
    "experiments.reconstruct": ["--run-dir", "nowhere", "--out", "out"],
    "experiments.cited_systems": ["--run-dir", "nowhere", "--out", "out"],
    "experiments.foolbox_attack": ["--run-dir", "nowhere"],
    "experiments.robustness": ["--run-dirs", "nowhere"],
    "experiments.paper_claims": ["--run-dirs", "nowhere", "--out", "out"],
    "experiments.paper_figures": ["--run-dir", "nowhere", "--out", "out"],
    "experiments.paper_table": ["--data-dir", "nowhere"],
    "experiments.train": ["--data-dir", "nowhere"],
    "experiments.quickstart": ["--data-dir", "nowhere"],
    "experiments.sweep_attackability": ["--features", "nowhere.npz", "--head", "nowhere.npz", "--out", "out"],
    "experiments.benchmarks": ["--out", "out", "--run-dir", "nowhere"],
    "experiments.benchmarks.projection": ["--run-dir", "nowhere"],
    "experiments.benchmarks.inversion": ["--run-dir", "nowhere", "--out", "out"],
    "experiments.benchmarks.exactness": ["--case", "nowhere.npz"],
}


def commands() -> list[str]:
    """Every module that is a command: it has an `if __name__ == "__main__"`."""
    found = []
    for path in sorted([*(ROOT / "experiments").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")]):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        tests = [node.test for node in body if isinstance(node, ast.If)]
        if path.name == "worker.py":  # a process that another one talks to, without options
            continue
        if any(isinstance(test, ast.Compare) and ast.unparse(test.left) == "__name__" for test in tests):
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return found


def end(command: str, *words: str) -> tuple[int, set[str], str]:
    """Exit code, heavy modules imported by then, and standard error of a command in a process of its own."""
    code = (
        f"import runpy, sys; sys.argv = {[command, *words]!r}\n"
        f"try: runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
        f"finally: print('HEAVY', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, set(done.stdout.rpartition("HEAVY")[2].split()), done.stderr


def test_all_commands_are_found():
    assert {"experiments.train", "experiments.benchmarks", "data_prep.cub200", *NEEDED} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_a_typo_is_refused_before_anything_heavy_is_imported(command):
    code, heavy, message = end(command, "--no-such-option")
    assert code == 2 and "--no-such-option" in message and not heavy, (heavy, message)


@pytest.mark.parametrize("command", [*NEEDED, "data_prep.cub200", "data_prep.synthetic_birds"])
def test_help_imports_nothing_heavy(command):
    code, heavy, message = end(command, "--help")
    assert code == 0 and not heavy, (heavy, message)


@pytest.mark.parametrize("command", NEEDED)
def test_a_missing_file_is_refused_before_anything_heavy_is_imported(command):
    code, heavy, message = end(command, *NEEDED[command])
    assert code == 2 and "nowhere" in message and message.count("\n") == 1 and not heavy, (heavy, message)
