"""One training, from the data to a finished run folder: what experiments.train does, and commands that train first."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes

from experiments.cli.options import DataConfig, HostsConfig
from spectra_jax.logging import Console, duration
from spectra_jax.training import TrainConfig

if TYPE_CHECKING:
    from spectra_jax.data import Dataset
    from spectra_jax.training import Predictions


@dataclass(frozen=True)
class TrainArgs:
    """Trains one model.

    python -m experiments.train --model efficientnet_lite0 --data-dir DIR
        your own images (docs/own-data.md), frozen ImageNet backbone; 6,000 photographs take 6 minutes on 2 cores.

    python -m experiments.train --model cnn
        synthetic birds, 64 pixels, from scratch; about a minute on 2 CPU cores; class accuracy 0.99, balanced
        attribute accuracy 0.85 on the test split.

    python -m experiments.train --model lipschitz_cnn --certified-radius 1
        the same birds, with a proof for each: see docs/certificates.md for cost and figures.

    python -m experiments.train --model part_cnn --epochs 60
        reads each attribute where its part is, for data with part points: see docs/parts.md.

    The other defaults shown are those of --model. Repeating the command resumes a run that was stopped or killed.

    Attributes:
        run_dir: folder for config.json, metrics.jsonl, summary.json and checkpoints; default
            runs/<model>-<data>-seed<k>.
        log_every: steps between two training records.
        evaluate_every: epochs between two evaluations on the validation split; 0 for only at the end.
        checkpoint_every: epochs between two checkpoints; 0 for only at the end.
        quiet: show only errors.
    """

    train: OmitArgPrefixes[TrainConfig]
    data: OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    hosts: OmitArgPrefixes[HostsConfig] = field(default_factory=HostsConfig)
    run_dir: Path | None = None
    log_every: int = 50
    evaluate_every: float = 1.0
    checkpoint_every: float = 1.0
    quiet: bool = False


def train(args: TrainArgs, dataset: Dataset | None = None) -> tuple[Path, int]:
    """Trains, or resumes, and evaluates on the test split. Returns the run folder and the exit code."""
    import jax

    from experiments.reporting.pages import training_report
    from experiments.runs.folder import RunFolder
    from experiments.runs.inputs import first_params, make_inputs, positive_weight
    from experiments.runs.loading import (
        check_rhythm,
        describe,
        every,
        make_model,
        prepare_data,
    )
    from experiments.runs.record import Record, certified_figures, summarize
    from experiments.runs.signals import stop_on_signals
    from experiments.runs.stored import read_records
    from spectra_jax.certificates import in_float64
    from spectra_jax.sharding import any_process, data_mesh, place_batch, replicate, replicated
    from spectra_jax.training import evaluate, fit, init_state, make_eval_step, make_optimizer, make_train_step, predict

    began = time.monotonic()
    check_rhythm(args.log_every, args.evaluate_every, args.checkpoint_every)
    console = Console(quiet=args.quiet or jax.process_index() > 0)
    config = args.train
    dataset = dataset or prepare_data(args.data, console=console)
    model = make_model(config, dataset.info)
    config = dataclasses.replace(config, image_size=config.image_size or model.image_size)
    path = args.run_dir or Path("runs") / f"{config.model}-{args.data.name}-seed{config.seed}"
    run = RunFolder(path, describe(config, dataset), extra={"prepared": str(dataset.path)})
    read_records(path)  # damage is said now, not when the report is written

    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    params = first_params(model, init_key, config)
    inputs = make_inputs(model, params, dataset, config, config.image_size, console=console)
    steps_per_epoch = inputs.train.batches_per_epoch
    num_steps = config.epochs * steps_per_epoch
    optimizer = make_optimizer(model, config, num_steps)
    mesh = data_mesh()
    state = replicate(init_state(model, optimizer, inputs.params, train_key), mesh)
    weight = positive_weight(config, inputs.attributes)
    train_step = make_train_step(model, optimizer, config, positive_weight=weight, sharding=replicated(mesh))
    eval_step = make_eval_step(model, sharding=replicated(mesh))

    def look(params: Any, split: str) -> Predictions:
        place = lambda batch: place_batch(batch, mesh)  # noqa: E731
        return predict(eval_step, model.fold(params), inputs.split(split), place=place)

    def prove(params: Any, split: str) -> dict[str, float]:
        if not config.certified_radius:
            return {}
        with jax.enable_x64(True):
            exact = replicate(in_float64(model, jax.device_get(params)), mesh)
            return certified_figures(model, exact, look(exact, split), config)

    record = Record(run, state, console=console)
    progress = record.progress
    if progress.step:
        console.say(f"resuming {path} at step {progress.step} of {num_steps}")
    validate = config.train_split == "train" and dataset.num_examples("validation") > 0
    with (
        contextlib.closing(run),
        contextlib.closing(record),
        stop_on_signals() as stop,
        console.progress(f"training {config.model}", num_steps, start=progress.step) as task,
    ):
        state, progress = fit(
            record.state,
            train_step,
            inputs.train,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            progress=progress,
            place=lambda batch: place_batch(batch, mesh),
            log=record.log,
            log_every=args.log_every,
            evaluate=(lambda params: {"validation": evaluate(look(params, "validation")) | prove(params, "validation")})
            if validate
            else None,
            evaluate_every=every(args.evaluate_every, steps_per_epoch),
            save=record.save,
            save_every=every(args.checkpoint_every, steps_per_epoch),
            non_finite=config.non_finite,
            should_stop=lambda: any_process(stop()),
            on_step=lambda step: task.update(step, record.remark),
            block=jax.process_count() > 1 and jax.default_backend() == "cpu",
        )
        if progress.step == num_steps:
            proven = prove(state.params, "test")
            summarize(run, model.head(state.params), look(state.params, "test"), proven, progress, record, began=began)
    if progress.step < num_steps:
        console.say(f"stopped at step {progress.step} of {num_steps}; repeat the command to continue from there")
        return path, stop.exit_code
    if jax.process_index() == 0:
        training_report(path, subtitle=f"{config.model} on {args.data.name}, seed {config.seed}")
    console.say(f"{path}: trained in {duration(progress.seconds)}")
    return path, 0
