"""Files of arrays that are damaged, hostile or of an unusual kind: opened or refused in one sentence, never a stack."""

import io
import os
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from spectra_jax.array_files import SourceError, open_arrays

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def npy(header: str, version: int = 1) -> bytes:
    """An .npy file with any header, and the numbers of X."""
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + X.tobytes()


def header(shape: str, *, descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


HEADERS = {
    "negative": header("(-4, 3)"),
    "negative columns": header("(4, -3)", fortran="True"),
    "boolean": header("(True, 3)", fortran="True"),
    "larger than any disk": header("(4611686018427387904, 8)"),
    "of floats": header("(4.0, 3)"),
    "no tuple": header("12"),
    "records": header("(4,)", descr="[('a', '<f4'), ('b', '<f8')]"),
    "of arrays": header("(4,)", descr="('<f4', (3,))"),
    "nested without end": header("(" * 500 + ")" * 500),
    "no type": header("(4, 3)", descr="'<q99'"),
    "type of another kind": header("(4, 3)", descr="3"),
    "no dictionary": "[1, 2]",
    "a key too few": "{'descr': '<f4', 'shape': (4, 3)}",
    "keys of numbers": "{1: 2, 'shape': (4, 3)}",
    "no Python": "os.system('true')",
}


@pytest.mark.parametrize("where", ["npy", "npz", "npz-compressed"])
@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_cannot_be_right(tmp_path, kind, where):
    path = tmp_path / f"x.{where.partition('-')[0]}"
    if where == "npy":
        path.write_bytes(npy(HEADERS[kind]))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if "-" in where else zipfile.ZIP_STORED) as archive:
            archive.writestr("x.npy", npy(HEADERS[kind]))
    with pytest.raises(SourceError, match=str(path)) as error:
        for array in open_arrays(path).values():
            array.read(0, 1)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(path))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_npy_is_read(tmp_path, version):
    (tmp_path / "x.npy").write_bytes(npy(header("(4, 3)"), version))
    np.testing.assert_array_equal(open_arrays(tmp_path / "x.npy")[""].read(1, 3), X[1:3])
    np.lib.format.write_array((stream := io.BytesIO()), X, version=(version, 0))
    (tmp_path / "y.npy").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(open_arrays(tmp_path / "y.npy")[""].read(0, 4), X)


def test_encrypted_and_unknown_members_and_names_that_come_twice(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=X)
    whole = path.read_bytes()
    for place, value in ((6, 1), (8, 99)):  # "encrypted" and "compressed by method 99", in both of the member's headers
        changed, central = bytearray(whole), whole.index(b"PK\x01\x02")
        changed[place] = changed[central + place + 2] = value
        path.write_bytes(changed)
        with pytest.raises(SourceError, match=r"x\.npz cannot be read: .*(encrypted|compression)"):
            open_arrays(path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(header("(4, 3)")))
        archive.writestr("x.npy", npy(header("(3, 4)")))
    with pytest.raises(SourceError, match="two arrays named x"):
        open_arrays(path)


def test_types_of_safetensors_that_numpy_lacks_are_named_when_asked_for(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"small": X.astype(ml_dtypes.float8_e4m3fn), "x": X, "half": X.astype(ml_dtypes.bfloat16)}, path)
    arrays = open_arrays(path)
    np.testing.assert_array_equal(arrays["x"].read(0, 2), X[:2])
    assert [arrays[name].kind for name in ("x", "half")] == ["f", "f"]
    with pytest.raises(SourceError, match=r"small has type F8_E4M3, which NumPy cannot hold; save it as F32"):
        arrays["small"].read(0, 2)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, suffix):
    pipe = tmp_path / f"pipe.{suffix}"
    os.mkfifo(pipe)
    link = tmp_path / f"link.{suffix}"
    link.symlink_to("nowhere")
    for path, reason in (
        (pipe, "folder or a pipe"),
        (link, "no such file"),
        (tmp_path / f"{'x' * 300}.{suffix}", "File name too long"),
    ):
        with pytest.raises(SourceError, match=reason):
            open_arrays(path)
