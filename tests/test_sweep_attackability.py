"""The sweep script from files to Parquet, summary and report: its numbers, its resumption and its refusals."""

import dataclasses
import errno
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from experiments.cli.command import UserError
from experiments.sweep_attackability import inputs, nearest
from experiments.sweep_attackability import solve as solving
from experiments.sweep_attackability.__main__ import Args, sweep
from experiments.sweep_attackability.inputs import InputConfig
from experiments.sweep_attackability.solve import SolveConfig
from spectra_jax import Head, all_pairs_norms, attackability, attackability_summary, head_logits
from spectra_jax.logging import read_metrics

NUM_SAMPLES, NUM_CLASSES, NUM_ATTRIBUTES = 43, 5, 4
BOUNDARY = SolveConfig(methods=("boundary",), samples_per_partition=10)


def arrays():
    rng = np.random.default_rng(0)
    attributes = rng.normal(size=(NUM_SAMPLES, NUM_ATTRIBUTES)).astype(np.float32)
    weights = rng.normal(size=(NUM_CLASSES, NUM_ATTRIBUTES)).astype(np.float32)
    return attributes, rng.integers(0, NUM_CLASSES, NUM_SAMPLES), weights


@pytest.fixture
def source(tmp_path) -> InputConfig:
    attributes, labels, weights = arrays()
    np.savez(tmp_path / "features.npz", attributes=attributes, labels=labels)
    np.savez(tmp_path / "head.npz", weights=weights)
    return InputConfig(features=tmp_path / "features.npz", head=tmp_path / "head.npz")


def run(out: Path, source: InputConfig, config: SolveConfig = BOUNDARY) -> int:
    return sweep(Args(out, source, config, quiet=True))


def pairs(out: Path) -> pa.Table:
    return pyarrow.dataset.dataset(out / "pairs", format="parquet").to_table()


def tables(out: Path) -> dict[str, pa.Table]:
    return {str(path.relative_to(out)): pq.read_table(path) for path in sorted(out.glob("**/*.parquet"))}


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_pairs_hold_what_the_solvers_say(tmp_path, source):
    attributes, labels, weights = arrays()
    out = tmp_path / "out"
    config = SolveConfig(methods=("projection", "pinv"), deltas=True, samples_per_partition=20)
    assert run(out, source, config) == 0
    table = pairs(out)
    head = Head(jnp.asarray(weights))
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=-1)
    assert table.num_rows == 2 * NUM_SAMPLES * NUM_CLASSES
    assert table.column_names == ["sample", "label", "predicted", "target", "method", "norm", "active_constraints",
                                  "feasible", "residual", "delta"]  # fmt: skip
    for method in config.methods:
        rows = table.filter(pa.compute.equal(table["method"].cast(pa.string()), method))
        columns = {name: rows[name].to_numpy() for name in table.column_names if name not in ("method", "delta")}
        np.testing.assert_array_equal(columns["sample"], np.repeat(np.arange(NUM_SAMPLES), NUM_CLASSES))
        np.testing.assert_array_equal(columns["target"], np.tile(np.arange(NUM_CLASSES), NUM_SAMPLES))
        np.testing.assert_array_equal(columns["label"], labels[columns["sample"]])
        np.testing.assert_array_equal(columns["predicted"], predicted[columns["sample"]])
        norms = np.asarray(all_pairs_norms(head, jnp.asarray(attributes), method=method))
        np.testing.assert_allclose(columns["norm"].reshape(norms.shape), norms, rtol=1e-4, atol=1e-6)
        deltas = np.stack(rows["delta"].to_pylist())
        np.testing.assert_allclose(np.linalg.norm(deltas, axis=-1).reshape(norms.shape), norms, rtol=1e-4, atol=1e-6)
        assert rows["active_constraints"].null_count == (0 if method == "projection" else rows.num_rows)
    projected = table.filter(pa.compute.equal(table["method"].cast(pa.string()), "projection"))
    moved = attributes[projected["sample"].to_numpy()] + np.stack(projected["delta"].to_pylist())
    logits = np.asarray(head_logits(head, jnp.asarray(moved)))
    exact, tie = (
        np.asarray(all_pairs_norms(head, jnp.asarray(attributes), method=method)) for method in config.methods
    )
    others = np.arange(NUM_CLASSES) != predicted[:, None]
    ratio = summary(out)["sweep/pinv_over_projection_median"]
    np.testing.assert_allclose(ratio, np.median((tie / np.where(others, exact, 1))[others]), rtol=1e-5)
    won = logits[np.arange(len(logits)), projected["target"].to_numpy()] >= logits.max(axis=-1) - 1e-4
    assert won.all()


