"""What experiments.explain explains: samples of a run or of your own model, or rows of a file of features."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cli.command import UserError
from experiments.cli.options import OwnModel
from experiments.runs.loading import checksum
from experiments.runs.own_files import read_names, read_own_head
from experiments.runs.own_model import open_subject
from spectra_jax import Head
from spectra_jax.array_files import SourceError
from spectra_jax.sweep_sources import check_floats, open_features


class Subject(NamedTuple):
    """A classifier, its samples, and what they are called.

    Attributes:
        head: the classifier on the attributes.
        attributes: (N, n) of all samples.
        attribute_names: n names.
        class_names: c names.
        identity: a name for this very model and its samples.
        encode: images -> attributes, where there is an encoder.
        pixels: rows -> (b, h, w, 3) uint8, where there are images.
    """

    head: Head
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    class_names: tuple[str, ...]
    identity: str
    encode: Callable[[Any], Any] | None = None
    pixels: Callable[[np.ndarray], np.ndarray] | None = None


def open_explained(run_dir: Path | None, own: OwnModel, features: Path | None) -> Subject:
    """The subject that the options name.

    Raises:
        UserError: there is none, or its parts do not fit each other.
    """
    if features is not None:
        return _of_features(features, own)
    run, attributes, _ = open_subject(run_dir, own)
    return Subject(
        run.model.head(run.params),
        attributes,
        run.info.attribute_names,
        run.info.class_names,
        checksum(run, attributes),
        functools.partial(run.model.encode, run.params),
        functools.partial(run.dataset.images, "test", image_size=run.config.image_size),
    )


def _of_features(path: Path, own: OwnModel) -> Subject:
    assert own.head is not None
    try:
        rows = open_features(path)
        values = rows.read(0, rows.shape[0])
        attributes = check_floats(values, start=0, dtype=np.float32, title=rows.title)
    except SourceError as error:
        raise UserError(f"--attributes: {error}") from error
    if not len(attributes):
        raise UserError(f"--attributes {path} has no rows; expected (samples, attributes).")
    head = read_own_head(own.head, attributes.shape[1])
    num_classes, num_attributes = head.weights.shape
    digest = hashlib.sha256(attributes.tobytes() + np.asarray(head.weights).tobytes())
    digest.update(b"" if head.bias is None else np.asarray(head.bias).tobytes())
    return Subject(
        head,
        attributes,
        read_names("attribute", own.attribute_names, num_attributes),
        read_names("class", own.class_names, num_classes),
        digest.hexdigest(),
    )
