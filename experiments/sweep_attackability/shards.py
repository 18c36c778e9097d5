"""A sweep in independent shares of the samples: no coordinator, any order, any machine.

Each shard answers its own rows and writes one Parquet file, which appears whole or not at all and records what it
answers. Repeating a finished shard ends at once; a killed one starts again. Merging reads the files that are there.
"""

import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.cli.command import UserError
from experiments.runs.folder import owned_folder
from experiments.sweep_attackability.inputs import Problem
from experiments.sweep_attackability.nearest import Nearest, estimate_cost, find_nearest, nearest_table
from experiments.sweep_attackability.options import ShardConfig
from experiments.sweep_attackability.solve import ALL_PAIRS, MADE_BY, cannot_write, nearest_options
from spectra_jax.array_files import SourceError
from spectra_jax.logging import Console, duration
from spectra_jax.sweep_files import read_record, write_tables

FOLDER = "nearest"
# Rows at either end of the features by which a shard knows the input again without reading all of it.
_LOOKED_AT = 16
_COLUMNS = ("sample", "label", "predicted", "nearest", "distance", "attackability")


class Shard(NamedTuple):
    """A share of the samples.

    Attributes:
        number: counted from 0.
        of: how many shares there are.
    """

    number: int
    of: int

    @property
    def name(self) -> str:
        """Of its file and of its lock."""
        return f"shard-{self.number:05d}-of-{self.of:05d}"

    def rows(self, count: int) -> tuple[int, int]:
        """First sample and one past the last, of `count`; shares differ by one sample at most."""
        return self.number * count // self.of, (self.number + 1) * count // self.of

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / FOLDER / f"{self.name}.parquet"


def chosen_shard(config: ShardConfig) -> Shard | None:
    """The shard that the options name, None where they name none."""
    config.check()
    if not config.shard:
        return None
    if jax.process_count() > 1:
        raise UserError("--shard is for independent processes: omit --num-processes.")
    number, _, of = config.shard.partition("/")
    return Shard(int(number), int(of))


def input_options(problem: Problem) -> dict[str, Any]:
    """What config.json says of a sweep in shards: the same for all, from the head and a few rows of the features.

    Raises:
        UserError: the features cannot be read.
    """
    features, head = problem.features, problem.head
    count = features.shape[0]
    digest = hashlib.sha256(repr((features.shape, problem.labels is not None)).encode())
    for array in (head.weights, head.bias):
        digest.update(b"none" if array is None else np.asarray(array).tobytes())
    try:
        for start, stop in ((0, min(_LOOKED_AT, count)), (max(0, count - _LOOKED_AT), count)):
            digest.update(features.read(start, stop).tobytes())
    except SourceError as error:
        raise UserError(str(error)) from error
    return nearest_options(problem, None) | {"input": digest.hexdigest()}


def solve_shard(problem: Problem, shard: Shard, out: Path, *, console: Console) -> None:
    """Answers the samples of a shard and writes its file, unless it is there.

    Raises:
        UserError: the folder holds another sweep, another process has this shard, or it cannot be read or written.
    """
    options = input_options(problem)
    start, stop = shard.rows(problem.features.shape[0])
    if start == stop:
        console.say(f"{shard.name} has no samples: there are {problem.features.shape[0]}")
        return
    with owned_folder(out, MADE_BY, options, part=shard.name) as folder:
        if _finished(shard, problem, folder, options) is not None:
            console.say(f"{shard.name} is finished already")
            return
        found = find_nearest(problem, console=console, rows=(start, stop))
        record = _expected(shard, problem, options) | {"rows": found.fingerprint, "seconds": found.seconds}
        try:
            write_tables(shard.path(folder), [nearest_table(problem, found)], record)
        except OSError as error:
            raise cannot_write(folder, error) from error
        console.say(f"{shard.name}: samples {start:,} to {stop:,} in {duration(found.seconds)}")


