"""The TFDS builder of images with attributes; prepared and read without tensorflow.

It lives in a module of its own because TFDS can only read a builder back that was not defined in `__main__`.
"""

import abc
import collections
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_prep.problems import DataError, listed


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing: TFDS's bucket has none of these, and each look there leaves an empty folder behind."""


class AttributeImages(tfds.core.GeneratorBasedBuilder):
    """Images with class, attributes and, where there are any, parts; see `spectra_jax.data.Dataset.example`.

    Args:
        rows: split -> rows that are prepared, in the order of their image ids.
        metadata: what readers need beside the records, JSON-able; see `spectra_jax.data.DatasetInfo`.
        on_example: called after each image.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = ""
    HOMEPAGE = ""
    ATTRIBUTE_TYPE: type = np.uint8

    def __init__(
        self,
        *,
        rows: Mapping[str, list[int]],
        metadata: dict[str, Any],
        on_example: Callable[[], object] = lambda: None,
        **kwargs: Any,
    ):
        self._rows = {split: members for split, members in rows.items() if members}
        self._metadata = metadata
        self._on_example = on_example
        self._problems: list[str] = []
        super().__init__(file_format="array_record", **kwargs)

    @abc.abstractmethod
    def _example(self, row: int) -> dict[str, Any]:
        """The record of a row; a DataError where its image cannot be read."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        num_attributes, num_parts = (len(self._metadata[f"{what}_names"]) for what in ("attribute", "part"))
        parts = {"parts": features.Tensor(shape=(num_parts, 3), dtype=np.float32)} if num_parts else {}
        return _Info(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "label": np.int32,
                    "attributes": features.Tensor(shape=(num_attributes,), dtype=self.ATTRIBUTE_TYPE),
                    "certainty": features.Tensor(shape=(num_attributes,), dtype=np.uint8),
                    **parts,
                    "box": features.Tensor(shape=(4,), dtype=np.float32),
                    "image_id": np.int32,
                    "path": features.Text(),
                }
            ),
            disable_shuffling=True,  # records lie in the order of the image ids
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        last = [*self._rows][-1]
        return {split: self._generate_examples(rows, split == last) for split, rows in self._rows.items()}

    def _generate_examples(self, rows: list[int], is_last: bool) -> Iterator[tuple[int, dict]]:
        """Yields (image id, example) in order. All images that cannot be read are named at once, at the end."""
        num_kept = 0
        for future in self._read_ahead(rows):
            try:
                keyed = self._keyed(future)
            except DataError as error:
                self._problems.append(str(error))
                continue
            num_kept += 1
            yield keyed
        if self._problems and (is_last or not num_kept):  # TFDS has words of its own for a split without records
            raise DataError(self._problems[0] if len(self._problems) == 1 else listed("images", self._problems))

    def _read_ahead(self, rows: list[int]) -> Iterator[Future[dict]]:
        """The examples in order, with a few being read on other threads."""
        workers = min(os.cpu_count() or 1, 8)
        with ThreadPoolExecutor(workers) as pool:
            ahead: collections.deque[Future[dict]] = collections.deque()
            for row in rows:
                ahead.append(pool.submit(self._example, row))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft()
            yield from ahead

    def _keyed(self, future: Future[dict]) -> tuple[int, dict]:
        example = future.result()
        self._on_example()
        return example["image_id"], example
