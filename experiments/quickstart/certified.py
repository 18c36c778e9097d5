"""The first flips once more, on a model of which it is proven how near any such image can be."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.cli.options import DataConfig, starting_config
from experiments.counterfactuals.find import Counterfactuals, find_counterfactuals, pair_metrics, pair_options
from experiments.counterfactuals.options import PairConfig
from experiments.reporting.pages import counterfactual_cards
from experiments.runs.loading import load_run, load_test_split
from experiments.runs.store import Store
from experiments.training.train import TrainArgs, train
from spectra_jax import head_logits
from spectra_jax.data import Dataset
from spectra_jax.logging import Console
from spectra_jax.reporting import CounterfactualCard, Report

MODEL, FOLDER = "lipschitz_cnn", "certified"
_FLIPS = 2


def train_certified(
    epochs: int, run_dir: Path, data: DataConfig, dataset: Dataset, *, seed: int, quiet: bool
) -> tuple[Path, int]:
    """Trains the second model in a folder of the first one's; its run folder and the exit code."""
    config = dataclasses.replace(starting_config(MODEL, data.data_dir), epochs=epochs, seed=seed)
    return train(TrainArgs(config, data=data, run_dir=run_dir / FOLDER, quiet=quiet), dataset)


def find_again(
    run_dir: Path, found: Counterfactuals, cards: list[CounterfactualCard], config: PairConfig, *, console: Console
) -> list[CounterfactualCard]:
    """Cards in pairs, the same image and target on the first model and on the second.

    Args:
        run_dir: the second model's.
        found: the pairs of the first model.
        cards: theirs.
        config: how they were searched.
        console: shows the progress.
    """
    run, split = load_run(run_dir), load_test_split(run_dir)
    named = np.asarray(head_logits(split.head, jnp.asarray(split.attributes))).argmax(axis=-1)
    rows = np.flatnonzero(found.success & (named[found.index] == found.label) & (found.predicted == found.label))
    rows = rows[found.target[rows] != found.label[rows]][:_FLIPS]
    if not rows.size:
        return []
    config = dataclasses.replace(config, num_pairs=len(rows), batch_size=len(rows))
    options = pair_options(run, config, 0, split.attributes, split.labels) | {"rows": found.index[rows].tolist()}
    again = find_counterfactuals(
        run, split.labels, found.index[rows], found.target[rows], config, Store(run_dir / "counterfactuals", options),
        console=console,
    )  # fmt: skip
    spread = split.attributes.std(axis=0)
    second = counterfactual_cards(run, again, spread, pair_metrics(run.model.head(run.params), again, spread))
    pairs = []
    for place, row in enumerate(rows):
        proof = f"{MODEL}: no image of this class is nearer than {again.certified[place]:.3f}, which is proven. "
        pairs += [dataclasses.replace(cards[row], note=f"First model: nothing is proven. {cards[row].note}"),
                  dataclasses.replace(second[place], note=proof + second[place].note)]  # fmt: skip
    return pairs


def add_certified(report: Report, cards: list[CounterfactualCard]) -> None:
    """The pairs of cards, if there are any."""
    if cards:
        report.counterfactuals(
            cards,
            title="The same flips, with a proof",
            caption="Each image and target twice: on the model above, and on one whose attributes change no faster "
            "than its image. There the exact distance between attributes is a proof: no image of the target is nearer. "
            "A change that has to be large can come to look like something.",
        )