def merge(problem: Problem, out: Path, *, console: Console, began: float) -> int:
    """Writes the tables and the report of what is complete; returns the exit code, 1 where a shard is missing.

    Args:
        problem: what is asked about.
        out: the folder of the shards, which may go on.
        console: told what is missing.
        began: time.monotonic() when the command did.

    Raises:
        UserError: nothing is complete, there are files of several numbers of shards, or the disk is full.
    """
    from experiments.sweep_attackability.nearest_page import show_nearest, write_all  # shards need no plots

    options = input_options(problem)
    count = problem.features.shape[0]
    with owned_folder(out, MADE_BY, options, part="merge") as folder:
        found, missing = merge_shards(problem, folder, options)
        notes = [_in_words(shard, count) for shard in missing]
        cost = estimate_cost(problem, ALL_PAIRS)
        try:
            path = write_all(problem, found, cost, folder, seconds=time.monotonic() - began, missing=notes)
        except OSError as error:
            raise cannot_write(folder, error) from error
    show_nearest(problem, found, console)
    for note in notes:
        console.say(f"missing: {note}")
    console.say(f"{len(found.samples):,} of {count:,} samples; open {path.resolve().as_uri()}")
    return 1 if missing else 0


def merge_shards(problem: Problem, out: Path, options: dict[str, Any]) -> tuple[Nearest, list[Shard]]:
    """Reads what is complete.

    Args:
        problem: what is asked about.
        out: the folder of the shards.
        options: `input_options` of the problem.

    Returns:
        The answers in the order of the samples, and the shards that are missing.

    Raises:
        UserError: nothing is complete, or there are files of several numbers of shards.
    """
    every = [shard for shard in _shards(out) if len(set(shard.rows(options["samples"]))) == 2]
    records = {shard: _finished(shard, problem, out, options) for shard in every}
    there = {shard: record for shard, record in records.items() if record is not None}
    if not there:
        raise UserError(f"--merge: {out / FOLDER} holds no finished shard of this input. Run --shard first.")
    table = pa.concat_tables(
        [pq.read_table(shard.path(out), columns=list(_COLUMNS)) for shard in there], promote_options="default"
    )
    columns = {name: table[name].fill_null(-1).to_numpy() for name in _COLUMNS}
    found = Nearest(
        samples=columns["sample"],
        labels=None if problem.labels is None else columns["label"],
        predicted=columns["predicted"],
        target=columns["nearest"],
        distance=columns["distance"],
        attackability=columns["attackability"],
        fingerprint=hashlib.sha256("".join(fact["rows"] for fact in there.values()).encode()).hexdigest(),
        seconds=sum(fact["seconds"] for fact in there.values()),
    )
    return found, [shard for shard in every if shard not in there]


def _shards(out: Path) -> list[Shard]:
    """All shards of the number of them that the files speak of, whether they are there or not."""
    numbers = {int(path.stem.rpartition("-")[2]) for path in (out / FOLDER).glob("shard-*-of-*.parquet")}
    if len(numbers) > 1:
        counts = " and of ".join(map(str, sorted(numbers)))
        raise UserError(f"{out / FOLDER} holds files of {counts} shards; expected one number; delete the others.")
    return [Shard(number, of) for of in numbers for number in range(of)]


def _expected(shard: Shard, problem: Problem, options: dict[str, Any]) -> dict[str, Any]:
    """What the record of a shard says of its input: that of all, its rows, and their ids and labels."""
    start, stop = shard.rows(options["samples"])
    digest = hashlib.sha256(problem.id_digest(start, stop).encode())
    if problem.labels is not None:
        try:
            digest.update(np.asarray(problem.labels.read(start, stop), np.int64).tobytes())
        except SourceError as error:
            raise UserError(str(error)) from error
    return {**options, "start": start, "stop": stop, "ids_and_labels": digest.hexdigest()}


def _finished(shard: Shard, problem: Problem, folder: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """What was recorded with a shard; None unless its file is whole and of this input."""
    record = read_record(shard.path(folder))
    if record is None:
        return None
    wanted = _expected(shard, problem, options)
    return record if {name: record.get(name) for name in wanted} == wanted else None


def _in_words(shard: Shard, count: int) -> str:
    """A shard as the option that answers it, and its samples."""
    start, stop = shard.rows(count)
    return f"--shard {shard.number}/{shard.of} (samples {start:,} to {stop - 1:,})"
