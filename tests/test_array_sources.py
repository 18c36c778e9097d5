"""Arrays from Parquet, Zarr, folders and URLs: the same rows as NumPy wrote, whatever is asked for and in any order."""

import functools
import http.server
import io
import threading
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save_file

from spectra_jax import parquet_files
from spectra_jax.array_files import SourceError
from spectra_jax.array_sources import open_arrays, url_of
from spectra_jax.sweep_sources import open_features, open_labels, read_head

NUM_ROWS, WIDTH = 47, 6
ASKED = [(0, 10), (10, 47), (3, 4), (0, 47), (46, 47), (20, 20), (12, 31)]


def rows(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(NUM_ROWS, WIDTH)).astype(dtype)


def lists(values, fixed=True):
    flat = pa.array(values.reshape(-1))
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1) * values.shape[1], pa.int32()), flat)


def write_parquet(path, values, layout="fixed", **columns):
    if layout == "columns":
        features = {f"dim_{i}": pa.array(values[:, i]) for i in range(values.shape[1])}
    else:
        features = {"features": lists(values, layout == "fixed")}
    pq.write_table(pa.table({**features, **columns}), path, row_group_size=13)


def check(array, values):
    assert array.shape == values.shape
    for start, stop in ASKED:
        found = array.read(start, stop)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values[start:stop])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("layout", ["fixed", "lists", "columns"])
def test_parquet(tmp_path, monkeypatch, dtype, layout):
    monkeypatch.setattr(parquet_files, "_NUMBERS_AT_ONCE", 5 * WIDTH)  # batches of 5 rows in row groups of 13
    values, path = rows(dtype), tmp_path / "f.parquet"
    labels, names = np.arange(NUM_ROWS) % 3, [f"row {i}" for i in range(NUM_ROWS)]
    write_parquet(path, values, layout, label=labels, ids=names)
    features = open_features(path)
    assert features.name == ("dim" if layout == "columns" else "features")
    check(features, values)
    found = open_labels(path, num_classes=3, features=features)
    assert found is not None
    check(found, labels)
    assert open_arrays(path)["ids"].kind == "U"
    assert open_arrays(path)["ids"].read(4, 6).tolist() == names[4:6]


def test_what_parquet_columns_cannot_be_is_explained(tmp_path):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"features": pa.array([[1.0, 2.0], [3.0], [4.0, 5.0]])}), path)
    with pytest.raises(SourceError, match=r"f.parquet: features holds 1 numbers in row 1 .*, 2 in the first"):
        open_features(path).read(0, 3)
    pq.write_table(pa.table({"features": pa.array([[1.0, 2.0], None])}), path)
    with pytest.raises(SourceError, match="features holds nulls in rows 0 to 2"):
        open_features(path).read(0, 2)
    pq.write_table(pa.table({"when": pa.array([0], pa.timestamp("s")), "x": [1.0]}), path)
    with pytest.raises(SourceError, match="could be the features with 2 axes"):
        open_features(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SourceError, match="is no Parquet file, or is damaged"):
        open_features(path)


def test_columns_that_do_not_count_from_the_first_are_columns(tmp_path):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"a_1": [1.0], "a_2": [2.0], "b_3": [3.0], "b_4": [4.0], "0": [5.0], "1": [6.0]}), path)
    arrays = open_arrays(path)
    assert {name: array.shape for name, array in arrays.items()} == {
        "a": (1, 2), "features": (1, 2), "b_3": (1,), "b_4": (1,)
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["a"].read(0, 1), [[1, 2]])


def write_zarr(folder, values):
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}},
        create=True, dtype=values.dtype, shape=values.shape,
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=[7, 4]),
    ).result()  # fmt: skip
    store[...] = values


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_zarr(tmp_path, dtype):
    values = rows().astype(dtype)
    write_zarr(tmp_path / "one.zarr", values)
    assert open_features(tmp_path / "one.zarr").kind == "f"
    check(open_features(tmp_path / "one.zarr"), values)
    write_zarr(tmp_path / "group.zarr" / "embeddings", values)
    (tmp_path / "group.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    check(open_features(tmp_path / "group.zarr"), values)
    (tmp_path / "one.zarr" / "zarr.json").write_text("{")
    with pytest.raises(SourceError, match=r"zarr.json cannot be read"):
        open_features(tmp_path / "one.zarr")


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "parquet"])
def test_a_folder_of_files_is_one_array(tmp_path, kind):
    values, labels = rows(np.float16), np.arange(NUM_ROWS) % 3
    for number, start in enumerate((0, 20, 33)):
        part = slice(start, (20, 33, NUM_ROWS)[number])
        path = tmp_path / f"part-{number}.{kind}"
        if kind == "npy":
            np.save(path, values[part])
        elif kind == "npz":
            np.savez(path, features=values[part], labels=labels[part])
        elif kind == "safetensors":
            save_file({"features": np.ascontiguousarray(values[part]), "labels": labels[part]}, path)
        else:
            write_parquet(path, values[part], labels=labels[part])
    (tmp_path / ".part-9.npy.tmp").write_bytes(b"half")
    features = open_features(tmp_path)
    check(features, values)
    if kind != "npy":
        found = open_labels(tmp_path, num_classes=3, features=features)
        assert found is not None
        check(found, labels)


def test_folders_that_are_no_array_are_explained(tmp_path):
    with pytest.raises(SourceError, match="holds no file; expected files that end in"):
        open_features(tmp_path)
    np.save(tmp_path / "a.npy", rows())
    np.save(tmp_path / "b.npy", rows()[:, :3])
    with pytest.raises(SourceError, match=r"b.npy holds \(47, 3\) .*, a.npy \(47, 6\) .*expected rows of one width"):
        open_features(tmp_path)
    np.savez(tmp_path / "c.npz", features=rows())
    with pytest.raises(SourceError, match=r"several kinds, \.npy, \.npz"):
        open_features(tmp_path)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "parquet"])
