"""A sweep in shards: whatever order they come in and whoever is killed, the tables are those of one command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.cli.command import UserError
from experiments.sweep_attackability import solve as solving
from experiments.sweep_attackability.__main__ import Args, sweep
from experiments.sweep_attackability.options import InputConfig, ShardConfig, SolveConfig

NUM_SAMPLES, NUM_CLASSES, NUM_ATTRIBUTES = 43, 5, 4
ROOT = Path(__file__).parents[1]


def write_problem(folder: Path, samples: int, classes: int, width: int) -> InputConfig:
    rng = np.random.default_rng(0)
    np.savez(
        folder / "features.npz",
        attributes=rng.normal(size=(samples, width)).astype(np.float32),
        labels=rng.integers(0, classes, samples),
        ids=np.arange(samples) + 1000,
    )
    np.savez(folder / "head.npz", weights=rng.normal(size=(classes, width)).astype(np.float32))
    return InputConfig(features=folder / "features.npz", head=folder / "head.npz")


@pytest.fixture
def source(tmp_path, monkeypatch) -> InputConfig:
    monkeypatch.setattr(solving, "_SOON_PAIRS", 0)  # any number of pairs is too many to be solved unasked
    return write_problem(tmp_path, NUM_SAMPLES, NUM_CLASSES, NUM_ATTRIBUTES)


def run(out: Path, source: InputConfig, shard: str = "", merge: bool = False, **questions) -> int:
    return sweep(Args(out, source, SolveConfig(**questions), ShardConfig(shard, merge), quiet=True))


def tables(out: Path, pattern: str):
    return {path.name: pq.read_table(path) for path in sorted(out.glob(pattern))}


def summary(out: Path) -> dict:
    found = json.loads((out / "summary.json").read_text())
    return {name: value for name, value in found.items() if "second" not in name}


def test_shards_in_any_order_give_the_table_of_one_command(tmp_path, source):
    assert run(tmp_path / "whole", source) == 0
    for number in (2, 0, 3, 1):
        assert run(tmp_path / "out", source, f"{number}/4") == 0
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out" / "nearest").iterdir())]
    assert rows == [10, 11, 11, 11]
    assert run(tmp_path / "out", source, merge=True) == 0
    merged, whole = (pq.read_table(tmp_path / name / "nearest.parquet") for name in ("out", "whole"))
    assert merged == whole and merged["id"][3].as_py() == "1003"
    assert summary(tmp_path / "out") == summary(tmp_path / "whole")


def test_a_merge_names_what_is_missing_and_reports_the_rest(tmp_path, source, capsys):
    for number in (0, 2):
        assert run(tmp_path / "out", source, f"{number}/4") == 0
    sharded = Args(tmp_path / "out", source, shards=ShardConfig(merge=True))
    assert sweep(sharded) == 1
    shown = capsys.readouterr().err
    assert "missing: --shard 1/4 (samples 10 to 20)" in shown and "missing: --shard 3/4 (samples 32 to 42)" in shown
    found = summary(tmp_path / "out")
    assert found["sweep/samples"] == 21 and found["sweep/samples_missing"] == 22
    assert pq.read_table(tmp_path / "out" / "nearest.parquet")["sample"].to_pylist() == [*range(10), *range(21, 32)]
    assert "Not answered yet: --shard 1/4" in (tmp_path / "out" / "report.html").read_text()


def test_a_finished_shard_is_not_done_again_and_another_input_is_refused(tmp_path, source):
    assert run(tmp_path / "out", source, "1/2") == 0
    (file,) = (tmp_path / "out" / "nearest").iterdir()
    before = file.stat().st_mtime_ns
    assert run(tmp_path / "out", source, "1/2") == 0
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:-20])  # cut off: not there
    assert run(tmp_path / "out", source, "1/2") == 0
    assert pq.read_table(file).num_rows == 22
    with np.load(source.features) as arrays:
        np.savez(source.features, **{**arrays, "attributes": arrays["attributes"] + 1})
    with pytest.raises(UserError, match="holds results of another input or other options"):
        run(tmp_path / "out", source, "0/2")


@pytest.mark.parametrize("column", ["ids", "labels"])
def test_a_shard_answered_with_other_ids_or_labels_counts_as_missing(tmp_path, source, column, capsys):
    for number in (0, 1):
        assert run(tmp_path / "out", source, f"{number}/2") == 0
    with np.load(source.features) as arrays:
        changed = arrays[column].copy()
        changed[-1] = 0 if changed[-1] else 1
        np.savez(source.features, **{**arrays, column: changed})
    merge = Args(tmp_path / "out", source, shards=ShardConfig(merge=True))
    assert sweep(merge) == 1
    assert "missing: --shard 1/2" in capsys.readouterr().err
    assert run(tmp_path / "out", source, "1/2") == 0  # answered anew
    assert sweep(merge) == 0
    assert pq.read_table(tmp_path / "out" / "nearest.parquet").num_rows == NUM_SAMPLES


def test_shards_do_not_wait_for_each_other_but_nobody_takes_the_same(tmp_path, source):
    with solving.sweep_folder(tmp_path / "out", {"a": 1}, part="shard-0"):
        with solving.sweep_folder(tmp_path / "out", {"a": 1}, part="shard-1"):
            pass
        with (
            pytest.raises(UserError, match="Another process is writing shard-0 of"),
            solving.sweep_folder(tmp_path / "out", {"a": 1}, part="shard-0"),
        ):
            pass
        with (
            pytest.raises(UserError, match="Another process is writing"),
            solving.sweep_folder(tmp_path / "out", {"a": 1}),
        ):
            pass


def test_all_pairs_in_shards(tmp_path, source, capsys):
    asked = {"methods": ("boundary",), "samples_per_partition": 10}
    assert run(tmp_path / "whole", source, **asked) == 0
    for number in (1, 0):
        assert run(tmp_path / "out", source, f"{number}/3", **asked) == 0
    assert sorted(tables(tmp_path / "out", "pairs/*")) == [f"part-{i:06d}.parquet" for i in (0, 1, 3, 4)]
    merge = Args(tmp_path / "out", source, SolveConfig(**asked), ShardConfig(merge=True))
    assert sweep(merge) == 1
    assert "missing: samples 20 to 29, in part-000002.parquet" in capsys.readouterr().err
    assert summary(tmp_path / "out")["sweep/samples"] == 33
    assert run(tmp_path / "out", source, "2/3", **asked) == 0
    assert run(tmp_path / "out", source, merge=True, **asked) == 0
    assert tables(tmp_path / "out", "**/*.parquet") == tables(tmp_path / "whole", "**/*.parquet")
    assert summary(tmp_path / "out") == summary(tmp_path / "whole") | {
        name: pytest.approx(value) for name, value in summary(tmp_path / "whole").items() if "per_second" in name
    }


def test_parquet_files_of_half_precision_and_their_ids(tmp_path, source):
    with np.load(source.features) as arrays:
        attributes, ids = arrays["attributes"].astype(np.float16), [f"bird {i}" for i in arrays["ids"]]
        labels = arrays["labels"]
    np.savez(source.features, attributes=attributes, labels=labels, ids=ids)
    assert run(tmp_path / "whole", source) == 0
    folder = tmp_path / "features"
    folder.mkdir()
    for number, part in enumerate((slice(0, 20), slice(20, NUM_SAMPLES))):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(attributes[part].reshape(-1)), NUM_ATTRIBUTES)
        columns = {"embeddings": lists, "label": labels[part], "bird": ids[part]}
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=7)
    given = InputConfig(features=folder, head=source.head, id_name=("bird",))
    for number in range(3):
        assert run(tmp_path / "out", given, f"{number}/3") == 0
    assert run(tmp_path / "out", given, merge=True) == 0
    merged, whole = (pq.read_table(tmp_path / name / "nearest.parquet") for name in ("out", "whole"))
    assert merged == whole and merged["id"][42].as_py() == "bird 1042"
    with pytest.raises(UserError, match=r"has no array 'beast'. It holds: embeddings \(43, 4\)"):
        run(tmp_path / "out", InputConfig(features=folder, head=source.head, id_name=("beast",)), "0/3")


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (ShardConfig("4/4"), "--shard 4/4: expected i/n with i from 0 to n - 1"),
        (ShardConfig("1"), "--shard 1: expected i/n"),
        (ShardConfig("0/2", merge=True), "give only one of them"),
        (ShardConfig(merge=True), "holds no finished shard of this input. Run --shard first"),
    ],
)
def test_shards_that_there_are_not_are_refused(tmp_path, source, shards, message):
    with pytest.raises(UserError, match=message):
        sweep(Args(tmp_path / "out", source, shards=shards, quiet=True))


@pytest.mark.slow
def test_killed_shards_leave_the_tables_of_those_that_were_not(tmp_path):
    # More pairs than are solved unasked, so that the commands answer the nearest classes alone.
    write_problem(tmp_path, 6000, 1000, 8)
    command = [sys.executable, "-m", "experiments.sweep_attackability", "--features", str(tmp_path / "features.npz"),
               "--head", str(tmp_path / "head.npz"), "--quiet"]  # fmt: skip

    def start(out: str, *options: str) -> subprocess.Popen:
        return subprocess.Popen([*command, "--out", str(tmp_path / out), *options], cwd=ROOT, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    rng = np.random.default_rng(0)
    for number in range(3):
        process = start("out", "--shard", f"{number}/3")
        time.sleep(rng.uniform(0.5, 6))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert start("out", "--shard", f"{number}/3").wait() == 0
    assert start("out", "--merge").wait() == 0
    assert pq.read_table(tmp_path / "out" / "nearest.parquet") == pq.read_table(tmp_path / "whole" / "nearest.parquet")


def test_several_columns_of_ids_are_carried_along_and_none_is_taken_for_labels(tmp_path, source):
    with np.load(source.features) as arrays:
        features = arrays["attributes"]
    photos, places = np.arange(NUM_SAMPLES) % 3, np.array([f"place {i}" for i in range(NUM_SAMPLES)])
    np.savez(tmp_path / "named.npz", attributes=features, photo=photos, place=places)
    given = InputConfig(features=tmp_path / "named.npz", head=source.head, id_name=("place", "photo"))
    assert run(tmp_path / "whole", given) == 0
    for number in range(2):
        assert run(tmp_path / "out", given, f"{number}/2") == 0
    assert run(tmp_path / "out", given, merge=True) == 0
    merged, whole = (pq.read_table(tmp_path / name / "nearest.parquet") for name in ("out", "whole"))
    assert merged == whole and merged["label"].null_count == NUM_SAMPLES
    assert merged["id"].to_pylist() == places.tolist() and merged["photo"].to_pylist() == [*map(str, photos)]
    twice = InputConfig(features=tmp_path / "named.npz", head=source.head, id_name=("place", "label"))
    with pytest.raises(UserError, match="label would name two columns"):
        twice.check()
