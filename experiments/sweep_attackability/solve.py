"""The sweep behind experiments.sweep_attackability: its options, its folder, and the loop over partitions."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from experiments.cli.command import UserError
from experiments.runs.folder import CONFIG, METRICS, owned_folder, read_json
from experiments.runs.signals import stop_on_signals
from experiments.sweep_attackability.inputs import Problem, Scan, mutable_mask, read_labels
from experiments.sweep_attackability.nearest import Nearest
from experiments.sweep_attackability.options import SolveConfig
from spectra_jax.array_files import SourceError
from spectra_jax.logging import Console, MetricsFile
from spectra_jax.sharding import any_process
from spectra_jax.sweep import SweepAnswers, check_methods, make_sweep
from spectra_jax.sweep_files import FORMAT, Partition, finished, partitions, remove_leftovers, write_partition
from spectra_jax.sweep_sources import check_floats

MADE_BY = "experiments.sweep_attackability"
_ROWS_IN_A_GROUP = 1 << 26  # of a Parquet file; pyarrow would split what is larger
# Numbers a file where deltas are written too: 256 MB in float32.
_DELTAS_PER_PARTITION = 1 << 26
# Pairs a device solves at once: an accelerator wants many, a CPU's cache and the progress bar few.
_PAIRS_ON_CPU, _PAIRS_ON_ACCELERATOR = 1 << 15, 1 << 18
# Blocks of a CPU in a file: 262,144 pairs, a few MB, and seconds of work that a kill can cost. The cores share them.
_BLOCKS_PER_PARTITION = 8

# Of all pairs where no method is named, and how much of them is solved without being asked: a minute or two.
ALL_PAIRS: tuple[Literal["projection", "boundary"], ...] = ("projection", "boundary")
_NOT_IN_IDENTITY = ("samples_per_partition", "all_pairs", "nearest_only")
_SOON_PAIRS, _SOON_WORK = 5_000_000, 4e11

_T = TypeVar("_T")
Solver = Callable[[list[Partition], Callable[[int], None]], Iterator[dict[str, Any]]]


class Plan(NamedTuple):
    """What is to be done, and under which name.

    Attributes:
        identity: of input and options; every finished file carries it.
        options: the same as JSON-able facts, for config.json.
        partitions: of the samples.
        rows_per_device: samples a device solves at once.
        together: partitions that are solved at once, so that every device has work.
    """

    identity: str
    options: dict[str, Any]
    partitions: list[Partition]
    rows_per_device: int
    together: int


def with_methods(config: SolveConfig, problem: Problem) -> SolveConfig:
    """The options with the methods that all pairs are solved by, none where nobody asked and it would take long."""
    num_samples, width = problem.features.shape
    num_classes = problem.head.weights.shape[0]
    pairs = num_samples * num_classes
    soon = pairs <= _SOON_PAIRS and float(pairs) * num_classes * width <= _SOON_WORK and not config.nearest_only
    return dataclasses.replace(config, methods=config.methods or (ALL_PAIRS if config.asks_for_pairs or soon else ()))


def make_plan(problem: Problem, config: SolveConfig, fingerprint: str) -> Plan:
    """Cuts the samples into partitions. The cut depends on the problem alone, not on the machine."""
    num_samples, width = problem.features.shape
    num_classes = problem.head.weights.shape[0]
    size = config.samples_per_partition
    if size < 0:
        raise UserError(f"--samples-per-partition {size}: expected 1 or more, or 0 for an automatic choice")
    if not size:
        numbers = num_classes * width * len(config.methods) if config.deltas else 0
        size = _BLOCKS_PER_PARTITION * max(1, _PAIRS_ON_CPU // num_classes)
        size = max(1, min(size, _DELTAS_PER_PARTITION // max(numbers, 1)))
    size = min(size, num_samples)
    if size * num_classes > _ROWS_IN_A_GROUP:
        raise UserError(
            f"--samples-per-partition {size} times {num_classes} classes is more than the {_ROWS_IN_A_GROUP:,} rows "
            f"that a Parquet row group holds. Choose {_ROWS_IN_A_GROUP // num_classes} or fewer."
        )
    options = {
        **{name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_IN_IDENTITY},
        "samples_per_partition": size,
        "samples": num_samples,
        "classes": num_classes,
        "attributes": width,
        "input": fingerprint,
        "format": FORMAT,
    }
    if problem.ids is not None:
        options["ids"] = problem.id_digest(0, num_samples)
    options = json.loads(json.dumps(options))
    identity = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    at_once = _PAIRS_ON_CPU if jax.default_backend() == "cpu" else _PAIRS_ON_ACCELERATOR
    num_blocks = -(-size // max(1, at_once // num_classes))
    devices = jax.device_count() // jax.process_count()  # the same number on all processes
    return Plan(identity, options, partitions(num_samples, size), -(-size // num_blocks), max(1, devices // num_blocks))


def nearest_options(problem: Problem, found: Nearest | None) -> dict[str, Any]:
    """What config.json says of a sweep without pairs; only process 0 has the answers, and writes."""
    (samples, width), classes = problem.features.shape, problem.head.weights.shape[0]
    options = {"samples": samples, "classes": classes, "attributes": width, "methods": [], "format": FORMAT}
    return options if found is None else options | {"input": found.fingerprint}


@contextlib.contextmanager
def sweep_folder(path: Path, options: dict[str, Any], *, part: str | None = None) -> Iterator[Path]:
    """The folder of a sweep, held by this command while the `with` block lasts; finished partitions in it are kept.

    With a part only that is held, and other commands may hold others.

    Raises:
        UserError: it holds another sweep or something else, or another command is writing it; nothing is touched then.
    """
    with contextlib.ExitStack() as stack:
        refusal: Exception | None = None
        if jax.process_index() == 0:  # one process decides: the others could see the folder half made
            try:
                refuse_other(path, options)
                stack.enter_context(owned_folder(path, MADE_BY, options, part=part))
                if part is None:
                    remove_leftovers(path)
            except (UserError, OSError) as error:  # kept until the others know, who would wait for ever
                refusal = error
        if any_process(refusal is not None):
            if isinstance(refusal, OSError):
                raise UserError(f"--out {path} cannot be used: {refusal}")
            raise refusal or UserError(f"Process 0 refuses --out {path}; see its output for the reason.")
        yield path


def refuse_other(path: Path, options: dict[str, Any]) -> None:
    """A sweep may be a day's work: one with other options is not replaced, as `owned_folder` would.

    Raises:
        UserError: the folder holds another sweep with pairs.
    """
    try:
        stored = read_json(path / CONFIG)
    except (OSError, ValueError):  # `owned_folder` judges what it is
        return
    before = stored.get("options") if isinstance(stored, dict) and stored.get("made_by") == MADE_BY else None
    if not isinstance(before, dict) or before == options or not before.get("methods"):
        return  # without methods there are no pairs in it, and what there is took seconds
    # One without pairs says less, and its checksum is another one.
    compared = options | before if options["methods"] else options.keys() - {"input"}
    differing = [
        f"  {key}: {before.get(key)!r} there, {options.get(key)!r} now"
        for key in sorted(compared)
        if before.get(key) != options.get(key)
    ]
    raise UserError(
        f"--out {path} holds another sweep; these differ:\n" + "\n".join(differing) + "\n(input is a checksum of "
        "features, labels and head, ids a checksum of the ids.) Choose another folder, or delete that one."
    )


def finished_part(plan: Plan, folder: Path) -> Plan:
    """The plan of what is finished.

    Raises:
        UserError: nothing is.
    """
    kept = [p for p in plan.partitions if finished(folder, p, plan.identity) is not None]
    if not kept:
        raise UserError(f"--merge: {folder} holds no finished file of this sweep. Run --shard first.")
    return plan._replace(partitions=kept, options={**plan.options, "samples": sum(p.stop - p.start for p in kept)})


def solve(
    problem: Problem,
    config: SolveConfig,
    plan: Plan,
    found: Scan,
    folder: Path,
    *,
    alone: bool,
    console: Console,
) -> int:
    """Solves and writes every partition that is not finished yet; with several processes each its share.

    Args:
        problem: what is swept.
        config: the options.
        plan: what is to be done.
        found: what the scan of the input found.
        folder: of the sweep.
        alone: whether nobody else writes into the folder: metrics.jsonl is kept.
        console: told about progress.

    Returns:
        0 when all partitions are there, else the exit code of the signal that stopped it.

    Raises:
        UserError: a file could not be read or written. Finished partitions stay.
    """
    done = [finished(folder, partition, plan.identity) for partition in plan.partitions]
    missing = _agreed([p for p, record in zip(plan.partitions, done, strict=True) if record is None], plan)
    process, processes = jax.process_index(), jax.process_count()
    mine = missing[process::processes]
    rounds = -(-len(missing) // (processes * plan.together))
    with contextlib.ExitStack() as stack:
        metrics = together(lambda: _open_metrics(folder, done)) if alone else None
        if metrics is not None:
            stack.enter_context(contextlib.closing(metrics))
        if not missing:
            return 0
        if len(missing) < len(plan.partitions):
            console.say(f"{len(plan.partitions) - len(missing)} of {len(plan.partitions)} files are finished already")
        solve_some = _make_solver(problem, config, plan, found, folder)
        total, before = sum(p.stop - p.start for p in mine), 0
        title = "sweeping" if processes == 1 else f"sweeping, process {process} of {processes}"
        stop = stack.enter_context(stop_on_signals())
        task = stack.enter_context(console.progress(title, total, unit="samples"))
        failure: UserError | None = None
        for turn in range(rounds):
            # All processes take the same number of turns, so that they meet here and stop together.
            if any_process(stop() or failure is not None):
                break
            some = mine[turn * plan.together : (turn + 1) * plan.together]
            if not some:
                continue
            try:
                for record in solve_some(some, _ahead(task.update, before)):
                    before += record["samples"]
                    if metrics is not None:
                        metrics.append(_metrics_record(record))
            except SourceError as error:
                failure = UserError(f"{error} Finished files are kept.")
            except OSError as error:
                failure = cannot_write(folder, error)
        if any_process(failure is not None):  # nobody goes on before all are done
            raise failure or UserError(
                "Another process could not continue; see its output for the reason. Finished files are kept."
            )
        together(lambda: _append_others(metrics, folder, plan, missing, mine))
        left = sum(finished(folder, partition, plan.identity) is None for partition in missing)
        if any_process(left > 0):
            console.say(f"stopped with {left} of {len(plan.partitions)} files to do; repeat the command to continue")
            return stop.exit_code if stop() else 130
        return 0


def _ahead(update: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda rows: update(before + rows)


def seconds_solved(folder: Path, plan: Plan) -> float:
    """Time that earlier commands took for the partitions that are finished."""
    records = (finished(folder, partition, plan.identity) for partition in plan.partitions)
    return sum(record["seconds"] for record in records if record is not None)


def _agreed(missing: list[Partition], plan: Plan) -> list[Partition]:
    """The partitions that process 0 misses: a shared disk may show a process less than another."""
    if jax.process_count() == 1:
        return missing
    from jax.experimental import multihost_utils

    flags = np.zeros(len(plan.partitions), np.int32)
    flags[[partition.number for partition in missing]] = 1
    agreed = np.asarray(multihost_utils.broadcast_one_to_all(flags))
    return [partition for partition in plan.partitions if agreed[partition.number]]


def cannot_write(folder: Path, error: OSError) -> UserError:
    """What to do when the disk is full or the folder is gone."""
    return UserError(
        f"{folder} cannot be written ({error}). Finished files are kept: free some space and repeat the command."
    )


def _open_metrics(folder: Path, done: list[dict[str, Any] | None]) -> MetricsFile | None:
    """metrics.jsonl with the records of the finished partitions, on process 0."""
    if jax.process_index() > 0:
        return None
    try:
        metrics = MetricsFile(folder / METRICS)
        for record in filter(None, done):
            metrics.append(_metrics_record(record))
    except OSError as error:
        raise cannot_write(folder, error) from error
    return metrics


def _append_others(
    metrics: MetricsFile | None, folder: Path, plan: Plan, missing: list[Partition], mine: list[Partition]
) -> None:
    """Adds the records of the partitions that other processes solved."""
    if metrics is None:
        return
    try:
        for partition in missing:
            if partition not in mine and (record := finished(folder, partition, plan.identity)):
                metrics.append(_metrics_record(record))
    except OSError as error:
        raise cannot_write(folder, error) from error


def _metrics_record(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "identity"}


def _make_solver(problem: Problem, config: SolveConfig, plan: Plan, found: Scan, folder: Path) -> Solver:
    """Compiles the sweep; the result solves and writes partitions, tells of finished rows and gives their records."""
    features, dtype = problem.features, problem.head.weights.dtype
    sweep = make_sweep(
        problem.head,
        rows_per_device=plan.rows_per_device,
        methods=config.methods,
        margin=config.margin,
        mutable=mutable_mask(problem, config.immutable),
        spread=found.spread,
        deltas=config.deltas,
    )

    def read(partition: Partition) -> np.ndarray:
        _, start, stop = partition
        return check_floats(features.read(start, stop), start=start, dtype=dtype, title=features.title)

    def solve_some(some: list[Partition], on_rows: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        began = time.monotonic()
        labels = [None if problem.labels is None else read_labels(problem, start, stop) for _, start, stop in some]
        answers = sweep(*map(read, some), on_rows=on_rows)
        seconds = (time.monotonic() - began) / len(jax.tree.leaves(answers)[0])
        first = 0
        for partition, named in zip(some, labels, strict=True):
            _, start, stop = partition
            rows = slice(first, first + stop - start)
            first = rows.stop
            own = jax.tree.map(lambda leaf, rows=rows: leaf[rows], answers)
            record = _record(config, partition, own, named) | {"seconds": seconds * (stop - start)}
            write_partition(
                folder,
                partition,
                identity=plan.identity,
                methods=config.methods,
                ids=problem.id_columns(start, stop),
                pairs=[pair._asdict() for pair in own.pairs],
                samples={"label": named, **own.samples._asdict()},
                record=record,
            )
            yield {**record, "start": start, "stop": stop}

    return solve_some


def _record(
    config: SolveConfig, partition: Partition, answers: SweepAnswers, labels: np.ndarray | None
) -> dict[str, Any]:
    """What metrics.jsonl says on a partition."""
    norms = {method: np.asarray(pair.norm) for method, pair in zip(config.methods, answers.pairs, strict=True)}
    residuals = np.concatenate([np.asarray(pair.residual) for pair in answers.pairs])
    return {
        "partition": partition.number,
        "samples": partition.stop - partition.start,
        "pairs": int(next(iter(norms.values())).size),
        "infeasible": {method: int(np.isposinf(values).sum()) for method, values in norms.items()},
        "unresolved": {method: int(np.isnan(values).sum()) for method, values in norms.items()},
        "residual_max": float(np.max(residuals, initial=0, where=~np.isnan(residuals))),
        "correct": -1 if labels is None else int((labels == np.asarray(answers.samples.predicted)).sum()),
    }


def check_options(config: SolveConfig, problem: Problem) -> None:
    """Refuses options that no sweep can have.

    Raises:
        UserError: says which and why.
    """
    config.check()
    mask = mutable_mask(problem, config.immutable)
    if not 0 <= config.margin < float("inf"):
        raise UserError(f"--margin {config.margin:g}: expected a finite number of logits, 0 or more")
    try:
        check_methods(config.methods or ALL_PAIRS, mask)
    except ValueError as error:
        raise UserError(f"--methods: {error}") from error


def together(work: Callable[[], _T]) -> _T:
    """work() on every process; where it fails on one, all raise instead of waiting for it."""
    failure: UserError | None = None
    try:
        result = work()
    except UserError as error:
        failure = error
    if any_process(failure is not None):
        raise failure or UserError("Another process cannot continue; see its output for the reason.")
    return result


def check_same_input(plan: Plan) -> None:
    """Raises UserError on all processes unless all of them read the same numbers and have the same options."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        own = np.frombuffer(bytes.fromhex(plan.identity), np.uint8)
        if any_process(not np.array_equal(own, multihost_utils.broadcast_one_to_all(own))):
            raise UserError("The processes do not see the same features, labels, head and options.")