def test_summary_and_class_distances_are_exact(tmp_path, source):
    attributes, labels, weights = arrays()
    out, head = tmp_path / "out", Head(jnp.asarray(weights))
    assert run(out, source) == 0
    found, expected = summary(out), attackability_summary(attackability(head, jnp.asarray(attributes)))
    for name in ("mean", "top_1_percent_share", "tail_index"):
        np.testing.assert_allclose(found[f"sweep/attackability_{name}"], expected[name], rtol=1e-5)
    assert "sweep/attackability_mean_low" not in found  # no interval of a mean that may be infinite
    for ours, theirs in (("attackability_median", "median"), ("relative_margin_mean", "relative_margin")):
        np.testing.assert_allclose(found[f"sweep/{ours}"], expected[theirs], rtol=1e-6)
        # Another kind of interval than the bootstrap's, about the same place and width.
        low, high = found[f"sweep/{ours}_low"], found[f"sweep/{ours}_high"]
        width = expected[f"{theirs}_high"] - expected[f"{theirs}_low"]
        assert low < found[f"sweep/{ours}"] < high and 0.3 * width < high - low < 3 * width
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=-1)
    assert found["sweep/class_accuracy"] == np.mean(labels == predicted)
    assert found["sweep/pairs"] == NUM_SAMPLES * NUM_CLASSES and found["sweep/infeasible"] == 0
    norms = np.asarray(all_pairs_norms(head, jnp.asarray(attributes), method="boundary"))
    distances = pq.read_table(out / "class_distances.parquet")
    assert distances.num_rows == NUM_CLASSES * (NUM_CLASSES - 1)
    for row in distances.to_pylist():
        own = norms[labels == row["class"], row["target"]]
        np.testing.assert_allclose(row["median_distance"], np.median(own), rtol=1e-6)
        assert row["samples"] == len(own)
    records = read_metrics(out / "metrics.jsonl")
    assert [record["partition"] for record in records] == [0, 1, 2, 3, 4]
    assert sum(record["samples"] for record in records) == NUM_SAMPLES
    page = (out / "report.html").read_text()
    assert "Which classes are close to which" in page and "The most attackable samples" in page


@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb"])
def test_readers_of_others_read_the_pairs(tmp_path, source, reader):
    library = pytest.importorskip(reader)
    out = tmp_path / "out"
    assert run(out, source) == 0
    expected = pairs(out)
    if reader == "pandas":
        frame = library.read_parquet(out / "pairs")
    elif reader == "polars":
        frame = library.scan_parquet(out / "pairs" / "*.parquet").collect()
    else:
        frame = library.sql(f"select * from '{out}/pairs/*.parquet' order by sample, target").fetchnumpy()
    assert len(frame["norm"]) == expected.num_rows
    np.testing.assert_allclose(np.asarray(frame["norm"]), expected["norm"].to_numpy())
    assert {str(name) for name in np.unique(np.asarray(frame["method"]).astype(str))} == {"boundary"}


