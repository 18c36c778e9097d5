"""Everything the claims need of one run: its pictures made or read again, measured and judged."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.command import UserError
from experiments.counterfactuals.find import choose_pairs, find_counterfactuals
from experiments.counterfactuals.options import PairConfig
from experiments.paper_claims import comparisons, images, measure
from experiments.paper_claims.atlas import make_atlas
from experiments.paper_claims.comparisons import Material
from experiments.paper_claims.images import Singles
from experiments.paper_claims.options import ClaimConfig
from experiments.paper_claims.regions import Regions
from experiments.paper_claims.statistics import Comparison, Verdict, judge
from experiments.runs.loading import LoadedRun, checksum, describe, load_run, load_test_split
from experiments.runs.part_names import group_of
from experiments.runs.store import Store
from spectra_jax.logging import Console

_SPREAD_IMAGES = 256  # test images from which the spread of a random network's attributes is estimated


class RunClaims(NamedTuple):
    """The claims of one run.

    Attributes:
        name: of the run in tables and files.
        material: its pictures.
        comparisons: of every claim that has pairs, for the choice of pictures.
        verdicts: on all comparisons.
        atlas: name -> (n,), one entry per attribute.
        witness: name of the other network, "" without one.
        figures: further numbers for summary.json.
    """

    name: str
    material: Material
    comparisons: list[Comparison]
    verdicts: list[Verdict]
    atlas: dict[str, Any]
    witness: str
    figures: dict[str, float]


def claims_of(
    name: str, run_dir: Path, out: Path, config: ClaimConfig, witnesses: list[Path], *, masks: Path | None, seed: int,
    console: Console,
) -> RunClaims:  # fmt: skip
    """Makes what is missing of a run's pictures, measures the claims on them and judges.

    Args:
        name: of the run; its files lie in out/runs/name.
        run_dir: the run.
        out: the folder of the whole comparison.
        config: what to measure on.
        witnesses: run folders of which the first with the same data, but another network, is asked.
        masks: folder of drawn birds, for their exact parts.
        seed: of all choices.
        console: shows the progress.

    Raises:
        UserError: no such run, too few test images, or masks of other pictures.
    """
    console.say(f"{name}: {run_dir}")
    run = load_run(run_dir)
    attributes, labels, _ = load_test_split(run_dir)
    spread = attributes.std(axis=0)
    pairs = PairConfig(num_pairs=config.num_pairs, margin=config.margin, batch_size=config.batch_size,
                       inversion=config.inversion)  # fmt: skip
    regions = Regions(run, masks=masks, seed=seed)
    # What each of the two sets depends on: other options of one do not cost the other.
    common = {"seed": seed, "regions": regions.kind, "model": checksum(run, attributes, labels)}
    columns = _asked(run, config, spread)
    about = common | {"step": config.step, "images": config.images_per_attribute} | dataclasses.asdict(config.single)
    about |= {"groups": config.groups} if config.groups else {}
    kept = Store(out / "runs" / name, about)
    chosen = images.choose_singles(run, regions, labels, config.images_per_attribute, seed=seed, columns=columns)
    singles = images.find_singles(
        run, run.params, spread, chosen, size=config.step, config=config.single, store=kept, name="singles",
        console=console,
    )  # fmt: skip
    measured = _once(kept, "columns", lambda: measure.measure_singles(run, regions, singles, spread), console)
    witness, moved = _witness(run, singles, witnesses, out / "runs" / name, about, console=console)
    random_lift = np.full(len(singles.index), np.nan)
    if config.random_weights:
        random_lift = _random_lift(run, regions, singles, chosen, config, out, seed=seed, console=console)
    about = common | dataclasses.asdict(pairs) | {"few_pixel_pairs": config.few_pixel_pairs}
    kept = Store(out / "runs" / name, about)
    index, target = choose_pairs(run, attributes, labels, pairs, seed=seed)
    flips = find_counterfactuals(run, labels, index, target, pairs, kept, console=console)
    named = measure.named_attributes(flips.requested, spread)
    checks = images.check_flips(run, flips, named, regions, store=kept, console=console)
    rows = np.flatnonzero(flips.survives_rounding)[: config.few_pixel_pairs]
    if not len(rows):
        raise UserError(f"{run_dir}: none of the {config.num_pairs} flips succeeded; see --inversion.max-steps")
    pixels = images.few_pixels(run, flips, rows, seed=seed, store=kept, console=console)

    def pictures(rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(flips.images[rows], jnp.float32) / 255, images.rounded(flips.results[rows])

    places = _once(kept, "places", lambda: measure.place_measures(run, regions, flips.index, named, pictures), console)
    material = Material(run, regions, attributes, labels, flips, checks, named, pixels, rows, singles, measured, places,
                        random_lift, moved)  # fmt: skip
    compared = [
        *comparisons.meaning(material, spread, margin=config.margin, seed=seed),
        *comparisons.localisation(material),
        *comparisons.colour(material),
        *comparisons.pixels(material),
        *comparisons.noise(material, seed=seed),
        *comparisons.inexactness(material, spread),
    ]
    atlas = make_atlas(material, spread)
    verdicts = [*map(judge, compared), *comparisons.perturbability(material, atlas)]
    return RunClaims(name, material, compared, verdicts, atlas, witness, _figures(material))


def _asked(run: LoadedRun, config: ClaimConfig, spread: np.ndarray) -> list[int]:
    """Columns of the attributes that are asked to move: those of the chosen groups that vary at all."""
    groups = [group_of(name) for name in run.info.attribute_names]
    unknown = sorted(set(config.groups) - set(groups))
    if unknown:
        raise UserError(f"--groups {unknown[0]}: expected some of {', '.join(dict.fromkeys(groups))}")
    return [f for f, group in enumerate(groups) if spread[f] > 0 and (not config.groups or group in config.groups)]


def _once(store: Store, name: str, compute: Any, console: Console) -> dict[str, np.ndarray]:
    """Measures that are quickly made together; kept in one file."""
    return store.get_rows(name, 1, lambda _: compute(), chunk=1, console=console, title=f"measuring ({name})")


def _random_lift(
    run: LoadedRun, regions: Regions, singles: Singles, chosen: list[tuple[int, int]], config: ClaimConfig, out: Path,
    *, seed: int, console: Console,
) -> np.ndarray:  # fmt: skip
    """(p,) lift of every single-attribute request to the same architecture with random weights.

    Runs of one architecture on the same data share the pictures of this control.
    """
    with_part = [(i, f) for i, f in chosen if regions.parts_of(run.info.attribute_names[f])]
    about = {**describe(run.config, run.dataset), "seed": seed, "step": config.step,
             "search": dataclasses.asdict(config.single), "requests": with_part, "regions": regions.kind}  # fmt: skip
    # How the trained weights came about does not matter here.
    about["train"] = {key: about["train"][key] for key in ("model", "model_options", "image_size")}
    size, store = run.config.image_size, Store(out / "runs" / "random", about)
    params = run.model.init(jax.random.key(seed), (size, size, 3))
    encode = jax.jit(run.model.encode)

    def spread() -> dict[str, np.ndarray]:
        count = min(_SPREAD_IMAGES, run.dataset.num_examples("test"))
        shown = np.random.default_rng([seed, 31]).permutation(run.dataset.num_examples("test"))[:count]
        parts = []
        for start in range(0, count, images.CHUNK):
            rows = np.resize(shown[start : start + images.CHUNK], images.CHUNK)
            pictures = run.dataset.images("test", rows, image_size=size)
            encoded = encode(params, jnp.asarray(pictures, jnp.float32) / 255)
            parts.append(np.asarray(encoded)[: len(shown[start : start + images.CHUNK])])
        return {"spread": np.concatenate(parts).std(axis=0)}

    found = images.find_singles(
        run, params, _once(store, "spread", spread, console)["spread"], with_part, size=config.step,
        config=config.single, store=store, name="singles", console=console,
    )  # fmt: skip
    pictures_of = functools.partial(images.pictures_of, run, found)
    places = _once(
        store,
        "places",
        lambda: measure.place_measures(run, regions, found.index, found.attribute, pictures_of),
        console,
    )
    keys = zip(found.index, found.attribute, found.sign, strict=True)
    lift = np.where(found.success, places["lift"], np.nan)
    known = {tuple(map(int, key)): value for key, value in zip(keys, lift, strict=True)}
    wanted = zip(singles.index, singles.attribute, singles.sign, strict=True)
    return np.array([known.get(tuple(map(int, key)), np.nan) for key in wanted])


def _witness(
    run: LoadedRun, singles: Singles, witnesses: list[Path], folder: Path, about: dict[str, Any], *, console: Console
) -> tuple[str, np.ndarray | None]:
    """Name and attribute changes of the first witness that was trained on the same data and is another network."""
    own = checksum(run)
    for path in witnesses:
        witness = load_run(path)
        if witness.dataset.path.name != run.dataset.path.name or checksum(witness) == own:
            continue
        theirs = load_test_split(path).attributes
        store = Store(folder, [about, checksum(witness, theirs)])  # its attributes set the units
        spread = theirs.std(axis=0)
        moved = images.witness_changes(witness, spread, run, singles, store=store, console=console)
        return f"{witness.config.model}, seed {witness.config.seed}", moved
    return "", None


def _figures(material: Material) -> dict[str, float]:
    """Numbers that say how much the verdicts rest on."""
    flips, singles, columns = material.flips, material.singles, material.columns
    size = flips.images.shape[1] * flips.images.shape[2]
    kept = material.pixels["pruned"]
    won = flips.success

    def middle(values: np.ndarray) -> float:
        known = values[np.isfinite(values)]
        return float(np.median(known)) if len(known) else float("nan")

    hits = np.where(singles.success, columns["hit"] - columns["area"], np.nan)
    inside, outside = (np.where(won, material.checks.inside[:, column], np.nan) for column in (0, 2))
    with np.errstate(invalid="ignore"):
        known = np.isfinite(hits)
        parts = np.isfinite(inside) & np.isfinite(outside)
    return {
        "flips": len(won),
        "flips_reached": float(won.mean()),
        "flips_survive_rounding": float(np.mean(flips.survives_rounding)),
        "flips_l2_median": middle(np.where(won, _lengths(flips), np.nan)),
        "singles": len(singles.index),
        "singles_reached": float(np.mean(singles.success)),
        "singles_l2_median": middle(np.where(singles.success, columns["length"], np.nan)),
        "singles_lift_median": middle(np.where(singles.success, columns["lift"], np.nan)),
        "singles_pointing_above_chance": float(hits[known].mean()) if known.any() else float("nan"),
        "part_area_mean": float(np.nanmean(columns["area"])) if np.isfinite(columns["area"]).any() else float("nan"),
        "flips_by_inside_alone": float(inside[parts].mean()) if parts.any() else float("nan"),
        "flips_by_outside_alone": float(outside[parts].mean()) if parts.any() else float("nan"),
        "few_pixels_median": middle(np.where(kept > 0, kept / size, np.nan)),
        "few_pixels_random_median": middle(np.where(kept > 0, material.pixels["random"] / size, np.nan)),
    }


def _lengths(flips: Any) -> np.ndarray:
    change = np.asarray(images.rounded(flips.results)) - flips.images.astype(np.float32) / 255
    return np.sqrt(np.square(change).sum(axis=(1, 2, 3)))


def run_names(run_dirs: tuple[Path, ...]) -> list[str]:
    """A different name for every run folder: its own, with its parents' where two would be the same."""
    parts = [path.absolute().parts for path in run_dirs]
    for depth in range(1, max(map(len, parts))):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("--run-dirs names the same folder twice")
