"""What a fresh clone promises: the install, the two commands and the README are as they say."""

import ast
import fnmatch
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("spectra_jax", "experiments", "data_prep")
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "BUILD.md")}
# tensorflow-datasets and tensorflow-metadata are plain Python and do without the frameworks.
FRAMEWORKS = {"tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "torch", "torchvision", "ray", "clu", "jaxopt"}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def requirements(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def closure(direct: list[Requirement]) -> set[str]:
    """The names of everything that installing `direct` brings along, by the metadata of what is installed here."""
    names: set[str] = set()
    pending = [(requirement, extra) for requirement in direct for extra in ("", *requirement.extras)]
    seen = set()
    while pending:
        requirement, extra = pending.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add((name, extra))
        names.add(name)
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            for of_parent in {"", extra}:
                if needed.marker is None or needed.marker.evaluate({"extra": of_parent}):
                    pending += [(Requirement(f"{needed.name}"), inner) for inner in ("", *needed.extras)]
    return names


def constraints() -> dict[str, Requirement]:
    """The pins that apply to this Python."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    applying = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert len({pin.name for pin in applying}) == len(applying), "a package is pinned twice"
    return {canonicalize_name(pin.name): pin for pin in applying}


def sources() -> Iterator[Path]:
    return (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


EVERYTHING = ("experiments", "pretrained", "explore")  # what the two commands install


def test_no_install_brings_another_framework():
    base, whole = closure(requirements()), closure(requirements(*EVERYTHING))
    assert {"jax", "jaxlib", "flax", "numpy"} <= base < whole and "tensorflow-datasets" in whole - base
    assert not whole & FRAMEWORKS


@pytest.fixture(scope="module")
def base_install(tmp_path_factory) -> Path:
    """The Python of a fresh environment with the wheel of this checkout and nothing of the extras."""
    folder = tmp_path_factory.mktemp("base")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [python, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"  # setuptools leaves a build folder beside what it packs
    shutil.copytree(ROOT / "spectra_jax", source / "spectra_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"pip cannot build a wheel here: {built.stderr.strip().splitlines()[-1:]}")
    (wheel,) = folder.glob("spectra_jax-*.whl")
    subprocess.run([*pip, "install", "--constraint", ROOT / "constraints.txt", wheel], check=True)
    return python


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(base_install):
    (wheel,) = base_install.parents[2].glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"spectra_jax"}
    assert {"spectra_jax/py.typed", "spectra_jax/reporting/report.html"} <= set(names)


@pytest.mark.slow
def test_readme_example_needs_the_base_install_alone(base_install, tmp_path):
    example = tmp_path / "example.py"
    example.write_text(python_blocks(DOCUMENTS["README.md"])[0] + LOOK)
    done = subprocess.run([base_install, "-I", example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported, installed = done.stdout.splitlines()[-2:]
    assert imported == "imported: none"
    assert installed == "installed: orbax"  # which flax brings


LOOK = f"""
import importlib.util, sys
heavy = {["tensorflow_datasets", "orbax", "matplotlib", "sklearn", "scipy.stats", "pyarrow"]!r}
print("imported:", *sorted(set(heavy) & set(sys.modules)) or ["none"])
print("installed:", *[name for name in heavy if "." not in name and importlib.util.find_spec(name)] or ["none"])
"""


@pytest.mark.slow
def test_what_an_extra_would_bring_is_named(base_install, tmp_path):
    for module in ("reporting", "data", "sweep_files"):
        done = subprocess.run(
            [base_install, "-I", "-c", f"import spectra_jax.{module}"], capture_output=True, text=True
        )
        assert "is not installed: pip install 'spectra-jax[experiments]'" in done.stderr, module


def test_every_import_is_declared():
    distributions = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in sources():
        extras = ["experiments"]
        extras += ["bench"] if {"benchmarks", "attacks", "foolbox_attack"} & set(path.parts) else []
        extras += ["attacks"] if "attacks" in path.parts else []
        extras += ["ray"] if path.name == "ray_cluster.py" else []
        extras += ["explore"] if "explore" in path.parts else []
        extras += ["canary"] if path.stem.startswith("canary") else []
        declared = {canonicalize_name(requirement.name) for requirement in requirements(*extras)}
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for module in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES):
                # A package under its own name may be installed where packages_distributions does not look.
                providers = {canonicalize_name(name) for name in distributions.get(module, (module,))}
                if not providers & declared:
                    undeclared.setdefault(module, []).append(str(path.relative_to(ROOT)))
    assert not undeclared


def test_constraints_pin_everything_within_the_declared_bounds():
    pins = constraints()
    direct = requirements(*EVERYTHING, "test", "bench", "canary")
    assert closure(direct) <= pins.keys()
    for pin in pins.values():
        assert re.fullmatch(r"==[^=*]+", str(pin.specifier)) and pin.url is None, f"{pin}: expected name==version"
    for requirement in direct:
        (pinned,) = pins[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(Version(pinned.version)), f"{pinned} does not satisfy {requirement}"


def test_package_data_includes_every_file_that_is_no_module():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for path in (ROOT / "spectra_jax").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            owner = next(folder for folder in path.parents if (folder / "__init__.py").exists())
            name, file = ".".join(owner.relative_to(ROOT).parts), path.relative_to(owner).as_posix()
            assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns.get(name, [])), path


def test_compiled_programs_are_kept_as_build_says(tmp_path):
    (block,) = (block for block in python_blocks(DOCUMENTS["BUILD.md"]) if "jax_compilation_cache_dir" in block)
    # A program that takes long to compile on any machine.
    call = (
        "\nimport jax.numpy as jnp\nimport spectra_jax as sj\nsj.all_pairs_norms(sj.Head(jnp.eye(4)), jnp.ones((3, 4)))"
    )
    code = block.replace("/shared/compiled", str(tmp_path)) + call
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)
        kept.append({path.name: path.stat().st_size for path in tmp_path.iterdir() if path.name.endswith("-cache")})
    assert kept[0] and kept[0] == kept[1]  # the second process found them all


def test_changelog_has_this_version():
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@needs_make
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "there is no"),
        ('case "$1" in --version) echo Python 3.9.1;; *version_info*) ;; esac; exit 1', "Python 3.9.1 does not fit"),
        ('case "$*" in *ensurepip*) exit 1;; esac', "python3-venv"),
    ],
)
def test_unusable_python_is_explained(tmp_path, script, message):
    python = tmp_path / "python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    done = make("demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0 and "error: " in done.stderr and message in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("version", "fits"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 9), True), ((3, 14, 0), False)]
)
def test_only_tested_pythons_are_accepted(version, fits):
    (check,) = re.findall(r"-c '(import sys; sys\.exit\(.*)'", (ROOT / "Makefile").read_text())
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.version_info = {version}\n{check}"], check=False)
    assert (done.returncode == 0) is fits


@needs_make
def test_second_run_installs_only_after_a_change(tmp_path):
    for stamp in (".created", ".installed", ".installed-test"):
        (tmp_path / stamp).touch()
    for target, command in (("demo", "experiments.quickstart"), ("test", "pytest")):
        plan = make("--dry-run", target, f"VENV={tmp_path}").stdout
        assert command in plan and "pip install" not in plan
        assert "pip install" in make("--dry-run", target, f"VENV={tmp_path}", "--what-if=pyproject.toml").stdout
        assert "pip install" in make("--dry-run", target, f"VENV={tmp_path}", "--what-if=constraints.txt").stdout
