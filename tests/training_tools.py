"""A small learnable problem for the training tests: bright patches decide attributes, attributes decide the class."""

import functools

import jax
import numpy as np

from spectra_jax.models import build_model
from spectra_jax.training import TrainConfig, init_state, make_optimizer, make_train_step
from spectra_jax.types import Batch

NUM_ATTRIBUTES, NUM_CLASSES, SIDE = 6, 4, 8
CONFIG = TrainConfig(model="linear", batch_size=16, learning_rate=1e-2, image_size=SIDE)
# Every class has its own attributes, none of them in all classes.
CLASS_ATTRIBUTES = np.array(
    [[1, 0, 0, 1, 0, 1], [0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0]], np.float32
)


def examples(count: int, *, seed: int = 0) -> Batch:
    """Images whose three top and three bottom patches are bright where the attribute is present."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, count).astype(np.int32)
    attributes = CLASS_ATTRIBUTES[labels]
    images = rng.random((count, SIDE, SIDE, 3), dtype=np.float32) * 0.5
    half = SIDE // 2
    images[:, :half] += 0.4 * attributes[:, None, None, :3]
    images[:, half:] += 0.4 * attributes[:, None, None, 3:]
    return Batch(images, attributes, labels, np.ones(count, bool))


class EndlessBatches:
    """Shuffled batches for ever, resumable; process p of P gets its share of the rows of each global batch."""

    def __init__(self, data: Batch, batch_size: int, *, seed: int = 0, process: int = 0, processes: int = 1):
        self.data, self.batch_size, self.seed, self.position = data, batch_size, seed, 0
        share = batch_size // processes
        self.rows = slice(process * share, (process + 1) * share)

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        rng = np.random.default_rng((self.seed, self.position))
        chosen = rng.choice(len(self.data.labels), self.batch_size, replace=False)[self.rows]
        self.position += 1
        return Batch(*(leaf[chosen] for leaf in self.data))

    def get_state(self) -> dict:
        return {"position": self.position}

    def set_state(self, state: dict) -> None:
        self.position = state["position"]


def make_problem(config: TrainConfig = CONFIG, *, num_steps: int = 60, **options):
    """Model, optimiser and first state of the problem."""
    model = build_model(config.model, num_attributes=NUM_ATTRIBUTES, num_classes=NUM_CLASSES, **options)
    optimizer = make_optimizer(model, config, num_steps)
    params = model.init(jax.random.key(config.seed), (SIDE, SIDE, 3))
    return model, optimizer, init_state(model, optimizer, params, jax.random.key(config.seed + 1))


@functools.cache
def plain_step():
    """The step of `make_problem()`, compiled once for all tests."""
    model, optimizer, _ = make_problem()
    return make_train_step(model, optimizer, CONFIG)
