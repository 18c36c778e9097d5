"""What a sweep reads: rows of features and labels, some at a time, and the linear head.

The array of a file is chosen by a given name, a usual name, or the shape. If that is ambiguous, the user is asked;
nothing is guessed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike, NDArray

from spectra_jax.array_files import UNNAMED, Rows, SourceError, listing
from spectra_jax.array_sources import open_arrays
from spectra_jax.types import Head

FEATURE_NAMES = ("attributes", "features", "embeddings")
LABEL_NAMES = ("labels", "label", "targets", "target", "y")
ID_NAMES = ("ids", "id")  # of the samples, beside the features; never taken for labels
WEIGHT_NAMES = ("weights", "weight")
NONE = "none"  # in the place of a name: there is no such array
_NUMBERS, _INTEGERS = "fiub", "iub"


def open_features(path: Path, name: str | None = None) -> Rows:
    """The features (N, n) of a file, not read yet.

    Args:
        path: a source of `open_arrays`.
        name: of the array; by default the first of `FEATURE_NAMES` that is there, else the only one with two axes.

    Raises:
        SourceError: there is no such file or array, several fit, or it cannot be read as features.
    """
    arrays = open_arrays(path)
    chosen = _named(path, arrays, name, FEATURE_NAMES)
    if chosen is None:
        fitting = [
            n
            for n, a in arrays.items()
            if len(a.shape) == 2 and a.kind in _NUMBERS and n not in (*LABEL_NAMES, *ID_NAMES)
        ]
        wide = [n for n in fitting if arrays[n].shape[1] > 1]  # one column of several is rather of labels
        chosen = _only(path, arrays, wide or fitting, "features with 2 axes", "--feature-name")
    array = arrays[chosen]
    if len(array.shape) != 2 or array.shape[1] < 1:
        raise SourceError(f"{array.title} has shape {array.shape}; expected features of shape (samples, attributes).")
    if array.kind not in _NUMBERS:
        kind = {"c": "complex numbers", "U": "texts", "S": "texts"}.get(array.kind, f"values of kind {array.kind!r}")
        raise SourceError(f"{array.title} holds {kind}; expected real numbers.")
    return array


def open_labels(
    path: Path,
    *,
    num_classes: int,
    name: str | None = None,
    features: Rows | None = None,
    ids: Sequence[str] = (),
) -> Rows | None:
    """The class indices (N,) of a file, not read yet; stored as (N,), (N, 1) or one-hot (N, c).

    Args:
        path: a source of `open_arrays`.
        num_classes: c of the head.
        name: of the array, or "none"; by default the first of `LABEL_NAMES` that is there, else the only one of
            integers that fits.
        features: those in the same file, beside which there need not be labels.
        ids: names of further arrays that are no labels, besides `ID_NAMES`.

    Returns:
        None where there are none beside the features, or none are wanted.

    Raises:
        SourceError: there is no such file or array, several fit, or it cannot be read as labels.
    """
    if name == NONE:
        return None
    arrays = open_arrays(path)
    others = {n: a for n, a in arrays.items() if features is None or n not in (features.name, *ID_NAMES, *ids)}
    chosen = _named(path, others, name, LABEL_NAMES) if others or name is not None else None
    if chosen is None:
        fitting = [
            n
            for n, a in others.items()
            if a.kind in _INTEGERS and a.shape and a.shape[1:] in ((), (1,), (num_classes,))
            if features is None or a.shape[0] == features.shape[0]
        ]
        if not fitting and features is not None:
            return None
        chosen = _only(path, others, fitting, "labels", "--label-name")
    return _class_indices(arrays[chosen], num_classes)


def _class_indices(array: Rows, num_classes: int) -> Rows:
    """Labels of any layout as (N,)."""
    if len(array.shape) == 1:
        return array

    def column(start: int, stop: int) -> np.ndarray:
        return array.read(start, stop)[:, 0]

    def hot(start: int, stop: int) -> np.ndarray:
        rows = array.read(start, stop)
        wrong = ((rows != 0) & (rows != 1)).any(axis=1) | ((rows == 1).sum(axis=1) != 1)
        if wrong.any():
            raise SourceError(
                f"{array.title} is not one-hot in row {start + int(np.argmax(wrong))} (counted from 0); expected a "
                "single 1 among zeros, or class indices."
            )
        return rows.argmax(axis=1)

    if array.shape[1:] == (1,):
        return array._replace(shape=array.shape[:1], read=column)
    if array.shape[1:] == (num_classes,):
        return array._replace(shape=array.shape[:1], kind="i", read=hot)
    raise SourceError(
        f"{array.title} has shape {array.shape}; expected labels of shape (samples,), (samples, 1) or one-hot "
        f"(samples, {num_classes})."
    )


def read_head(
    path: Path,
    *,
    width: int,
    dtype: DTypeLike,
    weight: str | None = None,
    bias: str | None = None,
    transposed: bool = False,
) -> tuple[Head, str]:
    """The linear head of a file.

    Args:
        path: .npy (weights alone), .npz or .safetensors.
        width: n, the number of attributes that the weights (c, n) must have.
        dtype: floating type to give it; float64 only where JAX has it switched on.
        weight: name of the weights; by default "weights" or "weight", else the only array (c, n).
        bias: name of the bias; "none" for no bias; by default the one beside the weights, "fc.bias" with "fc.weight"
            or the only floats (c,), (c, 1) or (1, c) there.
        transposed: the weights are stored as (n, c), as Flax and Keras keep a kernel, not as `torch.nn.Linear` does.

    Returns:
        The head, and in words which arrays it came from.

    Raises:
        SourceError: no array fits or several do, one beside the weights has no known part in the head, or a number is
            NaN or infinite; a bias of -inf, which masks a class, may be.
    """
    arrays = open_arrays(path)
    if transposed:
        arrays = {name: _turned(array) if len(array.shape) == 2 else array for name, array in arrays.items()}
    chosen = _choose_weights(path, arrays, weight, width, transposed=transposed)
    num_classes = arrays[chosen].shape[0]
    weights = _head_values(arrays[chosen], dtype)
    name = _choose_bias(path, arrays, chosen, bias)
    title = f"{arrays[chosen].title} {arrays[chosen].shape}"
    if name is None:
        return Head(jnp.asarray(weights)), f"{title}, no bias"
    values = _head_values(arrays[name], dtype, may_mask=True).reshape(num_classes)
    if np.isneginf(values).all():
        raise SourceError(f"{arrays[name].title} is -inf for every class; expected a finite number for one at least.")
    return Head(jnp.asarray(weights), jnp.asarray(values)), f"{title}, bias {name} {arrays[name].shape}"


def _turned(array: Rows) -> Rows:
    """The transpose of a small array."""

    def read(start: int, stop: int) -> np.ndarray:
        return array.read(0, array.shape[0]).T[start:stop]

    return array._replace(shape=array.shape[::-1], read=read)


def _choose_weights(path: Path, arrays: Mapping[str, Rows], name: str | None, width: int, *, transposed: bool) -> str:
    chosen = _named(path, arrays, name, WEIGHT_NAMES)
    two_axes = [n for n, a in arrays.items() if len(a.shape) == 2 and a.kind in _NUMBERS]
    if chosen is None:
        fitting = [n for n in two_axes if arrays[n].shape[1] == width and arrays[n].shape[0] > 1]
        turned = [n for n in two_axes if arrays[n].shape[0] == width and arrays[n].shape[1] > 1]
        if not fitting and len(turned) == 1:
            chosen = turned[0]
        else:
            what = f"head with {width} attributes, (classes, {width})"
            chosen = _only(path, arrays, fitting, what, "--head-weight")
    shape = arrays[chosen].shape
    if len(shape) != 2 or shape[1] != width or shape[0] < 2:
        remedy = ""
        if shape[:1] == (width,) and len(shape) == 2:
            remedy = " It looks transposed, as Flax and Keras keep a kernel: " + (
                "omit --head-transposed."
                if transposed
                else "save its transpose as weights; experiments.sweep_attackability takes it by --head-transposed."
            )
        raise SourceError(
            f"{arrays[chosen].title} has shape {shape}; expected (classes, {width}): the features have {width} "
            f"attributes.{remedy}"
        )
    if name is None and not transposed and shape[0] == width and _parts(chosen)[1] == "kernel":
        raise SourceError(
            f"{arrays[chosen].title} {shape} may be (classes, attributes) or, as Flax and Keras keep a kernel, its "
            "transpose; which? Name it by --head-weight if it is the first, else save its transpose as weights."
        )
    return chosen


def _choose_bias(path: Path, arrays: Mapping[str, Rows], weights: str, name: str | None) -> str | None:
    """The bias that goes with the weights, None where there is none."""
    num_classes = arrays[weights].shape[0]
    shapes = ((num_classes,), (num_classes, 1), (1, num_classes))
    if name == NONE or (name is None and weights == UNNAMED):
        return None
    if name is not None:
        chosen = _named(path, arrays, name, ())
        assert chosen is not None
        if arrays[chosen].shape not in shapes:
            raise SourceError(
                f"{arrays[chosen].title} has shape {arrays[chosen].shape}; expected {shapes[0]}, a number per class. "
                "Name the right one, or say --no-bias."
            )
        return chosen
    folder, last = _parts(weights)
    known = {*FEATURE_NAMES, *LABEL_NAMES, weights}
    left = {n: a for n, a in arrays.items() if n not in known and a.kind in _NUMBERS and math.prod(a.shape) > 1}
    fitting = [n for n, a in left.items() if a.kind == "f" and a.shape in shapes]
    beside = [n for n in left if _parts(n)[0] == folder]
    stem = last.removesuffix("weights").removesuffix("weight")
    usual = [n for n in (f"{folder}{stem}bias",) if stem != last and n in fitting]
    found = usual or [n for n in fitting if n in beside]
    # What lies elsewhere in a model's file belongs to other layers, unless it could be the bias and nothing else is.
    doubtful = [n for n in beside if n not in found[:1]] or ([] if found else fitting)
    if doubtful:
        shown = ", ".join(f"{n} {left[n].shape}" for n in doubtful[:8])
        raise SourceError(
            f"{path} holds {shown}{', ...' if len(doubtful) > 8 else ''} beside the weights {weights} "
            f"{arrays[weights].shape}: which is the bias, if any? Name it by --head-bias, or say --no-bias."
        )
    return found[0] if found else None


def _parts(name: str) -> tuple[str, str]:
    """What a name shares with its layer's other arrays, and the rest: "model.fc.weight" -> "model.fc.", "weight"."""
    cut = max(name.rfind("."), name.rfind("/")) + 1
    return name[:cut], name[cut:]


