"""The house rules: imports go downward, files stay small, public names are documented and annotated truthfully."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import spectra_jax as sj

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(path for folder in ("spectra_jax", "experiments", "data_prep") for path in (ROOT / folder).rglob("*.py"))
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".html", ".css", ".js", ".json", ".yml", ".yaml", ".cfg", ""}

# Lower numbers are further down: a module imports only from lower layers or from its own group.
LAYERS = {
    "lazy": 0,
    "extras": 0,
    "types": 0,
    "names": 0,
    "switches": 0,
    "checks": 1,
    "buckets": 1,
    "similarity": 2,
    "models": 2,
    "perturbations": 2,
    "metrics": 2,
    "image_metrics": 2,
    "certificates": 3,
    "losses": 3,
    "attackability": 3,
    "constraints": 3,
    "canary": 4,
    "canary_score": 4,
    "inversion": 3,
    "saliency": 3,
    "localization": 3,
    "smoothing": 3,
    "counterfactuals": 4,
    "training": 4,
    "sweep": 4,
}
# I/O at the edges: these import types, models and each other, never the other way round.
INPUT_OUTPUT = {
    "array_files",
    "array_record_files",
    "array_sources",
    "batches",
    "checkpoint",
    "data",
    "features",
    "logging",
    "parquet_files",
    "reporting",
    "sharding",
    "sweep_files",
    "sweep_sources",
}
NUMERIC = {name for name, layer in LAYERS.items() if layer <= 3}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in the file; `from a import b` gives a and a.b."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join((*package[: len(package) - node.level + 1], node.module or "")) if node.level else node.module
            )
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def group(name: str) -> str | None:
    """spectra_jax.models.cnn -> models; None outside the library."""
    parts = name.split(".")
    return parts[1] if parts[0] == "spectra_jax" and len(parts) > 1 else None


LIBRARY = [path for path in CODE if group(module_name(path))]
GROUPS = LAYERS.keys() | INPUT_OUTPUT


def imported_groups(path: Path) -> set[str]:
    return {name for name in map(group, imports(path)) if name in GROUPS} - {group(module_name(path))}


def test_every_module_has_its_place():
    unplaced = {group(module_name(path)) for path in LIBRARY} - GROUPS
    assert not unplaced, f"add {unplaced} to LAYERS or INPUT_OUTPUT"


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_imports_only_go_down(path):
    own = group(module_name(path))
    for other in imported_groups(path):
        if own in LAYERS and other in LAYERS:
            assert LAYERS[other] <= LAYERS[own], f"{own} imports {other}, which lies above it"
        assert not (own in NUMERIC and other in INPUT_OUTPUT), f"{own} is numeric and imports {other}, which does I/O"
        if own in INPUT_OUTPUT:
            assert other in INPUT_OUTPUT | {"types", "names", "extras", "models"}, (
                f"{own} does I/O and imports the numeric {other}"
            )
    assert not {name.split(".")[0] for name in imports(path)} & {"experiments", "data_prep", "tests"}


def test_groups_of_one_layer_do_not_import_each_other_in_circles():
    edges = {name: set() for name in GROUPS}
    for path in LIBRARY:
        edges[group(module_name(path))] |= imported_groups(path)
    while edges:
        free = {name for name, needed in edges.items() if not needed & edges.keys()}
        assert free, f"circular imports among {sorted(edges)}"
        edges = {name: needed for name, needed in edges.items() if name not in free}


@pytest.mark.parametrize("path", CODE, ids=module_name)
def test_heavy_frameworks_stay_where_they_belong(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"torchvision", "tensorflow", "timm", "jaxopt", "clu"}
    assert "ray" not in roots or path.stem == "ray_cluster", "one module of the experiments may know Ray"
    assert "torch" not in roots or path.stem == "torch_bridge", "one module of the experiments may know PyTorch"
    if "flax" in roots:
        assert group(module_name(path)) == "models", "only spectra_jax/models may know flax"
    if group(module_name(path)) in NUMERIC:
        assert not roots & {"orbax", "grain", "tensorflow_datasets", "matplotlib", "rich", "tyro", "PIL", "jinja2"}


@pytest.mark.parametrize("path", CODE + sorted((ROOT / "tests").glob("*.py")), ids=module_name)
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


# What the commands share, lowest first. Every other folder of experiments/ is a command: python -m experiments.NAME.
ROOMS = ("cli", "runs", "counterfactuals", "reporting", "attacks", "training")
SCRIPTS = [
    path for path in CODE if path.relative_to(ROOT).parts[0] == "experiments" and path.parent.name != "experiments"
]


def room(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("path", SCRIPTS, ids=module_name)
def test_commands_share_what_lies_below_them_and_nothing_sideways(path):
    own = room(module_name(path))
    others = {room(name) for name in imports(path) if name.startswith("experiments.")} - {own}
    below = ROOMS[: ROOMS.index(own)] if own in ROOMS else ROOMS
    if own != "benchmarks":  # they measure the commands
        assert others <= set(below)


def test_every_command_is_a_package_that_can_be_run():
    folders = {path.parent for path in SCRIPTS if room(module_name(path)) not in ROOMS}
    assert {folder.name for folder in folders if not (folder / "__main__.py").exists()} == {"tools"}


@pytest.mark.parametrize("path", CODE, ids=module_name)
def test_an_underscore_module_is_known_in_its_folder_alone(path):
    folder = module_name(path.parent / "__init__.py") + "."
    known = [name.removeprefix(folder) for name in imports(path)]
    assert not [name for name in known if re.search(r"\._[a-z]", name)]


def repository_texts() -> list[Path]:
    """Text files that belong to the repository: tracked ones, or all outside hidden folders if there is no git."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        folders = ("spectra_jax", "experiments", "data_prep", "tests")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
        paths += [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    return [
        path for path in paths if path.is_file() and path.suffix in TEXT_SUFFIXES and path != Path(__file__).resolve()
    ]


def test_no_text_names_a_machine():
    # Words of one machine, put together here so that this file passes its own test.
    forbidden = ["/" + name + "/" for name in ("work", "root", "home/user", "Users")]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in repository_texts()
        for word in forbidden
        if word in path.read_text(encoding="utf-8", errors="ignore")
    ]
    assert not found


