"""A model that is quick to compile, and its pictures: what tests of the live page ask about, in process or served."""

import functools
import sys

import jax.numpy as jnp
import numpy as np
import uvicorn

import spectra_jax as sj
from experiments.explore.__main__ import listen
from experiments.explore.images import Pictures
from experiments.explore.server import make_app
from experiments.explore.session import Session
from experiments.explore.turns import Turns

SIDE, CLASSES, TOKEN = 16, 5, "k" * 40
NAMES = (*(f"has_{group}::v{value}" for group in ("colour", "shape") for value in range(6)), "size")


def drawn(seed, labels, numbers):
    """Pictures that depend on their number and class alone, made when they are read."""
    grounds = np.random.default_rng(seed).integers(60, 190, (CLASSES, SIDE, SIDE, 3))
    noise = [np.random.default_rng([seed, int(number)]).integers(-25, 25, (SIDE, SIDE, 3)) for number in numbers]
    return (grounds[labels[numbers]] + np.array(noise)).astype(np.uint8)


def encode(kernel, images):
    return jnp.tanh(jnp.tensordot(images - 0.5, kernel, axes=3)) * 3


def make_session(num_pictures=60, *, seed=0, name="a model", turns=None):
    """A session of plain arrays; those of two seeds have the same pictures and other weights."""
    rng = np.random.default_rng([7, seed])
    kernel = jnp.asarray(rng.normal(size=(SIDE, SIDE, 3, len(NAMES))) / SIDE, jnp.float32)
    pictures, training = (
        Pictures(functools.partial(drawn, 1, labels), labels)
        for labels in (np.arange(num_pictures) % CLASSES, np.arange(40) % CLASSES)
    )
    parts = [
        np.asarray(encode(kernel, jnp.asarray(pictures.read(rows), jnp.float32) / 255))
        for rows in np.array_split(np.arange(num_pictures), -(-num_pictures // 500))
    ]
    attributes = np.concatenate(parts)
    centres = np.stack([attributes[k::CLASSES].mean(axis=0) for k in range(CLASSES)])
    head = sj.Head(jnp.asarray(centres, jnp.float32), jnp.asarray(-(centres**2).sum(axis=1) / 2, jnp.float32))
    return Session(
        name=name,
        encode=functools.partial(encode, kernel),
        head=head,
        pictures=pictures,
        attributes=attributes,
        attribute_names=NAMES,
        class_names=tuple(f"{k + 1:03}.Some_{word}" for k, word in enumerate(("Owl", "Ant", "Elk", "Bee", "Cat"))),
        training=training,
        turns=turns or Turns(),
    )


if __name__ == "__main__":
    socket = listen(int(sys.argv[1]))
    port, turns = socket.getsockname()[1], Turns()
    sessions = tuple(make_session(int(sys.argv[2]), seed=seed, name=f"model {seed}", turns=turns) for seed in (0, 1))
    app = make_app(sessions, token=TOKEN, hosts=(f"127.0.0.1:{port}",))
    print(port, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[socket])
