"""The first flips once more, on a model that comes with a proof of how near any such image can be."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.cli.options import DataConfig, starting_config
from experiments.counterfactuals.find import Counterfactuals, find_counterfactuals, pair_options
from experiments.counterfactuals.options import PairConfig
from experiments.runs.loading import LoadedRun, load_run, load_test_split
from experiments.runs.store import Store
from experiments.training.train import TrainArgs, train
from spectra_jax import head_logits
from spectra_jax.data import Dataset
from spectra_jax.logging import Console
from spectra_jax.names import readable_class
from spectra_jax.reporting import Picture, Report
from spectra_jax.reporting.images import difference_picture

MODEL, FOLDER = "lipschitz_cnn", "certified"
_FLIPS = 2


def train_certified(
    epochs: int, run_dir: Path, data: DataConfig, dataset: Dataset, *, seed: int, quiet: bool
) -> tuple[Path, int]:
    """Trains the second model in a folder of the first one's; its run folder and the exit code."""
    config = dataclasses.replace(starting_config(MODEL, data.data_dir), epochs=epochs, seed=seed)
    return train(TrainArgs(config, data=data, run_dir=run_dir / FOLDER, quiet=quiet), dataset)


def find_again(
    run_dir: Path, name: str, first: LoadedRun, found: Counterfactuals, config: PairConfig, *, console: Console
) -> list[Picture]:
    """The same images and targets on the first model and on the second: of each what was found and what it changed.

    Args:
        run_dir: the second model's.
        name: of the first model.
        first: the first model.
        found: its pairs.
        config: how they were searched.
        console: shows the progress.
    """
    run, split = load_run(run_dir), load_test_split(run_dir)
    named = np.asarray(head_logits(split.head, jnp.asarray(split.attributes))).argmax(axis=-1)
    rows = np.flatnonzero(found.success & (named[found.index] == found.label) & (found.predicted == found.label))[
        :_FLIPS
    ]
    if not rows.size:
        return []
    config = dataclasses.replace(config, num_pairs=len(rows), batch_size=len(rows))
    options = pair_options(run, config, 0, split.attributes, split.labels) | {"rows": found.index[rows].tolist()}
    again = find_counterfactuals(
        run, split.labels, found.index[rows], found.target[rows], config, Store(run_dir / "counterfactuals", options),
        console=console,
    )  # fmt: skip
    pictures = []
    for place, row in enumerate(rows):
        nearest = f"proven: no such image is nearer than {again.certified[place]:.2f}"
        pictures += _shown(first, name, found, row, "whether others are nearer is not known")
        pictures += _shown(run, MODEL, again, place, nearest)
    return pictures


def _shown(run: LoadedRun, name: str, found: Counterfactuals, row: int, known: str) -> list[Picture]:
    before, after = found.images[row] / np.float32(255), found.results[row]
    source, target = (readable_class(run.info.class_names[k]) for k in (found.predicted[row], found.target[row]))
    difference = difference_picture(before, after)
    distance = f"L2 distance {np.linalg.norm(after - before):.2f}; {known}"
    words = f"{name}: {source} classified as {target}. {distance}."
    if not found.success[row]:
        words = f"{name}: not reached; {known}."
    factor = f"what changed, × {difference.amplification}"
    return [
        Picture(after, words, words),
        Picture(difference.pixels, f"{name}: {factor}", f"{name}, {target}: {factor}"),
    ]


def add_certified(report: Report, pictures: list[Picture]) -> None:
    """The pictures, if there are any."""
    if pictures:
        report.gallery(
            "The same flips, with a proof",
            pictures,
            caption="Each image and target is shown twice: on the model above, and on a model whose attributes change "
            "no faster than its image. For the second model, the exact distance between attributes proves that no "
            "image of the target is nearer. A change that has to be large can come to look like something.",
            large=True,
        )
