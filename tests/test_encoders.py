"""Any JAX function from images to attributes is an encoder: modules of flax nnx and of Equinox, whole or split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import spectra_jax as sj

SIDE, ATTRIBUTES, CLASSES = 12, 6, 4
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(3, SIDE, SIDE, 3)), jnp.float32)
HEAD = sj.Head(jnp.asarray(np.random.default_rng(1).normal(size=(CLASSES, ATTRIBUTES)), jnp.float32))


@jax.jit
def shortest_changes(attributes, targets):
    return jax.vmap(lambda e, j: sj.projection_perturbation(HEAD, e, j, margin=0.5).delta)(attributes, targets)


class NnxEncoder(nnx.Module):
    """A convolution and a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.convolution = nnx.Conv(3, 4, (3, 3), strides=4, rngs=rngs)
        self.linear = nnx.Linear(4 * (SIDE // 4) ** 2, ATTRIBUTES, rngs=rngs)

    def __call__(self, images):
        return self.linear(nnx.relu(self.convolution(images)).reshape(len(images), -1))


def nnx_module():
    """The module itself: its weights are constants of what is compiled."""
    return NnxEncoder(nnx.Rngs(0))


def nnx_state():
    """Structure and weights apart: other weights reuse what was compiled."""
    structure, state = nnx.split(NnxEncoder(nnx.Rngs(0)))
    return functools.partial(lambda state, images: nnx.merge(structure, state)(images), state)


def equinox_model():
    equinox = pytest.importorskip("equinox", reason="needs Equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    return equinox, equinox.nn.Sequential(
        [
            equinox.nn.Lambda(lambda image: jnp.transpose(image, (2, 0, 1))),  # Equinox is channels first, one example
            equinox.nn.Conv2d(3, 4, 3, stride=4, padding=1, key=keys[0]),
            equinox.nn.Lambda(lambda x: jax.nn.relu(x).ravel()),
            equinox.nn.Linear(4 * (SIDE // 4) ** 2, ATTRIBUTES, key=keys[1]),
        ]
    )


def equinox_module():
    _, model = equinox_model()
    return jax.vmap(model)


def equinox_arrays():
    equinox, model = equinox_model()
    arrays, rest = equinox.partition(model, equinox.is_array)
    return functools.partial(lambda arrays, images: jax.vmap(equinox.combine(arrays, rest))(images), arrays)


ENCODERS = pytest.mark.parametrize("make", [nnx_module, nnx_state, equinox_module, equinox_arrays])


@ENCODERS
def test_images_are_found_for_any_encoder(make):
    encode = make()
    before = encode(IMAGES)
    assert before.shape == (len(IMAGES), ATTRIBUTES)
    logits = sj.head_logits(HEAD, before)
    targets = jnp.argsort(logits, axis=-1)[:, -2].astype(jnp.int32)
    change = shortest_changes(before, targets)
    config = sj.InversionConfig(method=sj.Adam(step_size=0.02), max_steps=100, margin=0.01)
    found = sj.invert(encode, HEAD, IMAGES, before + change, targets, config=config)
    assert found.success.all()
    after = encode(found.images)
    np.testing.assert_allclose(found.attributes, after, atol=1e-4)
    np.testing.assert_array_equal(sj.head_logits(HEAD, after).argmax(axis=-1), targets)
    assert not np.array_equal(found.images, IMAGES)


@ENCODERS
def test_activation_maps_of_any_encoder_are_its_gradient(make):
    encode = make()
    found = sj.activation_map(encode, IMAGES, 2, top_k=None)
    gradients = jax.vmap(jax.grad(lambda image: encode(image[None])[0, 2]))(IMAGES)
    np.testing.assert_allclose(found, np.abs(gradients).max(axis=-1), atol=1e-5)
    assert (np.asarray(found).reshape(len(IMAGES), -1).max(axis=1) > 0).all()