PUBLIC = {name: getattr(sj, name) for name in sj.__all__}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}


def test_the_fixed_names_are_there():
    fixed = """
        Head head_logits boundary_perturbation pinv_perturbation single_attribute_perturbations SingleAttributeResult
        projection_perturbation ProjectionResult all_pairs_norms best_single_attributes attackability invert
        InversionConfig InversionResult activation_map attack_success_rate psnr perturbation_noise_ratio stability_loss
        attribute_loss classification_loss total_loss build_model
    """
    assert set(fixed.split()) <= PUBLIC.keys()


def test_the_public_api_is_a_list_of_imports_and_nothing_else():
    body = ast.parse((ROOT / "spectra_jax" / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(body[0], ast.Expr)
    branch = body[-1]
    assert all(isinstance(node, ast.ImportFrom) for node in body[1:-1]) and isinstance(branch, ast.If)
    assert all(isinstance(node, ast.ImportFrom) for node in branch.body)
    names = [(alias.name, alias.asname) for node in branch.body for alias in node.names]
    assert all(name == other for name, other in names) and [name for name, _ in names] == sj.__all__


def test_a_module_never_hides_the_function_of_its_name():
    code = (
        "from spectra_jax.attackability import attackability_summary; import spectra_jax; "
        "from spectra_jax import attackability; assert callable(attackability); "
        "assert spectra_jax.attackability is attackability; assert 'nearest_class' in dir(spectra_jax); "
        "assert spectra_jax.perturbations.geometry.HIGHEST; assert not hasattr(spectra_jax, 'no_such_name')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    thing = PUBLIC[name]
    text = inspect.getdoc(thing) or ""
    summary = text.split("\n\n")[0]
    assert summary and summary.rstrip().endswith((".", ")", ":")), f"{name} lacks a one-sentence summary"
    # A NamedTuple or dataclass left undocumented shows its signature instead.
    assert not summary.startswith(f"{name}("), f"{name} has no docstring of its own"
    if name in FUNCTIONS:
        for section in ("Args:", "Returns:"):
            assert section in text, f"{name} does not document {section}"
        for parameter in inspect.signature(thing).parameters:
            assert parameter in text.split("Args:")[1], f"{name} does not document {parameter}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_keyword_only_and_everything_is_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty
        if parameter.default is not parameter.empty:
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}: {parameter.name} has a default and is positional"
    assert signature.return_annotation is not signature.empty


HEAVY = [
    "sklearn",
    "scipy.stats",
    "matplotlib",
    "tensorflow_datasets",
    "orbax",
    "pyarrow",
    "flax",
    "optax",
    "dm_pix",
    "chex",
    "grain",
    "tensorflow",
    "torch",
    "skimage",
    "PIL",
    "rich",
    "tyro",
]


def test_the_solvers_need_jax_and_little_else():
    code = (
        "import jax, sys; import jax.numpy as jnp; before = dict(jax.config.values); import spectra_jax as sj; "
        "head = sj.Head(jnp.eye(3)); sj.nearest_class(head, jnp.eye(3)); sj.attackability(head, jnp.eye(3)); "
        "[getattr(sj, name) for name in ('all_pairs_norms', 'projection_perturbation', 'sparse_perturbation')]; "
        f"assert dict(jax.config.values) == before; found = set({HEAVY}) & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_importing_the_library_imports_not_even_jax():
    code = (
        f"import spectra_jax, sys; found = set({['jax', 'numpy', *HEAVY]}) & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    assert not jax.config.jax_enable_x64
