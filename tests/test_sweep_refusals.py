"""What the sweep script refuses, and that nothing is lost by it."""

import dataclasses
import errno
import os

import numpy as np
import pytest
from sweep_tools import (
    BOUNDARY,
    NUM_CLASSES,
    NUM_SAMPLES,
    arrays,
    pairs,
    run,
    tables,
    write_source,
)

from experiments.cli.command import UserError
from experiments.sweep_attackability import solve as solving
from experiments.sweep_attackability.__main__ import Args, sweep
from experiments.sweep_attackability.inputs import InputConfig
from experiments.sweep_attackability.solve import SolveConfig


@pytest.fixture
def source(tmp_path) -> InputConfig:
    return write_source(tmp_path)


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


def test_one_command_at_a_time(tmp_path):
    with (
        solving.sweep_folder(tmp_path / "out", {"a": 1}),
        pytest.raises(UserError, match="Another process is writing"),
        solving.sweep_folder(tmp_path / "out", {"a": 1}),
    ):
        pass
