"""The sweep script from files to Parquet, summary and report: its numbers and its resumption."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from sweep_tools import (
    BOUNDARY,
    NUM_ATTRIBUTES,
    NUM_CLASSES,
    NUM_SAMPLES,
    arrays,
    pairs,
    run,
    summary,
    tables,
    write_source,
)

from experiments.cli.command import UserError
from experiments.sweep_attackability import inputs, nearest
from experiments.sweep_attackability import solve as solving
from experiments.sweep_attackability.__main__ import Args, sweep
from experiments.sweep_attackability.inputs import InputConfig
from experiments.sweep_attackability.solve import SolveConfig
from spectra_jax import Head, all_pairs_norms, attackability, attackability_summary, head_logits
from spectra_jax.logging import read_metrics


@pytest.fixture
def source(tmp_path) -> InputConfig:
    return write_source(tmp_path)


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
    assert "█" in shown and "…" not in shown  # a terminal of 80 columns shows all of it
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


def test_an_accelerator_is_judged_by_samples_that_it_multiplies_together(source, monkeypatch):
    problem = inputs.open_problem(source, "float32")
    alone = nearest.estimate_cost(problem, ("projection",))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(nearest, "_fastest", lambda call: call() is None or 8.0)
    together = nearest.estimate_cost(problem, ("projection",))
    products = 400 * NUM_SAMPLES + 20 * NUM_SAMPLES * NUM_CLASSES
    assert together.seconds == pytest.approx(products * 8 / (1 << 13) / jax.local_device_count())
    assert together.pairs == alone.pairs and together.gigabytes == alone.gigabytes


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
