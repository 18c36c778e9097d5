"""One row of the paper's table: how its model is trained, which pairs it is attacked with, and what is measured."""

import dataclasses
import importlib
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.counterfactuals.find import Counterfactuals, choose_pairs, find_counterfactuals, pair_options
from experiments.counterfactuals.options import PairConfig
from experiments.paper_table.plans import PLANS, Variant
from experiments.reporting.intervals import median_interval, rate
from experiments.reporting.pages import median, ratio_median
from experiments.runs.folder import CONFIG, SUMMARY, read_config, read_json
from experiments.runs.loading import LoadedRun, describe, load_run, load_test_split, make_model
from experiments.runs.store import Store, write_arrays
from experiments.runs.stored import read_summary
from spectra_jax import all_pairs_norms, head_logits, perturbation_noise_ratio
from spectra_jax.data import Dataset
from spectra_jax.logging import Console, duration, write_json
from spectra_jax.training import TrainConfig

ROW, CARD = "row.json", "card.npz"
ATTACK_BATCH = 32
# Foolbox's projected gradient descent: an L-infinity ball of one grey level, without a random start so that a
# repeated command finds the same.
EPSILON, ATTACK_STEPS, RELATIVE_STEP = 1 / 255, 10, 0.25


@dataclass(frozen=True)
class Row:
    """One training of the table.

    Attributes:
        model, variant, seed: which one.
        attacked: whether counterfactual images are searched for it; the other seeds show the spread of training.
    """

    model: str
    variant: Variant
    seed: int
    attacked: bool

    @property
    def name(self) -> str:
        """The prefix of its figures in summary.json."""
        return f"{self.model}/{self.variant}" + ("" if self.attacked else f"/seed{self.seed}")

    @property
    def folder(self) -> str:
        return f"{self.model}-{self.variant}-seed{self.seed}"

    @property
    def minutes(self) -> float:
        """A rough forecast on two free cores."""
        plan = PLANS[self.model]
        return plan.training + (plan.attack if self.attacked else 0)


class Budget(NamedTuple):
    """What a row is given; results only count for the same one.

    Attributes:
        pairs: which counterfactual images.
        pair_seed: of the choice of images and targets, the same for all rows.
        foolbox_images: test images attacked with Foolbox; 0: none.
        epochs_scale: factor on the epochs of every plan.
        lambda_stability: instead of those of the plans, if given.
    """

    pairs: PairConfig
    pair_seed: int
    foolbox_images: int
    epochs_scale: float
    lambda_stability: float | None


def list_rows(models: Sequence[str], variants: Sequence[Variant], seeds: int) -> list[Row]:
    """All rows in the order they are made: seed 0 of everything first, so that a table is complete early."""
    attacked = [Row(model, variant, 0, True) for model in models for variant in variants]
    cheap = [model for model in models if PLANS[model].is_cheap]
    return attacked + [Row(m, v, seed, False) for seed in range(1, seeds) for m in cheap for v in variants]


def row_config(row: Row, budget: Budget, dataset: Dataset) -> TrainConfig:
    """The training of a row, with its image size filled in."""
    plan = PLANS[row.model]
    changes = dict(plan.stability if row.variant == "stability" else {})
    if changes and budget.lambda_stability is not None:
        changes["lambda_stability"] = budget.lambda_stability
    epochs = max(1, round(plan.train.epochs * budget.epochs_scale))
    config = dataclasses.replace(plan.train, seed=row.seed, epochs=epochs, **changes)
    size = config.image_size or make_model(config, dataset.info).image_size
    return dataclasses.replace(config, image_size=size)


def row_pairs(row: Row, budget: Budget) -> PairConfig:
    """The pairs of a row; how many are inverted together does not change what is found."""
    return dataclasses.replace(budget.pairs, batch_size=min(budget.pairs.batch_size, PLANS[row.model].batch_size))


def is_trained(run_dir: Path, config: TrainConfig, dataset: Dataset) -> bool:
    """Whether the folder holds this very training, finished."""
    if not (run_dir / SUMMARY).exists() or not (run_dir / CONFIG).exists():
        return False
    return read_config(run_dir)["run"] == json.loads(json.dumps(describe(config, dataset)))