def test_a_finished_partition_is_never_computed_again(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    assert run(out, source) == 0
    before, files = tables(out), {path: path.stat().st_mtime_ns for path in out.glob("*s/*.parquet")}
    records = read_metrics(out / "metrics.jsonl")
    monkeypatch.setattr(solving, "make_sweep", lambda *args, **options: pytest.fail("solved again"))
    assert run(out, source) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*s/*.parquet")} == files
    assert read_metrics(out / "metrics.jsonl") == records
    monkeypatch.undo()
    # What a kill or a power cut can leave: a missing file, a torn one, a half-written one under its temporary name.
    (out / "pairs" / "part-000001.parquet").unlink()
    (out / "samples" / "part-000003.parquet").unlink()
    torn = out / "pairs" / "part-000004.parquet"
    torn.write_bytes(torn.read_bytes()[:-20])
    (out / "pairs" / ".part-000002.parquet.123.tmp").write_bytes(b"half")
    assert run(out, source) == 0
    assert tables(out) == before and not list(out.glob("**/*.tmp"))
    kept = [path for path in files if path.stat().st_mtime_ns == files[path]]
    assert sorted(path.name for path in kept) == [f"part-{i:06d}.parquet" for i in (0, 0, 2, 2)]
    assert sorted(record["partition"] for record in read_metrics(out / "metrics.jsonl")) == [0, 1, 2, 3, 4]


def test_stop_keeps_what_is_finished_and_goes_on(tmp_path, source, monkeypatch):
    whole = tmp_path / "whole"
    assert run(whole, source) == 0
    out, write = tmp_path / "out", solving.write_partition

    def stop_after_two(folder, partition, **options):
        write(folder, partition, **options)
        if partition.number == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(solving, "write_partition", stop_after_two)
    assert run(out, source) == 130
    together = max(2, min(jax.device_count(), 4))  # what was solved side by side is written before it stops
    assert len(list(out.glob("pairs/*.parquet"))) == together and not (out / "summary.json").exists()
    monkeypatch.undo()
    assert run(out, source) == 0
    assert tables(out) == tables(whole)
    numbers = {name: value for name, value in summary(out).items() if "second" not in name}
    assert numbers == {name: value for name, value in summary(whole).items() if "second" not in name}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_explained_and_finished_partitions_are_kept(tmp_path, source, monkeypatch, call):
    out, genuine = tmp_path / "out", getattr(os, call)

    def full(*args):
        if len(list(out.glob("pairs/*.parquet"))) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(*args)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"No space left on device.*Finished files are kept"):
        run(out, source)
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("pairs/*.parquet")}
    assert len(kept) == 2 and not list(out.glob("**/*.tmp"))
    assert run(out, source) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert pairs(out).num_rows == NUM_SAMPLES * NUM_CLASSES


