"""Batches in a fixed, resumable order, assembled in the background.

The order is a pure function of (seed, epoch): batch k of a run is the same on every Python, with any number of worker
threads, and however the work is divided among processes. Positions are therefore a single number.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.extras import extra
from spectra_jax.types import AnyBatch, Batch, PartBatch

_ENDLESS = 2**60


class Rows(NamedTuple):
    """The examples of one process's share of one batch.

    Attributes:
        epoch: 0-based.
        indices: (k,) positions in the split; fewer than the share's size where the rest is padding.
        size: rows of the share, padding included.
    """

    epoch: int
    indices: Int[np.ndarray, " k"]
    size: int


@dataclass(frozen=True)
class BatchPlan:
    """Which examples make up which batch.

    Attributes:
        num_examples: size of the split.
        batch_size: rows of a GLOBAL batch, the one that all processes hold together.
        seed: of the order; needed to shuffle.
        shuffle: a new order each epoch, instead of the stored one.
        num_epochs: None never ends.
        drop_remainder: drop an epoch's last batch if it is not full, instead of padding it.
        process_index: which share of each batch is ours.
        process_count: the number of equal shares.
    """

    num_examples: int
    batch_size: int
    seed: int | None = None
    shuffle: bool = False
    num_epochs: int | None = 1
    drop_remainder: bool = False
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ValueError("the split is empty; expected at least one example")
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size={self.batch_size} (of all processes together) must be a positive multiple of "
                f"process_count={self.process_count}"
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index={self.process_index}: expected 0 to {self.process_count - 1}")
        if self.num_epochs is not None and self.num_epochs < 1:
            raise ValueError(f"num_epochs={self.num_epochs}: expected at least 1, or None for no end")
        if self.shuffle and self.seed is None:
            raise ValueError("shuffle=True needs a seed")
        if self.batches_per_epoch < 1:
            raise ValueError(
                f"drop_remainder=True leaves no batch: {self.num_examples} examples, batch_size={self.batch_size}"
            )

    @property
    def batches_per_epoch(self) -> int:
        """The same for every process."""
        full, rest = divmod(self.num_examples, self.batch_size)
        return full + bool(rest and not self.drop_remainder)

    @property
    def num_batches(self) -> int | None:
        """Of the whole run; None where it never ends."""
        return None if self.num_epochs is None else self.num_epochs * self.batches_per_epoch

    def rows(self, step: int) -> Rows:
        """The share of batch `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.batches_per_epoch)
        size = self.batch_size // self.process_count
        start = position * self.batch_size + self.process_index * size
        wanted = np.arange(start, min(start + size, self.num_examples))
        if self.shuffle and self.seed is not None:
            wanted = _order(self.seed, epoch, self.num_examples)[wanted]
        return Rows(epoch, wanted, size)


def flips(seed: int, epoch: int, indices: Int[np.ndarray, " k"], num_examples: int) -> Bool[np.ndarray, " k"]:
    """Which examples are mirrored in an epoch: each with probability 1/2, decided by (seed, epoch, index) alone."""
    return _random_bits(seed, epoch, 1, num_examples)[indices] >> np.uint64(63) == 1


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.argsort(_random_bits(seed, epoch, 0, num_examples), kind="stable")


@functools.lru_cache(maxsize=8)
def _random_bits(seed: int, epoch: int, purpose: int, size: int) -> np.ndarray:
    # Raw Philox output: NumPy promises that stream for all versions, and does not for Generator.permutation.
    key = np.array([seed, epoch], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, purpose], np.uint64)).random_raw(size)


class BatchIterator:
    """Iterates over `Batch`es of NumPy arrays and can stop and continue at any of them.

    A grain pipeline assembles the next few on other threads while the caller computes.
    """

    def __init__(
        self,
        assemble: Callable[[Rows], AnyBatch],
        plan: BatchPlan,
        *,
        workers: int = 2,
        prefetch: int = 4,
        identity: dict[str, Any] | None = None,
    ):
        """
        Args:
            assemble: makes one batch; called from several threads.
            plan: the order.
            workers: threads; 0 assembles in the caller's.
            prefetch: batches kept ready (memory: that many batches).
            identity: JSON-able facts that must be the same where a state is set again.
        """
        with extra("experiments"):
            import grain  # here, so that machines without it can use the rest of the package

        self.plan = plan
        # What decides the order. The division among processes does not: a run may go on with another number of them.
        self._identity = {
            "num_examples": plan.num_examples,
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "shuffle": plan.shuffle,
            "drop_remainder": plan.drop_remainder,
            **(identity or {}),
        }
        steps = grain.MapDataset.range(_ENDLESS if plan.num_batches is None else plan.num_batches)
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(prefetch, workers) if workers else 0)
        self._iterator = iter(steps.map(lambda step: assemble(plan.rows(int(step)))).to_iter_dataset(options))

    @property
    def batches_per_epoch(self) -> int:
        """Batches until the examples start again."""
        return self.plan.batches_per_epoch

    @property
    def num_batches(self) -> int | None:
        """Batches of the whole run, None where it never ends."""
        return self.plan.num_batches

    @property
    def step(self) -> int:
        """How many batches have been handed out since the start of the run."""
        return int(self._iterator.get_state()["next_index"])

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> AnyBatch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-able: the next batch is the one after the last handed out, prefetched or not."""
        return {"step": self.step, "identity": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave, here or in another process.

        Raises:
            ValueError: where the state belongs to batches of another order.
        """
        if state["identity"] != self._identity:
            differing = sorted(key for key in self._identity if state["identity"].get(key) != self._identity[key])
            raise ValueError(
                f"this position belongs to other batches: {', '.join(differing) or 'extra fields'} differ "
                f"(saved {state['identity']}, here {self._identity})"
            )
        if self.num_batches is not None and not 0 <= state["step"] <= self.num_batches:
            raise ValueError(f"step {state['step']} is outside the run's {self.num_batches} batches")
        self._iterator.set_state({"next_index": int(state["step"])})

    def close(self) -> None:
        """Stops the threads; the iterator cannot be used any more."""
        self._iterator.close()


def array_batches(
    inputs: Float[np.ndarray, "N ..."],
    attributes: Float[np.ndarray, "N n"],
    labels: Int[np.ndarray, " N"],
    *,
    batch_size: int,
    seed: int | None = None,
    shuffle: bool = False,
    num_epochs: int | None = 1,
    drop_remainder: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
) -> BatchIterator:
    """Batches of arrays that are in memory, such as the features of a frozen backbone.

    Args:
        inputs: (N, ...) handed out as float32.
        attributes: (N, n) in {0, 1}.
        labels: (N,) class indices.
        batch_size: rows of a batch over all processes; each process gets batch_size / process_count of them.
        seed: of the order.
        shuffle: a new order each epoch.
        num_epochs: None never ends.
        drop_remainder: drop an epoch's last batch if it is not full, instead of padding it with zeros.
        process_index: whose share to hand out.
        process_count: number of shares.
        workers: threads that assemble ahead; 0 for none.

    Raises:
        ValueError: where the arrays differ in length, or an option is out of range.
    """
    if not len(inputs) == len(attributes) == len(labels):
        raise ValueError(f"inputs, attributes and labels have {len(inputs)}, {len(attributes)} and {len(labels)} rows")
    plan = BatchPlan(
        len(inputs), batch_size, seed, shuffle, num_epochs, drop_remainder, process_index, process_count
    )  # fmt: skip

    def assemble(rows: Rows) -> AnyBatch:
        i = rows.indices
        return padded_batch(np.asarray(inputs[i], np.float32), attributes[i], labels[i], size=rows.size)

    return BatchIterator(assemble, plan, workers=workers)


def padded_batch(
    inputs: Float[np.ndarray, "k ..."],
    attributes: np.ndarray,
    labels: np.ndarray,
    *,
    size: int,
    parts: np.ndarray | None = None,
) -> AnyBatch:
    """A batch of `size` rows: the given ones, then zeros that `valid` marks as padding."""

    def pad(array: np.ndarray, dtype: type) -> Any:  # NumPy where Batch says jax: either works everywhere
        if len(array) == size and array.dtype == dtype:
            return array
        padded = np.zeros((size, *array.shape[1:]), dtype)
        padded[: len(array)] = array
        return padded

    valid: Any = np.arange(size) < len(labels)
    batch = Batch(pad(inputs, np.float32), pad(attributes, np.float32), pad(labels, np.int32), valid)
    return batch if parts is None else PartBatch(*batch, pad(parts, np.float32))