def row_identity(row: Row, config: TrainConfig, budget: Budget, dataset: Dataset) -> dict[str, Any]:
    """What the figures of a row depend on."""
    attack = None
    if row.attacked:
        attack = {
            "pairs": dataclasses.asdict(row_pairs(row, budget)),
            "pair_seed": budget.pair_seed,
            "foolbox_images": budget.foolbox_images if has_foolbox() else 0,
        }
    return json.loads(json.dumps(describe(config, dataset) | {"attack": attack}))


def stored_row(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of a row made before, if they are those of `identity`."""
    try:
        stored = read_json(folder / ROW)
        return stored["figures"] if stored["identity"] == identity else None
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged: made anew
        return None


def measure_row(row: Row, folder: Path, run_dir: Path, budget: Budget, *, console: Console) -> dict[str, Any]:
    """The figures of a trained row: from its summary, and by attacking it."""
    began = time.monotonic()
    summary = read_summary(run_dir)
    figures = {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith("test/")}
    run = load_run(run_dir)
    attributes, labels, _ = load_test_split(run_dir)
    head = run.model.head(run.params)
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=-1)
    figures |= rate("class_accuracy", int((predicted == labels).sum()), len(labels))
    figures |= {"num_test": len(labels), "seconds": summary["seconds"], "train_seconds": summary["train/seconds"]}
    if not row.attacked:
        return figures

    config = row_pairs(row, budget)
    index, target, shown = table_pairs(run, attributes, labels, config, seed=budget.pair_seed)
    figures |= geometry(run, attributes[index])
    options = pair_options(run, config, budget.pair_seed, attributes, labels)
    store = Store(folder / "counterfactuals", options)
    found = find_counterfactuals(run, labels, index, target, config, store, console=console)
    figures |= pair_figures(found)
    place = int(np.flatnonzero(found.index == shown)[0])
    write_arrays(folder / CARD, **{k: v[place : place + 1] for k, v in found.arrays().items()})
    if budget.foolbox_images and has_foolbox():
        console.say(f"Foolbox: projected gradient descent on {budget.foolbox_images} images")
        figures |= foolbox_figures(run, labels, budget.foolbox_images, seed=budget.pair_seed)
    return figures | {"seconds": figures["seconds"] + time.monotonic() - began}


def table_pairs(
    run: LoadedRun, attributes: np.ndarray, labels: np.ndarray, config: PairConfig, *, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """The pairs of one row, the easiest first, and the image shown on its card.

    All rows are asked for the same images, save those of a named target class, which leaves out the images that a model
    assigns to it already. With targets="mixed" every second image has the nearest class of its own model as its target;
    the others have a random class that is the same for all rows, save where a model already names it: there it is the
    next one. "nearest" and "random" depend on the model throughout.
    """
    head = run.model.head(run.params)
    index, target = choose_pairs(run, attributes, labels, config, seed=seed)
    if config.targets == "mixed":
        num_classes = head.weights.shape[0]
        drawn = np.random.default_rng(seed).integers(1, num_classes, len(index))
        predicted = np.asarray(head_logits(head, jnp.asarray(attributes[index]))).argmax(axis=-1)
        common = (labels[index] + drawn) % num_classes
        common = np.where(common == predicted, (common + 1) % num_classes, common)
        target = np.where(np.arange(len(index)) % 2 == 1, common, target).astype(np.int32)
    norms = np.asarray(_all_pairs_norms(head, jnp.asarray(attributes[index])))[np.arange(len(index)), target]
    # Pairs of like difficulty share a batch, whose slowest image decides how long it takes.
    order = np.argsort(norms, kind="stable")
    return index[order], target[order], int(index[min(1, len(index) - 1)])


_all_pairs_norms = jax.jit(all_pairs_norms, static_argnames="method")


def geometry(run: LoadedRun, attributes: np.ndarray) -> dict[str, float]:
    """How the cheaper answers compare with the exact one, from the chosen images to every class, without a margin."""
    head, chosen = run.model.head(run.params), jnp.asarray(attributes)
    predicted = np.asarray(head_logits(head, chosen)).argmax(axis=-1)
    exact = np.asarray(_all_pairs_norms(head, chosen))
    ratios = {
        f"{method}_over_projection_median": ratio_median(
            np.asarray(_all_pairs_norms(head, chosen, method=method)), exact, predicted
        )
        for method in ("boundary", "pinv")
    }
    return ratios | {"pairs_infeasible": int(np.isinf(exact).sum()), "pairs_unresolved": int(np.isnan(exact).sum())}


def pair_figures(found: Counterfactuals) -> dict[str, Any]:
    """Rates over all pairs with Wilson intervals, medians over the successes with bootstrap intervals."""
    won = found.success
    moved = found.results[won] - found.images[won] / np.float32(255)
    realised = perturbation_noise_ratio(moved, found.after[won] - found.before[won])
    requested = perturbation_noise_ratio(moved, found.requested[won])
    return {
        "num_pairs": len(won),
        "pairs_without_answer": int((~np.isfinite(found.requested).all(axis=-1)).sum()),
        **rate("success_rate", int(won.sum()), len(won)),
        **rate("survives_rounding_rate", int(found.survives_rounding.sum()), len(won)),
        **median_interval("psnr_median", found.psnr[won]),
        "psnr_lower_quartile": float(np.quantile(found.psnr[won], 0.25)) if won.any() else float("nan"),
        **median_interval("ssim_median", found.ssim[won]),
        **median_interval("noise_ratio_realised_median", np.asarray(realised)),
        **median_interval("noise_ratio_requested_median", np.asarray(requested)),
        "steps_median": median(found.num_steps[won]),
    }


def has_foolbox() -> bool:
    """Whether the optional package is installed."""
    return importlib.util.find_spec("foolbox") is not None


def foolbox_figures(run: LoadedRun, labels: np.ndarray, num_images: int, *, seed: int) -> dict[str, Any]:
    """What somebody else's attack on the images does: Foolbox's L-infinity projected gradient descent, untargeted.

    Returns:
        foolbox_flip_rate: share of the images whose predicted class it changes; foolbox_clean_accuracy and
        foolbox_robust_accuracy: share named correctly before, and before and after.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which looks for a git program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, about an import of foolbox's
        foolbox = importlib.import_module("foolbox")

    model, params = run.model, run.params
    logits = jax.jit(lambda weights, images: head_logits(model.head(weights), model.encode(weights, images)))
    attacked = foolbox.models.JAXModel(lambda images: logits(params, images), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=ATTACK_STEPS, rel_stepsize=RELATIVE_STEP, random_start=False)
    index = np.random.default_rng(seed).permutation(len(labels))[:num_images]
    flipped, correct = [], []
    for start in range(0, len(index), ATTACK_BATCH):
        rows = np.resize(index[start : start + ATTACK_BATCH], ATTACK_BATCH)  # a last batch wraps: one compilation
        kept = min(ATTACK_BATCH, len(index) - start)
        images = jnp.asarray(run.dataset.images("test", rows, image_size=run.config.image_size), jnp.float32) / 255
        predicted = jnp.argmax(logits(params, images), axis=-1)
        _, _, success = attack(attacked, images, foolbox.criteria.Misclassification(predicted), epsilons=EPSILON)
        flipped.append(np.asarray(success)[:kept])
        correct.append((np.asarray(predicted) == labels[rows])[:kept])
    changed, right = np.concatenate(flipped), np.concatenate(correct)
    return {
        "foolbox_num_images": len(index),
        **rate("foolbox_flip_rate", int(changed.sum()), len(index)),
        **rate("foolbox_clean_accuracy", int(right.sum()), len(index)),
        **rate("foolbox_robust_accuracy", int((right & ~changed).sum()), len(index)),
    }


class Pace:
    """Where the whole table stands, for people: which row, how long so far, how long still."""

    def __init__(self, rows: Sequence[Row], console: Console):
        self._rows, self._console = rows, console
        self._began = time.monotonic()
        self._planned = self._done = 0.0

    def starts(self, place: int) -> None:
        """Says which row begins; the time left scales the plan by how it went so far."""
        row, elapsed = self._rows[place], time.monotonic() - self._began
        self._done = elapsed
        left = sum(r.minutes for r in self._rows[place:])
        factor = elapsed / 60 / self._planned if self._planned else 1.0
        forecast = f"{duration(elapsed)} so far, about {duration(60 * left * factor)} left"
        self._console.say(
            f"row {place + 1} of {len(self._rows)}: {row.model}, {row.variant}, seed {row.seed}; {forecast}"
        )

    def ends(self, place: int) -> None:
        """Counts a row that was computed now; rows of earlier commands say nothing on the pace."""
        self._planned += self._rows[place].minutes


def save_row(folder: Path, identity: dict[str, Any], figures: dict[str, Any]) -> None:
    """Keeps the figures of a row, whole or not at all."""
    write_json(folder / ROW, {"identity": identity, "figures": figures})