def test_a_sweep_of_other_questions_or_input_is_not_replaced(tmp_path, source):
    out = tmp_path / "out"
    assert run(out, source) == 0
    before = tables(out)
    with pytest.raises(UserError, match=r"holds another sweep.*\n  margin: 0.0 there, 0.5 now"):
        run(out, source, dataclasses.replace(BOUNDARY, margin=0.5))
    np.savez(source.head, weights=arrays()[2] * 2)
    with pytest.raises(UserError, match=r"holds another sweep.*\n  input: "):
        run(out, source)
    assert tables(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        run(tmp_path / "mine", source)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    (tmp_path / "mine" / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is not valid JSON \(nested too deeply\)"):
        run(tmp_path / "mine", source)


def test_pairs_are_not_replaced_by_the_nearest_classes_and_the_refusal_comes_first(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    assert run(out, source) == 0
    monkeypatch.setattr("experiments.sweep_attackability.nearest.find_nearest", None)  # never reached
    with pytest.raises(UserError, match=r"holds another sweep.*\n  methods: .*\n\(") as refused:
        sweep(Args(out, source, SolveConfig(nearest_only=True), quiet=True))
    assert "\n  input: " not in str(refused.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; expected a new folder"):
        sweep(Args(tmp_path / "file", source, quiet=True))


@pytest.mark.parametrize(("dtype", "kind"), [(np.complex64, "complex numbers"), ("U8", "texts")])
def test_features_that_are_no_real_numbers_are_refused(tmp_path, source, dtype, kind):
    np.save(tmp_path / "features.npy", arrays()[0].astype(dtype))
    with pytest.raises(UserError, match=f"holds {kind}; expected real numbers"):
        sweep(Args(tmp_path / "out", dataclasses.replace(source, features=tmp_path / "features.npy"), quiet=True))


def test_bad_features_and_labels_are_found_before_any_work(tmp_path, source):
    attributes, labels, _ = arrays()
    bad = attributes.copy()
    bad[37, 2] = np.nan
    np.savez(source.features, attributes=bad)
    with pytest.raises(UserError, match="row 37, column 2"):
        run(tmp_path / "out", source)
    labels[31] = NUM_CLASSES
    np.savez(source.features, attributes=attributes, labels=labels)
    with pytest.raises(UserError, match=f"class {NUM_CLASSES} in row 31.*classes 0 to {NUM_CLASSES - 1}"):
        run(tmp_path / "out", source)
    np.savez(source.features, attributes=attributes[:, :3])
    with pytest.raises(UserError, match=r"expected .classes, 3.: the features have 3 attributes"):
        run(tmp_path / "out", source)
    np.savez(source.features, attributes=attributes, labels=labels[:-1])
    with pytest.raises(UserError, match="42 labels; expected 43, one per sample"):
        run(tmp_path / "out", source)
    np.savez(source.features, attributes=attributes[:0])
    with pytest.raises(UserError, match="holds no samples"):
        run(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, "--margin -1: expected"),
        ({"methods": ("pinv",), "immutable": ("1",)}, "--methods: mutable is given with"),
        ({"immutable": ("wing_colour::blu",)}, r"expected an attribute or an index from 0 to 3.*wing_colour::blue"),
        ({"immutable": ("0", "1", "2", "3")}, "leaves no attribute"),
        ({"samples_per_partition": -1}, "--samples-per-partition -1"),
        ({"nearest_only": True}, "--nearest-only solves no pairs, but another option asks for them"),
    ],
)
def test_questions_that_make_no_sense_are_explained(tmp_path, source, options, message):
    names = tmp_path / "attributes.txt"
    names.write_text("wing_colour::blue\nwing_colour::red\nsize::small\nsize::large\n")
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", dataclasses.replace(source, attribute_names=names),
            dataclasses.replace(BOUNDARY, **options))  # fmt: skip
    with pytest.raises(UserError, match="has 4 lines; expected 5"):
        run(tmp_path / "out", dataclasses.replace(source, class_names=names))


def test_the_input_must_be_one_thing(tmp_path, source):
    for given in (InputConfig(), InputConfig(features=source.features),
                  dataclasses.replace(source, run_dir=tmp_path)):  # fmt: skip
        with pytest.raises(UserError, match="Name either --run-dir, or --features and --head"):
            run(tmp_path / "out", given)
    with pytest.raises(UserError, match="is not a run folder"):
        run(tmp_path / "out", InputConfig(run_dir=tmp_path))


def test_immutable_attributes_by_name_and_no_labels(tmp_path, source):
    attributes, _, weights = arrays()
    np.save(tmp_path / "features.npy", attributes)
    names = tmp_path / "attributes.txt"
    names.write_text("a\nb\nc\nd\n")
    given = InputConfig(features=tmp_path / "features.npy", head=source.head, attribute_names=names)
    out = tmp_path / "out"
    assert run(out, given, dataclasses.replace(BOUNDARY, immutable=("b", "3"), margin=0.1)) == 0
    mutable = jnp.asarray([True, False, True, False])
    norms = all_pairs_norms(Head(jnp.asarray(weights)), jnp.asarray(attributes), method="boundary", margin=0.1,
                            mutable=mutable)  # fmt: skip
    table = pairs(out)
    np.testing.assert_allclose(table["norm"].to_numpy(), np.asarray(norms).reshape(-1), rtol=1e-5)
    assert table["label"].null_count == table.num_rows and "sweep/class_accuracy" not in summary(out)
    flips = pq.read_table(out / "samples")["single_attribute"].drop_null().unique().to_pylist()
    assert set(flips) <= {0, 2}


def nearest_only(monkeypatch) -> None:
    """Makes any number of pairs too many to be solved unasked."""
    monkeypatch.setattr(solving, "_SOON_PAIRS", 0)


def test_the_nearest_classes_come_without_pairs(tmp_path, source, monkeypatch, capsys):
    nearest_only(monkeypatch)
    attributes, labels, weights = arrays()
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(f"Grey_bird_{k}" for k in range(NUM_CLASSES)))
    given = dataclasses.replace(source, class_names=names)
    out = tmp_path / "out"
    assert sweep(Args(out, given)) == 0
    shown = capsys.readouterr().err
    assert "Solving all 215 (sample, target) pairs would take" in shown and "Use --all-pairs to solve them" in shown
    assert "Grey bird 1" in " ".join(shown.split()) and "Grey_bird" not in shown
    assert sorted(os.listdir(out)) == sorted(
        [".lock", "config.json", "metrics.jsonl", "nearest.parquet", "report.html", "summary.json"]
    )
    table, head = pq.read_table(out / "nearest.parquet"), Head(jnp.asarray(weights))
    assert table.column_names == ["sample", "id", "label", "predicted", "predicted_name", "nearest", "nearest_name",
                                  "distance", "attackability"]  # fmt: skip
    norms = np.asarray(all_pairs_norms(head, jnp.asarray(attributes)))
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=1)
    others = np.where(np.arange(NUM_CLASSES) == predicted[:, None], np.inf, norms)
    np.testing.assert_array_equal(table["predicted"], predicted)
    np.testing.assert_array_equal(table["nearest"], others.argmin(axis=1))
    np.testing.assert_allclose(table["distance"], others.min(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(table["label"], labels)
    assert table["id"].to_pylist() == [str(i) for i in range(NUM_SAMPLES)]
    assert table["nearest_name"].to_pylist() == [f"Grey_bird_{k}" for k in others.argmin(axis=1)]
    found, expected = summary(out), attackability_summary(attackability(head, jnp.asarray(attributes)))
    assert found["sweep/pairs"] == 0 and found["sweep/class_accuracy"] == np.mean(labels == predicted)
    np.testing.assert_allclose(found["sweep/attackability_median"], expected["median"], rtol=1e-5)
    page = (out / "report.html").read_text()
    assert "The most fragile samples" in page and "Class by class" in page and "Grey bird 3" in page


def test_all_pairs_follow_in_the_same_folder_when_they_are_asked_for(tmp_path, source, monkeypatch):
    nearest_only(monkeypatch)
    out = tmp_path / "out"
    assert sweep(Args(out, source, quiet=True)) == 0
    before = pq.read_table(out / "nearest.parquet")
    assert sweep(Args(out, source, SolveConfig(all_pairs=True), quiet=True)) == 0
    assert pairs(out).num_rows == 2 * NUM_SAMPLES * NUM_CLASSES and summary(out)["sweep/pairs"] == 215
    assert pq.read_table(out / "nearest.parquet") == before
    distances = pq.read_table(out / "samples", columns=["distance"])["distance"]
    np.testing.assert_allclose(distances, before["distance"], rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"holds another sweep.*\n  methods: "):
        sweep(Args(out, source, quiet=True))  # pairs are not thrown away for what costs seconds


@pytest.mark.parametrize("asked", [{"margin": 0.5}, {"immutable": ("1",)}, {"methods": ("pinv",)}])
def test_options_of_all_pairs_ask_for_them(tmp_path, source, monkeypatch, asked):
    nearest_only(monkeypatch)
    assert solving.with_methods(SolveConfig(), inputs.open_problem(source, "float32")).methods == ()
    problem = inputs.open_problem(source, "float32")
    assert solving.with_methods(SolveConfig(**asked), problem).methods == asked.get("methods", solving.ALL_PAIRS)


def test_no_pairs_are_solved_where_nobody_wants_them(source):
    problem = inputs.open_problem(source, "float32")
    assert solving.with_methods(SolveConfig(nearest_only=True), problem).methods == ()
    assert solving.with_methods(SolveConfig(), problem).methods == solving.ALL_PAIRS


def test_ids_are_in_the_tables_of_samples_and_pairs(tmp_path, source):
    attributes, labels, _ = arrays()
    ids, places = np.arange(1000, 1000 + NUM_SAMPLES), np.array([f"place {i % 4}" for i in range(NUM_SAMPLES)])
    np.savez(source.features, attributes=attributes, labels=labels, ids=ids, place=places)
    given, out = dataclasses.replace(source, id_name=("ids", "place")), tmp_path / "out"
    assert sweep(Args(out, given, BOUNDARY, quiet=True)) == 0
    samples, rows = pq.read_table(out / "samples"), pairs(out)
    for table, times in ((samples, 1), (rows, NUM_CLASSES)):
        assert table.column_names[:3] == ["sample", "id", "place"]
        assert table["id"].to_pylist() == [str(i) for i in np.repeat(ids, times)]
        assert table["place"].to_pylist() == np.repeat(places, times).tolist()
    with pytest.raises(UserError, match=r"holds another sweep.*\n  ids: "):
        sweep(Args(out, dataclasses.replace(source, id_name=("place", "ids")), BOUNDARY, quiet=True))
    with pytest.raises(UserError, match=r"holds another sweep.*\n  ids: '\w+' there, None now"):
        np.savez(source.features, attributes=attributes, labels=labels)
        sweep(Args(out, source, BOUNDARY, quiet=True))
    for name in ("norm", "Norm", "IDS"):
        with pytest.raises(UserError, match=f"{name} would name two columns"):
            dataclasses.replace(source, id_name=("ids", name)).check()


def test_folders_whose_names_mean_something_to_databases(tmp_path, source):
    """Of Hive partitions and of patterns: the tables are those of the files."""
    plain = tmp_path / "s1"
    assert run(plain, source, SolveConfig(methods=("boundary", "pinv"))) == 0
    expected = pq.read_table(plain / "class_distances.parquet")
    for name in ("method=pinv", "target=2", "norm=5", "s[1]", "s*"):
        assert run(tmp_path / name, source, SolveConfig(methods=("boundary", "pinv"))) == 0
        assert pq.read_table(tmp_path / name / "class_distances.parquet", partitioning=None) == expected


def test_samples_have_the_ids_of_their_file_or_of_a_list(tmp_path, source, monkeypatch):
    nearest_only(monkeypatch)
    attributes, labels, _ = arrays()
    ids = np.arange(1000, 1000 + NUM_SAMPLES)
    np.savez(source.features, attributes=attributes, labels=labels, ids=ids)
    assert sweep(Args(tmp_path / "a", source, quiet=True)) == 0
    assert pq.read_table(tmp_path / "a" / "nearest.parquet")["id"].to_pylist() == [str(i) for i in ids]
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(f"bird-{i}.jpg" for i in ids))
    assert sweep(Args(tmp_path / "b", dataclasses.replace(source, ids=listed), quiet=True)) == 0
    assert pq.read_table(tmp_path / "b" / "nearest.parquet")["id"][3].as_py() == "bird-1003.jpg"
    assert "bird-10" in (tmp_path / "b" / "report.html").read_text()
    listed.write_text("one\ntwo")
    with pytest.raises(UserError, match=r"ids.txt has 2 entries .*; expected 43, one text or integer per sample"):
        sweep(Args(tmp_path / "c", dataclasses.replace(source, ids=listed), quiet=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_features_of_any_type_in_blocks_and_twin_classes(tmp_path, source, monkeypatch, dtype):
    nearest_only(monkeypatch)
    monkeypatch.setattr(nearest, "_NUMBERS_AT_ONCE", 10 * NUM_ATTRIBUTES)
    attributes, _, weights = arrays()
    stored = (attributes * 20).astype(dtype)
    weights[3] = weights[2] * np.float32(1 + 1e-6)  # nearly equal rows: found on the way, then summed exactly
    np.savez(source.features, attributes=stored)
    np.savez(source.head, weights=weights)
    assert sweep(Args(tmp_path / "out", source, quiet=True)) == 0
    norms = np.asarray(all_pairs_norms(Head(jnp.asarray(weights)), jnp.asarray(stored, jnp.float32), method="boundary"))
    predicted = np.asarray(pq.read_table(tmp_path / "out" / "nearest.parquet")["predicted"])
    least = np.where(np.arange(NUM_CLASSES) == predicted[:, None], np.inf, norms).min(axis=1)
    found = pq.read_table(tmp_path / "out" / "nearest.parquet")["distance"].to_numpy()
    np.testing.assert_allclose(found, least, rtol=1e-4, atol=1e-5)


def test_one_command_at_a_time(tmp_path):
    with (
        solving.sweep_folder(tmp_path / "out", {"a": 1}),
        pytest.raises(UserError, match="Another process is writing"),
        solving.sweep_folder(tmp_path / "out", {"a": 1}),
    ):
        pass


def test_a_bias_and_labels_of_unusual_names_are_used_and_named_first(tmp_path, capsys):
    attributes, _, weights = arrays()
    bias = np.asarray([3, -1, 0, 2, -3], np.float32)
    with_bias, without = (attributes @ weights.T + b for b in (bias, 0))
    np.savez(tmp_path / "f.npz", arr_0=attributes, y=with_bias.argmax(axis=1)[:, None])
    np.savez(tmp_path / "h.npz", coef_=weights, intercept_=bias)
    given = InputConfig(features=tmp_path / "f.npz", head=tmp_path / "h.npz")
    assert sweep(Args(tmp_path / "out", given, BOUNDARY)) == 0
    first = capsys.readouterr().err.splitlines()[0]
    for named in ("arr_0 (43, 4)", "y (43,)", "coef_ (5, 4), bias intercept_ (5,)"):
        assert named in first
    assert summary(tmp_path / "out")["sweep/class_accuracy"] == 1
    assert run(tmp_path / "none", dataclasses.replace(given, bias=False)) == 0
    agreement = np.mean(with_bias.argmax(axis=1) == without.argmax(axis=1))
    assert summary(tmp_path / "none")["sweep/class_accuracy"] == agreement < 1
    with pytest.raises(UserError, match="contradict"):
        run(tmp_path / "none", dataclasses.replace(given, bias=False, head_bias="intercept_"))