def _head_values(array: Rows, dtype: DTypeLike, *, may_mask: bool = False) -> np.ndarray:
    """All of a small array as floats."""
    rows = array.read(0, array.shape[0])
    values = _as_floats(rows, dtype, array.title)
    bad = ~(np.isfinite(values) | (may_mask & np.isneginf(values)))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        row, *column = place
        where = f"row {row}" + (f", column {column[0]}" if column else "")
        raise SourceError(
            f"{array.title} holds {rows[place]} in {where} (counted from 0), where the head needs a finite "
            f"{np.dtype(dtype)} number; so do {int(bad.sum()) - 1} more. Did the training diverge? Take another "
            "checkpoint."
        )
    return values


def _as_floats(rows: NDArray[Any], dtype: DTypeLike, title: str) -> np.ndarray:
    if rows.dtype.kind not in _NUMBERS and rows.dtype.name != "bfloat16":
        raise SourceError(f"{title} has type {rows.dtype}; expected real numbers.")
    with np.errstate(over="ignore"):  # found by whoever asks
        return rows.astype(dtype)


def check_floats(rows: NDArray[Any], *, start: int, dtype: DTypeLike, title: str) -> np.ndarray:
    """`rows`, that begin at sample `start`, as finite floats (k, n).

    Raises:
        SourceError: they are no numbers, or one is NaN or infinite; the message says which.
    """
    values = _as_floats(rows, dtype, title)
    bad = ~np.isfinite(values)
    if bad.any():
        row, *column = (int(i) for i in np.argwhere(bad)[0])
        where = f"row {start + row}" + (f", column {column[0]}" if column else "")
        number = int(bad.reshape(len(bad), -1).any(axis=1).sum()) - 1
        more = f" ({number} more of the {len(rows)} rows read with it hold such)" if number else ""
        raise SourceError(
            f"{title} holds {rows[(row, *column)]} in {where} (counted from 0); expected a finite {np.dtype(dtype)} "
            f"number{more}. Remove or repair those samples."
        )
    return values


