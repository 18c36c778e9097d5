"""The output of a sweep: Parquet files of pairs and of samples, one of each per partition of the samples.

A file appears whole or not at all, and its metadata records the problem and the samples it belongs to. The file of
pairs is written last: if it exists, the partition is finished.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectra_jax.extras import extra

with extra("experiments"):
    import pyarrow as pa
    import pyarrow.parquet as pq

# Part of every identity: files of another layout or meaning are never taken for finished ones.
FORMAT = 1
_KEY = b"spectra_jax.sweep"
_PAIRS, _SAMPLES = "pairs", "samples"


class Partition(NamedTuple):
    """Which samples a pair of files holds.

    Attributes:
        number: counted from 0.
        start: first sample.
        stop: one past the last sample.
    """

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of both files."""
        return f"part-{self.number:06d}.parquet"


def partitions(num_samples: int, size: int) -> list[Partition]:
    """All samples in order, `size` a partition."""
    starts = range(0, num_samples, size)
    return [Partition(i, start, min(start + size, num_samples)) for i, start in enumerate(starts)]


def pairs_path(folder: Path, partition: Partition) -> Path:
    """The file of (sample, target, method) rows."""
    return folder / _PAIRS / partition.name


def samples_path(folder: Path, partition: Partition) -> Path:
    """The file of sample rows."""
    return folder / _SAMPLES / partition.name


def finished(folder: Path, partition: Partition, identity: str) -> dict[str, Any] | None:
    """What was recorded with a partition; None unless both of its files are whole and of this problem."""
    records = [read_record(path) for path in (samples_path(folder, partition), pairs_path(folder, partition))]
    wanted = {"identity": identity, "start": partition.start, "stop": partition.stop}
    if any(record is None or {name: record.get(name) for name in wanted} != wanted for record in records):
        return None
    return records[-1]


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_tables` kept with a file; None where it is absent, cut off, or not ours."""
    try:
        # The metadata lies at the end of the file: a truncated one has none.
        stored = pq.read_schema(path).metadata or {}
        return json.loads(stored[_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def write_partition(
    folder: Path,
    partition: Partition,
    *,
    identity: str,
    methods: Sequence[str],
    ids: Mapping[str, np.ndarray],
    pairs: Sequence[Mapping[str, np.ndarray | None]],
    samples: Mapping[str, np.ndarray | None],
    record: Mapping[str, Any],
) -> None:
    """Writes both files of a partition, whole and on the disk.

    Args:
        folder: of the sweep.
        partition: which samples.
        identity: of the problem.
        methods: (m,) names.
        ids: columns (k,) of what the samples are called, for both files; may be empty.
        pairs: (m,) columns "norm", "active_constraints", "feasible", "residual" of shape (k, c), "delta" (k, c, n) or
            None. NaN means unknown and becomes null, as do negative numbers of active constraints.
        samples: columns (k,) of the samples' file, "label" (or None) and "predicted" among them.
        record: JSON-able facts to keep with the partition.

    Raises:
        OSError: it could not be written; nothing of it is left then.
    """
    facts = {**record, "identity": identity, "start": partition.start, "stop": partition.stop}
    called = {"sample": np.arange(partition.start, partition.stop, dtype=np.int64), **ids}
    columns = {name: _column(values, len(called["sample"])) for name, values in samples.items()}
    table = pa.table({name: pa.array(values) for name, values in called.items()} | columns)
    write_tables(samples_path(folder, partition), [table], facts)
    tables = [_pairs_table(called, methods, place, pairs[place], samples) for place in range(len(methods))]
    write_tables(pairs_path(folder, partition), tables, facts)


def _pairs_table(
    called: Mapping[str, np.ndarray],
    methods: Sequence[str],
    place: int,
    pairs: Mapping[str, np.ndarray | None],
    samples: Mapping[str, np.ndarray | None],
) -> pa.Table:
    """The rows of one method, by sample and then target."""
    norms = pairs["norm"]
    assert norms is not None
    count, num_classes = norms.shape[0], norms.shape[-1]

    def repeat(values: np.ndarray | None) -> pa.Array:
        return _column(None if values is None else np.repeat(values, num_classes), count * num_classes)

    method = np.full(count * num_classes, place, np.int8)
    columns = {
        **{name: pa.array(np.repeat(values, num_classes)) for name, values in called.items()},
        "label": repeat(samples["label"]),
        "predicted": repeat(samples["predicted"]),
        "target": pa.array(np.tile(np.arange(num_classes, dtype=np.int32), count)),
        "method": pa.DictionaryArray.from_arrays(pa.array(method), pa.array(list(methods))),
    }
    known = ~np.isnan(norms).reshape(-1)
    for name in ("norm", "active_constraints", "feasible", "residual"):
        values = pairs[name]
        assert values is not None
        flat = values.reshape(-1)
        columns[name] = pa.array(flat, mask=~known) if name == "feasible" else _column(flat)
    deltas = pairs.get("delta")
    if deltas is not None:
        flat = deltas.reshape(-1)
        columns["delta"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), deltas.shape[-1])
    return pa.table(columns)


def _column(values: np.ndarray | None, count: int = 0) -> pa.Array:
    if values is None:
        return pa.nulls(count, pa.int32())
    if values.dtype.kind == "f":
        return pa.array(values, mask=np.isnan(values))
    if values.dtype.kind == "i":
        return pa.array(values, mask=values < 0)
    return pa.array(values)


def write_tables(path: Path, tables: Sequence[pa.Table], record: Mapping[str, Any]) -> None:
    """Writes tables of one schema as the row groups of one file, which appears whole and is on the disk then.

    Args:
        path: the file; missing folders are made.
        tables: at least one.
        record: JSON-able facts to keep in the file's metadata.

    Raises:
        OSError: it could not be written; nothing of it is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    schema = tables[0].schema.with_metadata({_KEY: json.dumps(record, sort_keys=True)})
    try:
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=max(1, table.num_rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a renamed file outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes left half written. No other process may be writing."""
    for name in (_PAIRS, _SAMPLES):
        for file in (folder / name).glob(".part-*.tmp"):
            file.unlink()


def read_pairs(
    folder: Path, every: Sequence[Partition], *, place: int, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Columns of one method's rows, a partition at a time; null becomes NaN.

    Args:
        folder: of the sweep.
        every: partitions.
        place: of the method among those of the sweep.
        columns: their names; only those are read.
    """
    for partition in every:
        with pq.ParquetFile(pairs_path(folder, partition)) as file:
            table = file.read_row_group(place, columns=list(columns))
        yield tuple(table[name].to_numpy() for name in columns)


def read_samples(folder: Path, every: Sequence[Partition], columns: Sequence[str]) -> Iterator[tuple[np.ndarray, ...]]:
    """Columns of the samples' files, a partition at a time; null becomes NaN."""
    for partition in every:
        table = pq.read_table(samples_path(folder, partition), columns=list(columns), partitioning=None)
        yield tuple(table[name].to_numpy() for name in columns)
