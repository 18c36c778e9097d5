"""The whole of SPECTRA in one command: data, training, exact counterfactuals, images, one report."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes

from experiments.cli.command import UserError, command, run_main
from experiments.cli.options import DataConfig, Seed, starting_config
from experiments.counterfactuals.options import PairConfig
from experiments.training.train import TrainArgs, train
from spectra_jax.logging import Console, duration, write_json
from spectra_jax.training import PRESETS

_CERTIFIED_EPOCHS = 4  # for the synthetic birds


@dataclass(frozen=True)
class Args:
    """Trains a classifier, explains it, attacks it, and writes a report.

    python -m experiments.quickstart
        synthetic birds, 64 pixels, cnn; takes 3 minutes on 2 free CPU cores; the class accuracy is 0.99 and all 24
        images reach their target.

    python -m experiments.quickstart --data-dir DIR
        your own images (docs/own-data.md): a frozen EfficientNet-Lite0 at 224 pixels for photographs, cnn for small
        images; 6,000 photographs take about 5 minutes on 2 free CPU cores.

    Repeating the command resumes training and keeps the images already found. Open report.html in the run folder.

    Attributes:
        model: linear, cnn, deep_cnn, resnet or efficientnet_lite0; by default cnn for images below 128 pixels and
            efficientnet_lite0 for larger ones. Its training presets are those of experiments.train.
        epochs: passes over the training split; by default those of the model's preset.
        image_size: side in pixels of the square that all images are resized to; 0 uses the model's own size, 224 for
            efficientnet_lite0 and 64 for the others.
        run_dir: the run folder; default runs/quickstart-<data>-<model>-seed<k>.
        seed: seed of training and of the choice of images.
        certified_epochs: epochs of a second model, lipschitz_cnn, on which the first flips are searched again, with
            a proof of how near any such image can be; by default 4 for the synthetic birds and 0 (no such model) for
            your own images.
        quiet: show only errors.
    """

    data: OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    pairs: Annotated[PairConfig, tyro.conf.arg(name="")] = field(default_factory=PairConfig)
    model: str | None = None
    epochs: int | None = None
    image_size: int = 0
    run_dir: Path | None = None
    seed: Seed = 0
    certified_epochs: int | None = None
    quiet: bool = False


def quickstart(args: Args) -> tuple[Path, int]:
    """Runs every stage; returns the report and the exit code.

    summary.json: "seconds" is the time of the whole command, "train/seconds" of the training loop alone. A repeated
    command adds its own to what is known of the ones before.
    """
    import jax.numpy as jnp

    from experiments.counterfactuals.find import (
        all_norms,
        choose_pairs,
        find_counterfactuals,
        pair_metrics,
        pair_options,
    )
    from experiments.quickstart.certified import add_certified, find_again, train_certified
    from experiments.quickstart.margins import add_margins, write_pairs
    from experiments.reporting.finding import add_finding
    from experiments.reporting.pages import (
        add_answers,
        add_changes,
        add_counterfactuals,
        add_training,
        counterfactual_cards,
        data_words,
        headline,
        inversion_figures,
        ratio_median,
    )
    from experiments.runs.folder import SUMMARY
    from experiments.runs.loading import default_model, load_run, load_test_split, prepare_data
    from experiments.runs.store import Store, write_arrays
    from experiments.runs.stored import read_summary
    from spectra_jax import head_logits
    from spectra_jax.reporting import Report

    began = time.monotonic()
    console = Console(quiet=args.quiet)
    if args.model is not None and args.model not in PRESETS:
        raise UserError(f"--model {args.model!r}: choose one of {', '.join(PRESETS)}")
    at_least = (("epochs", args.epochs, 1), ("image-size", args.image_size, 0),
                ("certified-epochs", args.certified_epochs, 0))  # fmt: skip
    for option, value, least in at_least:
        if value is not None and value < least:
            raise UserError(f"--{option} {value}: expected {least} or more")
    dataset = prepare_data(args.data, console=console)
    name = args.model or default_model(dataset)
    run_dir = args.run_dir or Path("runs") / f"quickstart-{args.data.name}-{name}-seed{args.seed}"
    preset = starting_config(name, args.data.data_dir)
    config = dataclasses.replace(
        preset, seed=args.seed, epochs=args.epochs or preset.epochs, image_size=args.image_size
    )
    _, code = train(TrainArgs(config, data=args.data, run_dir=run_dir, quiet=args.quiet), dataset)
    trained, certified, epochs = time.monotonic(), None, args.certified_epochs
    if epochs is None:
        epochs = _CERTIFIED_EPOCHS if args.data.data_dir is None else 0
    if not code and epochs:
        certified, code = train_certified(epochs, run_dir, args.data, dataset, seed=args.seed, quiet=args.quiet)
    if code:
        return run_dir, code

    run = load_run(run_dir)
    head, (attributes, labels, _) = run.model.head(run.params), load_test_split(run_dir)
    console.say(f"solving {len(labels) * run.info.num_classes:,} (image, target) pairs")
    norms = all_norms(head, attributes)
    write_arrays(run_dir / "norms.npz", **norms)
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=-1)
    write_pairs(run_dir, run, norms, labels, predicted)
    exact = norms["projection"]

    pairs = args.pairs.fitting(run.config.image_size, console=console)
    index, target = choose_pairs(run, attributes, labels, pairs, seed=args.seed)
    options = pair_options(run, pairs, args.seed, attributes, labels)
    store = Store(run_dir / "counterfactuals", options)
    found = find_counterfactuals(run, labels, index, target, pairs, store, console=console)

    summary = read_summary(run_dir)
    spread = attributes.std(axis=0)
    measured = pair_metrics(head, found, spread)
    figures = inversion_figures(found, measured)
    summary |= {
        **figures,
        "test/pairs_infeasible": int(np.isinf(exact).sum()),
        "test/pairs_unresolved": int(np.isnan(exact).sum()),
        "test/boundary_over_projection_median": ratio_median(norms["boundary"], exact, predicted),
        "test/pinv_over_projection_median": ratio_median(norms["pinv"], exact, predicted),
        "seconds": summary["seconds"] + time.monotonic() - trained,
    }
    write_json(run_dir / SUMMARY, summary)

    report = Report("SPECTRA quickstart", subtitle=f"{name} on {args.data.name}, seed {args.seed}")
    cards = counterfactual_cards(run, found, spread, measured)
    twice = find_again(certified, name, run, found, pairs, console=console) if certified else []
    add_finding(report, run, found, figures, cards)
    report.headline(headline(figures, summary))
    add_certified(report, twice)
    add_counterfactuals(report, cards)
    add_margins(report, run, exact, np.linalg.norm(attributes, axis=-1), labels, predicted)
    add_answers(report, found)
    add_changes(report, figures)
    add_training(report, run_dir)
    report.provenance(seed=args.seed, seconds=summary["seconds"], data=data_words(run.info))
    path = report.write(run_dir / "report.html")
    console.say(f"done in {duration(time.monotonic() - began)}; open {path.resolve().as_uri()}")
    return path, 0


main = command(Args, "quickstart", quickstart)

if __name__ == "__main__":
    run_main(main)
