"""What the paper's -||delta||^2 gains: the attackability by every formula, and the images that flip all the same."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.cli.command import parse, run_main
from spectra_jax.logging import Console

if TYPE_CHECKING:
    from spectra_jax.training import TrainConfig

# By what the loss is given: weights from one that hardly shows to one that ruins the classifier.
WEIGHTS = {"own": (0.0, 0.00003, 0.0001, 0.0003, 0.001), "learned": (0.1, 1.0)}


@dataclass(frozen=True)
class Args:
    """Trains the small network on the synthetic birds plainly and with the paper's stability loss, and compares.

    python -m experiments.benchmarks.squared_stability --out runs/squared_stability
        14 trainings of a minute or two each, on one core. Finished ones are kept; repeat the command to continue.

    The stability loss is -||delta||^2 with delta by the pseudoinverse, from the head's own logits or from logits
    that are learned beside the model, with several weights. Each model is judged on the same test images: table.md has
    a row per training, with medians over the test split and the median of the smallest L2 image change found to reach
    the nearest class (`invert`, method "nearest").

    Attributes:
        out: the folder to write to; the trainings are in its runs/.
        epochs: epochs of each training.
        num_seeds: number of trainings of each kind.
        num_images: number of images whose smallest change is searched for.
        quiet: show only errors.
    """

    out: Path
    epochs: int = 8
    num_seeds: int = 2
    num_images: int = 50
    quiet: bool = False


def trainings(epochs: int, num_seeds: int) -> dict[str, TrainConfig]:
    """Every training by the name of its folder."""
    from spectra_jax.training import PRESETS

    plain = dataclasses.replace(PRESETS["cnn"], epochs=epochs, stability_form="squared", stability_method="pinv")
    return {
        f"{kind}-{weight:g}-seed{seed}": dataclasses.replace(
            plain, lambda_stability=weight, seed=seed, stability_logits="learned" if kind == "learned" else "own"
        )
        for kind, weights in WEIGHTS.items()
        for weight in weights
        for seed in range(num_seeds)
    }


def measure(run_dir: Path, num_images: int) -> dict[str, float]:
    """The row of one finished training."""
    import jax
    import jax.numpy as jnp

    from experiments.counterfactuals.find import choose_pairs
    from experiments.counterfactuals.options import InversionOptions, PairConfig
    from experiments.runs.loading import load_run, load_test_split
    from spectra_jax import (
        all_pairs_norms,
        attackability,
        image_distances,
        invert,
        nearest_target,
        projection_perturbation,
    )
    from spectra_jax.perturbations import formulas

    run, (attributes, labels, head) = load_run(run_dir), load_test_split(run_dir)
    samples, lengths = jnp.asarray(attributes), np.linalg.norm(attributes, axis=1)
    exact = attackability(head, samples)
    figures = {
        "length": np.median(lengths),
        "distance": np.median(lengths / exact),
        "exact": np.median(exact),
        "exact_least": np.min(exact),
        "pinv": np.median(attackability(head, samples, method="pinv")),
        "accuracy": np.mean((attributes @ head.weights.T).argmax(axis=1) == labels),
    }
    if "free_logits" in run.params:
        free = jnp.asarray(run.params["free_logits"])[labels]
        tie = nearest_target(all_pairs_norms(head, samples, method="pinv", logits=free)).distance
        figures["learned"] = np.median(formulas.attackability(np.asarray(tie), lengths))
    index, target = choose_pairs(run, attributes, labels, PairConfig(num_pairs=num_images, targets="nearest"), seed=0)
    pixels = run.dataset.images("test", index, image_size=run.config.image_size)
    images, targets = jnp.asarray(pixels, jnp.float32) / 255, jnp.asarray(target)
    encode = functools.partial(run.model.encode, run.params)
    before = jax.jit(encode)(images)
    delta = jax.vmap(functools.partial(projection_perturbation, head))(before, targets).delta
    found = invert(encode, head, images, before + delta, targets, config=InversionOptions(method="nearest"))
    changes = np.where(found.success, image_distances(found.images, images).l2, np.inf)
    figures |= {"image_l2": np.median(changes), "flipped": np.mean(found.success)}
    return {name: float(value) for name, value in figures.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    heading = ("training", "class accuracy", "median of e's length", "median distance to the nearest class",
               "attackability, exact: median (least)", "by pinv", "by pinv of the learned logits",
               "images flipped", "smallest L2 of the image, median")  # fmt: skip
    lines: list[tuple[str, ...]] = [heading, ("---",) * len(heading)]
    for name, row in rows.items():
        learned = f"{row['learned']:.3g}" if "learned" in row else ""
        lines.append((
            name, f"{row['accuracy']:.3f}", f"{row['length']:.3g}", f"{row['distance']:.3g}",
            f"{row['exact']:.3g} ({row['exact_least']:.3g})", f"{row['pinv']:.3g}", learned,
            f"{row['flipped']:.0%}", f"{row['image_l2']:.3f}",
        ))  # fmt: skip
    return "\n".join(" | ".join(("", *line, "")).strip() for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks.squared_stability")
    from experiments.cli.devices import use_compilation_cache
    from experiments.cli.options import DataConfig
    from experiments.runs.loading import prepare_data
    from experiments.training.train import TrainArgs, train
    from spectra_jax.reporting.page import write_atomically

    use_compilation_cache()
    dataset = prepare_data(DataConfig(), console=Console(quiet=args.quiet))
    rows: dict[str, dict[str, float]] = {}
    for name, config in trainings(args.epochs, args.num_seeds).items():
        path, code = train(TrainArgs(config, run_dir=args.out / "runs" / name, quiet=args.quiet), dataset)
        if code:
            return code
        rows[name] = measure(path, args.num_images)
        write_atomically(args.out / "squared_stability.json", json.dumps(rows, indent=1) + "\n")
        write_atomically(args.out / "table.md", table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    run_main(main)