def check_labels(rows: NDArray[Any], *, start: int, num_classes: int, title: str) -> np.ndarray:
    """`rows`, that begin at sample `start`, as class indices (k,) int32.

    Raises:
        SourceError: they are no integers or one is no class of the head; the message says which.
    """
    if rows.dtype.kind not in "iu":
        raise SourceError(f"{title} has type {rows.dtype}; expected integers, the class indices of the head.")
    wrong = (rows < 0) | (rows >= num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise SourceError(
            f"{title} holds class {rows[row]} in row {start + row} (counted from 0); the head has the classes 0 to "
            f"{num_classes - 1}."
        )
    return rows.astype(np.int32)


def _named(path: Path, arrays: Mapping[str, Rows], name: str | None, usual: tuple[str, ...]) -> str | None:
    """The array meant by its name; None where that leaves several."""
    if UNNAMED in arrays:
        return UNNAMED
    if name is not None and name not in arrays:
        raise SourceError(f"{path} has no array {name!r}. {listing(arrays)}")
    return name if name is not None else next((n for n in usual if n in arrays), None)


def _only(path: Path, arrays: Mapping[str, Rows], fitting: list[str], what: str, option: str) -> str:
    if len(fitting) == 1:
        return fitting[0]
    found = f"{len(fitting)} arrays that could be" if fitting else "nothing that could be"
    raise SourceError(f"{path} has {found} the {what}; name the right one by {option}. {listing(arrays)}")


def blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of `size` rows; the last one may be smaller."""
    for start in range(0, count, size):
        yield start, min(start + size, count)