def test_urls(tmp_path, kind):
    values, path = rows(np.float16), tmp_path / f"f.{kind}"
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, features=values)
    elif kind == "safetensors":
        save_file({"features": values}, path)
    else:
        write_parquet(path, values)
    with fsspec.open(f"memory://bucket/f.{kind}", "wb") as file:
        file.write(path.read_bytes())
    check(open_features(Path(f"memory://bucket/f.{kind}")), values)
    with fsspec.open(f"memory://bucket/f[1].{kind}", "wb") as file:
        file.write(path.read_bytes())
    check(open_features(Path(f"memory://bucket/f[1].{kind}")), values)
    check(open_features(Path(f"file://{path}")), values)
    with pytest.raises(SourceError, match=rf"memory:/+bucket/none.{kind} (cannot be read|is no Parquet file)"):
        open_features(Path(f"memory://bucket/none.{kind}"))


def write_records(path, values):
    writer = ArrayRecordWriter(str(path), "group_size:4")
    for row in values:
        record = io.BytesIO()
        np.save(record, row)
        writer.write(record.getvalue())
    writer.close()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_array_record(tmp_path, dtype):
    values = rows(dtype)
    write_records(tmp_path / "f.array_record", values)
    check(open_arrays(tmp_path / "f.array_record")[""], values)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_records(folder / "0.array_record", values[:20])
    write_records(folder / "1.array_record", values[20:])
    check(open_arrays(folder)[""], values)


def test_array_records_that_are_no_rows_are_refused(tmp_path):
    path = tmp_path / "f.array_record"
    path.write_bytes(b"no such file" * 99)
    with pytest.raises(SourceError, match="holds no records, or is damaged; expected one row in every record"):
        open_arrays(path)
    writer = ArrayRecordWriter(str(tmp_path / "g.array_record"), "")
    writer.write(b"a text")
    writer.close()
    with pytest.raises(SourceError, match=r"record 0 is no \.npy array of numbers"):
        open_arrays(tmp_path / "g.array_record")
    write_records(tmp_path / "h.array_record", [*rows()[:5], rows()[5, :4]])
    array = open_arrays(tmp_path / "h.array_record")[""]
    np.testing.assert_array_equal(array.read(0, 5), rows()[:5])
    with pytest.raises(SourceError, match="record 5 differs in shape or type from record 0"):
        array.read(3, 6)


@pytest.mark.parametrize("kind", ["npy", "parquet", "array_record"])
def test_folders_by_url(tmp_path, kind):
    values = rows()
    write = {"npy": np.save, "parquet": write_parquet, "array_record": write_records}[kind]
    for number, part in enumerate((values[:20], values[20:])):
        path = tmp_path / f"{number}.{kind}"
        write(path, part)
        with fsspec.open(f"memory://folder-of-{kind}/{number}.{kind}", "wb") as file:
            file.write(path.read_bytes())
    for url in (f"memory://folder-of-{kind}", f"file://{tmp_path}"):
        check(open_features(Path(url)), values)
    with pytest.raises(SourceError, match=r"expected a URL that ends in .* or of a folder of such files"):
        open_features(Path(f"memory://no-folder-of-{kind}"))


@pytest.mark.parametrize("kind", ["array", "group"])
@pytest.mark.parametrize("scheme", ["memory", "http"])
def test_zarr_by_url(tmp_path, kind, scheme):
    values, folder = rows(np.float16), tmp_path / "f.zarr"
    write_zarr(folder / ("" if kind == "array" else "embeddings"), values)
    if kind == "group":
        (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    if scheme == "memory":
        url = f"memory://zarr-{kind}/f.zarr"
        fsspec.filesystem("memory").put(str(folder), f"/zarr-{kind}/f.zarr", recursive=True)
        check(open_features(Path(url)), values)
        return
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check(open_features(Path(f"http://127.0.0.1:{server.server_port}/f.zarr")), values)
        server.shutdown()


def test_what_is_a_url(tmp_path):
    assert url_of(Path("s3://bucket/a/b.npy")) == "s3://bucket/a/b.npy"
    assert url_of(Path("file:///a/b.npy")) == "file:///a/b.npy"
    assert url_of(Path("a/b.npy")) is None and url_of(tmp_path / "b:c.npy") is None


def test_a_head_of_a_linear_layer_and_a_transposed_one(tmp_path):
    weights, bias = rows()[:4], np.arange(4, dtype=np.float32)
    save_file({"fc.weight": weights, "fc.bias": bias}, tmp_path / "head.safetensors")
    head, _ = read_head(tmp_path / "head.safetensors", width=WIDTH, dtype=np.float32)
    np.testing.assert_array_equal(head.weights, weights)
    np.testing.assert_array_equal(head.bias, bias)
    save_file({"fc.weight": np.ascontiguousarray(weights.T), "fc.bias": bias}, tmp_path / "head.safetensors")
    with pytest.raises(SourceError, match=r"has shape \(6, 4\); expected \(classes, 6\).*by --head-transposed"):
        read_head(tmp_path / "head.safetensors", width=WIDTH, dtype=np.float32)
    head, _ = read_head(tmp_path / "head.safetensors", width=WIDTH, dtype=np.float32, transposed=True)
    np.testing.assert_array_equal(head.weights, weights)
    np.testing.assert_array_equal(head.bias, bias)
    save_file({"fc.weight": weights}, tmp_path / "head.safetensors")
    with pytest.raises(SourceError, match="omit --head-transposed"):
        read_head(tmp_path / "head.safetensors", width=WIDTH, dtype=np.float32, transposed=True)
