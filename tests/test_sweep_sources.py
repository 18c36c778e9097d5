"""Rows of any file equal the whole array's; files that cannot be used are explained."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from spectra_jax.array_files import SourceError
from spectra_jax.sweep_sources import check_floats, check_labels, open_features, open_labels, read_head

X = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
LABELS = np.arange(23) % 5
WEIGHTS, BIAS = np.arange(20, dtype=np.float32).reshape(5, 4), np.arange(5, dtype=np.float32)


def written(folder, kind):
    path = folder / f"features.{kind.split('-')[0]}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npy-fortran":
        np.save(path, np.asfortranarray(X))
    elif kind == "npy-bigendian":
        np.save(path, X.astype(">f8"))
    elif kind == "npz":
        np.savez(path, labels=LABELS, attributes=X, names=np.array(["a", None], object))
    elif kind == "npz-compressed":
        np.savez_compressed(path, labels=LABELS, attributes=X)
    else:
        save_file({"labels": LABELS, "attributes": X}, path)
    return path


@pytest.mark.parametrize("kind", ["npy", "npy-fortran", "npy-bigendian", "npz", "npz-compressed", "safetensors"])
def test_rows_equal_the_array(tmp_path, kind):
    path = written(tmp_path, kind)
    rows = open_features(path)
    assert rows.shape == X.shape
    for start, stop in [(0, 5), (5, 9), (20, 23), (3, 4), (0, 23), (7, 7)]:  # backwards too
        np.testing.assert_array_equal(rows.read(start, stop).astype(np.float32), X[start:stop])
    if not kind.startswith("npy"):
        labels = open_labels(path, num_classes=5, features=rows)
        assert labels is not None and labels.shape == (23,)
        np.testing.assert_array_equal(labels.read(4, 9), LABELS[4:9])
    else:
        assert open_labels(path, num_classes=5, features=rows) is None


def test_the_only_array_that_fits_is_taken_and_others_are_named(tmp_path):
    np.savez(tmp_path / "one.npz", pooled=X, labels=LABELS)
    assert open_features(tmp_path / "one.npz").name == "pooled"
    np.savez(tmp_path / "two.npz", pooled=X, other=X)
    with pytest.raises(SourceError, match=r"2 arrays that could be the features .* pooled \(23, 4\), other \(23, 4\)"):
        open_features(tmp_path / "two.npz")
    assert open_features(tmp_path / "two.npz", "other").name == "other"
    with pytest.raises(SourceError, match=r"no array 'x'\. It holds: pooled"):
        open_features(tmp_path / "two.npz", "x")


def test_bfloat16_and_float16_become_floats(tmp_path):
    save_file({"a": X.astype(ml_dtypes.bfloat16), "labels": LABELS}, tmp_path / "x.safetensors")
    rows = open_features(tmp_path / "x.safetensors").read(2, 6)
    values = check_floats(rows, start=2, dtype=np.float32, title="x")
    np.testing.assert_array_equal(values, X.astype(ml_dtypes.bfloat16).astype(np.float32)[2:6])
    half = check_floats(X.astype(np.float16), start=0, dtype=np.float32, title="x")
    np.testing.assert_array_equal(half, X.astype(np.float16).astype(np.float32))


def torch_like(path):
    """What safetensors.torch.save_file(model.state_dict(), ...) leaves."""
    convolution = np.zeros((3, 3, 4, 4), np.float32)
    save_file({"conv.weight": convolution, "wide.weight": np.zeros((5, 9), np.float32), "fc.weight": WEIGHTS,
               "fc.bias": BIAS, "wide.bias": BIAS}, path)  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("options", "has_bias"),
    [({}, True), ({"weight": "fc.weight"}, True), ({"bias": "none"}, False), ({"bias": "wide.bias"}, True)],
)
def test_head_of_a_pytorch_state_dict(tmp_path, options, has_bias):
    head, title = read_head(torch_like(tmp_path / "m.safetensors"), width=4, dtype=np.float32, **options)
    np.testing.assert_array_equal(head.weights, WEIGHTS)
    assert (head.bias is not None) == has_bias and "fc.weight" in title
    if has_bias:
        np.testing.assert_array_equal(head.bias, BIAS)


@pytest.mark.parametrize("with_bias", [True, False])
def test_head_of_npz_and_npy(tmp_path, with_bias):
    arrays = {"weights": WEIGHTS, "bias": BIAS} if with_bias else {"weights": WEIGHTS}
    np.savez(tmp_path / "head.npz", **arrays)
    head, _ = read_head(tmp_path / "head.npz", width=4, dtype=np.float32)
    assert (head.bias is not None) == with_bias
    np.save(tmp_path / "head.npy", WEIGHTS)
    head, title = read_head(tmp_path / "head.npy", width=4, dtype=np.float32)
    assert head.bias is None and "no bias" in title


PAIRS = [("W_g", "b_g"), ("coef_", "intercept_"), ("W", "b"), ("weights", "biases"), ("arr_0", "arr_1"),
         ("kernel", "bias"), ("head/kernel", "head/bias"), ("weight", "b")]  # fmt: skip


@pytest.mark.parametrize("bias", [BIAS, BIAS[:, None], BIAS[None]], ids=["c", "c1", "1c"])
@pytest.mark.parametrize("names", PAIRS, ids=[pair[0] for pair in PAIRS])
def test_a_bias_of_any_name_is_used_and_named(tmp_path, names, bias):
    np.savez(tmp_path / "head.npz", **dict(zip(names, (WEIGHTS, bias), strict=True)))
    head, title = read_head(tmp_path / "head.npz", width=4, dtype=np.float32)
    np.testing.assert_array_equal(head.weights, WEIGHTS)
    np.testing.assert_array_equal(head.bias, BIAS)
    assert f"{names[0]} (5, 4), bias {names[1]} {bias.shape}" in title
    head, title = read_head(tmp_path / "head.npz", width=4, dtype=np.float32, bias="none")
    assert head.bias is None and title.endswith("no bias")


DOUBTS = {
    "two that fit": {"W": WEIGHTS, "b": BIAS, "scale": BIAS},
    "of another length": {"W": WEIGHTS, "b": BIAS[:-1]},
    "of the inputs": {"weights": WEIGHTS, "bias": BIAS, "mean": np.zeros(4, np.float32)},
    "of integers": {"coef_": WEIGHTS, "classes_": np.arange(5)},
    "of another layer": {"fc.weight": WEIGHTS, "norm.bias": BIAS},
    "a second matrix": {"weights": WEIGHTS, "W": WEIGHTS},
}


@pytest.mark.parametrize("kind", DOUBTS)
def test_what_could_be_the_bias_or_change_the_head_is_a_question(tmp_path, kind):
    np.savez(tmp_path / "head.npz", **DOUBTS[kind])
    with pytest.raises(SourceError, match=r"which is the bias, if any\? Name it by --head-bias, or say --no-bias\."):
        read_head(tmp_path / "head.npz", width=4, dtype=np.float32)
    assert read_head(tmp_path / "head.npz", width=4, dtype=np.float32, bias="none")[0].bias is None


def test_names_and_single_numbers_beside_the_weights_are_no_doubt(tmp_path):
    rest = {"class_names": np.array(list("abcde")), "objects": np.array([{}, 1], object), "n_iter_": np.array([7])}
    np.savez(tmp_path / "head.npz", W=WEIGHTS, b=BIAS, labels=LABELS, attributes=X, **rest)
    head, _ = read_head(tmp_path / "head.npz", width=4, dtype=np.float32, weight="W")
    np.testing.assert_array_equal(head.bias, BIAS)
    np.savez(tmp_path / "objects.npz", weights=WEIGHTS, bias=np.array([None] * 5, object))
    with pytest.raises(SourceError, match="holds Python objects"):
        read_head(tmp_path / "objects.npz", width=4, dtype=np.float32, bias="bias")


@pytest.mark.parametrize("name", ["kernel", "W", "params/head/kernel"])
def test_a_kernel_of_flax_or_keras_is_refused_with_the_remedy(tmp_path, name):
    np.savez(tmp_path / "head.npz", **{name: WEIGHTS.T, "b": BIAS})
    with pytest.raises(SourceError, match=r"has shape \(4, 5\).* save its transpose as weights"):
        read_head(tmp_path / "head.npz", width=4, dtype=np.float32)
    np.savez(tmp_path / "square.npz", kernel=WEIGHTS[:4], bias=BIAS[:4])
    with pytest.raises(SourceError, match=r"kernel \(4, 4\) may be .* which\?"):
        read_head(tmp_path / "square.npz", width=4, dtype=np.float32)
    head, _ = read_head(tmp_path / "square.npz", width=4, dtype=np.float32, weight="kernel")
    np.testing.assert_array_equal(head.weights, WEIGHTS[:4])


@pytest.mark.parametrize(("array", "bad"), [("W", np.nan), ("W", np.inf), ("W", -np.inf), ("b", np.nan), ("b", np.inf)])
def test_a_diverged_head_is_refused(tmp_path, array, bad):
    arrays = {"W": WEIGHTS.copy(), "b": BIAS.copy()}
    arrays[array][2] = bad
    np.savez(tmp_path / "head.npz", **arrays)
    with pytest.raises(SourceError, match=rf"{array} holds {bad} in row 2.*Did the training diverge"):
        read_head(tmp_path / "head.npz", width=4, dtype=np.float32)


def test_a_bias_may_mask_classes_but_not_all(tmp_path):
    masked = np.where(BIAS == 3, -np.inf, BIAS).astype(np.float32)
    np.savez(tmp_path / "head.npz", W=WEIGHTS, b=masked)
    np.testing.assert_array_equal(read_head(tmp_path / "head.npz", width=4, dtype=np.float32)[0].bias, masked)
    np.savez(tmp_path / "head.npz", W=WEIGHTS, b=np.full(5, -np.inf, np.float32))
    with pytest.raises(SourceError, match="b is -inf for every class"):
        read_head(tmp_path / "head.npz", width=4, dtype=np.float32)


LAYOUTS = {
    "column": LABELS[:, None],
    "one-hot floats": np.eye(5, dtype=np.float32)[LABELS],
    "one-hot booleans": np.eye(5, dtype=bool)[LABELS],
    "plain": LABELS.astype(np.uint8),
}


@pytest.mark.parametrize("name", ["labels", "y", "target", "arr_1"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_of_any_layout_beside_the_features(tmp_path, name, layout):
    np.savez(tmp_path / "f.npz", **{"arr_0": X, name: LAYOUTS[layout]})
    if name == "arr_1" and layout.startswith("one-hot"):
        with pytest.raises(SourceError, match=r"2 arrays that could be the features.*--feature-name"):
            open_features(tmp_path / "f.npz")
    features = open_features(tmp_path / "f.npz", "arr_0")
    labels = open_labels(tmp_path / "f.npz", num_classes=5, features=features)
    if name == "arr_1" and layout == "one-hot floats":
        assert labels is None  # floats (N, 5) of no usual name are logits as well as anything
        return
    assert labels is not None and labels.name == name and labels.shape == (23,)
    np.testing.assert_array_equal(labels.read(4, 11), LABELS[4:11])
    assert open_labels(tmp_path / "f.npz", num_classes=5, features=features, name="none") is None


def test_labels_that_leave_a_doubt_are_a_question(tmp_path):
    np.savez(tmp_path / "f.npz", attributes=X, ids=np.arange(23))  # what samples are called is no label
    features = open_features(tmp_path / "f.npz")
    assert open_labels(tmp_path / "f.npz", num_classes=5, features=features) is None
    np.savez(tmp_path / "f.npz", attributes=X, numbers=np.arange(23), sexes=LABELS % 2)
    features = open_features(tmp_path / "f.npz")
    with pytest.raises(SourceError, match=r"2 arrays that could be the labels; name the right one by --label-name"):
        open_labels(tmp_path / "f.npz", num_classes=5, features=features)
    np.savez(tmp_path / "f.npz", attributes=X, labels=np.ones((23, 5)))
    labels = open_labels(tmp_path / "f.npz", num_classes=5, features=features)
    with pytest.raises(SourceError, match="not one-hot in row 3"):
        labels.read(3, 6)
    with pytest.raises(SourceError, match=r"one-hot \(samples, 6\)"):
        open_labels(tmp_path / "f.npz", num_classes=6, features=features)


def test_heads_that_do_not_fit_are_explained(tmp_path):
    path = torch_like(tmp_path / "m.safetensors")
    with pytest.raises(
        SourceError, match=r"nothing that could be the head with 7 attributes.*conv.weight \(3, 3, 4, 4\)"
    ):
        read_head(path, width=7, dtype=np.float32)
    with pytest.raises(SourceError, match=r"wide.weight has shape \(5, 9\); expected \(classes, 4\)"):
        read_head(path, width=4, dtype=np.float32, weight="wide.weight")
    with pytest.raises(SourceError, match=r"has no array 'fc\.b'"):
        read_head(path, width=4, dtype=np.float32, bias="fc.b")
    with pytest.raises(SourceError, match=r"fc.weight has shape \(5, 4\); expected \(5,\)"):
        read_head(path, width=4, dtype=np.float32, bias="fc.weight")
    np.savez(tmp_path / "turned.npz", weights=WEIGHTS.T)
    with pytest.raises(SourceError, match="looks transposed"):
        read_head(tmp_path / "turned.npz", width=4, dtype=np.float32)
    np.savez(tmp_path / "nan.npz", weights=np.where(WEIGHTS == 6, np.nan, WEIGHTS))
    with pytest.raises(SourceError, match="row 1, column 2"):
        read_head(tmp_path / "nan.npz", width=4, dtype=np.float32)


@pytest.mark.parametrize("kind", ["npy", "npz", "npz-compressed", "safetensors"])
def test_damaged_files_are_explained(tmp_path, kind):
    path = written(tmp_path, kind)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=path.name):
            open_features(path).read(0, 23)
    path.write_bytes(b"this is no array" * 20)
    with pytest.raises(SourceError, match=path.name):
        open_features(path)


def test_a_compressed_file_with_a_flipped_bit_is_found(tmp_path):
    path = written(tmp_path, "npz-compressed")
    damaged = bytearray(path.read_bytes())
    damaged[-300] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match=r"features\.npz: attributes .*(cannot be read|damaged)"):
        rows = open_features(path)
        rows.read(0, 23)
        rows.read(0, 23)


def test_a_file_that_shrinks_while_it_is_read_is_found(tmp_path):
    path = written(tmp_path, "npy")
    rows = open_features(path)
    path.write_bytes(path.read_bytes()[:-40])
    rows.read(0, 10)
    with pytest.raises(SourceError, match="became shorter"):
        rows.read(10, 23)


def test_files_of_another_kind_are_explained(tmp_path):
    with pytest.raises(SourceError, match="there is no such file"):
        open_features(tmp_path / "none.npy")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(SourceError, match=r"ends in \.npy, \.npz, \.safetensors"):
        open_features(tmp_path / "x.csv")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        open_features(tmp_path / "folder.npy")
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object))
    with pytest.raises(SourceError, match="Python objects"):
        open_labels(tmp_path / "objects.npy", num_classes=5)
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    with pytest.raises(SourceError, match=r"shape \(2, 2, 2\); expected features of shape \(samples, attributes\)"):
        open_features(tmp_path / "cube.npy")
    np.savez_compressed(tmp_path / "f.npz", attributes=np.asfortranarray(X))
    with pytest.raises(SourceError, match="C order"):
        open_features(tmp_path / "f.npz").read(0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])  # 1e39 does not fit into float32
def test_numbers_that_are_none_are_found(bad):
    rows = X.astype(np.float64)
    rows[7, 2] = bad
    with pytest.raises(SourceError, match=r"in row 107, column 2 \(counted from 0\)"):
        check_floats(rows, start=100, dtype=np.float32, title="x")
    with pytest.raises(SourceError, match="real numbers"):
        check_floats(np.zeros((2, 2), complex), start=0, dtype=np.float32, title="x")


@pytest.mark.parametrize(("bad", "message"), [(5, "class 5 in row 12"), (-1, "class -1 in row 12")])
def test_labels_out_of_range_are_found(bad, message):
    labels = LABELS.copy()
    labels[2] = bad
    with pytest.raises(SourceError, match=message):
        check_labels(labels, start=10, num_classes=5, title="x")
    with pytest.raises(SourceError, match="expected integers"):
        check_labels(LABELS.astype(np.float32), start=0, num_classes=5, title="x")
