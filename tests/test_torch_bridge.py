"""Attacks written for PyTorch on a JAX classifier."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the bridge to PyTorch is tested where PyTorch is installed")

from experiments.attacks.torch_bridge import TorchClassifier  # noqa: E402


def logits(images):
    """A small network whose gradients depend on the images."""
    weights = jax.random.normal(jax.random.key(0), (48, 16)) / 7
    hidden = jnp.tanh(jnp.reshape(images, (len(images), -1)) @ weights)
    return hidden @ jax.random.normal(jax.random.key(1), (16, 5))


def drawn_images(count):
    return np.asarray(jax.random.uniform(jax.random.key(2), (count, 4, 4, 3)))


@pytest.mark.parametrize("count", [1, 5, 8])  # 5 are padded to a bucket of 8
def test_logits_and_gradients_are_those_of_the_jax_model(count):
    images, classifier = drawn_images(count), TorchClassifier(logits)
    tensor = torch.from_numpy(images.copy()).requires_grad_(True)
    found = classifier(tensor)
    np.testing.assert_allclose(found.detach().numpy(), logits(jnp.asarray(images)), atol=1e-5)
    (gradient,) = torch.autograd.grad(found[:, 2].sum(), tensor)
    expected = jax.grad(lambda x: jnp.sum(logits(x)[:, 2]))(jnp.asarray(images))
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-5)
    assert (classifier.forward_passes, classifier.backward_passes) == (count, count)


def test_tensors_changed_in_place_leave_the_gradient_as_it_was():
    images, classifier = drawn_images(8), TorchClassifier(logits)
    tensor = torch.from_numpy(images.copy()).requires_grad_(True)
    found = classifier(tensor)
    loss = found[:, 2].sum()
    tensor.data.zero_()
    found.data.zero_()
    (gradient,) = torch.autograd.grad(loss, tensor)
    expected = jax.grad(lambda x: jnp.sum(logits(x)[:, 2]))(jnp.asarray(images))
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of what Adversarial Library imports
def test_the_example_of_the_page_runs(capsys):
    """docs/pytorch-attacks.md."""
    pytest.importorskip("adv_lib", reason="Adversarial Library is not installed")
    page = (Path(__file__).resolve().parents[1] / "docs" / "pytorch-attacks.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    images = drawn_images(8)
    classes = np.asarray(jnp.argmax(logits(images), axis=-1), np.int64)
    names = {"logits_fn": logits, "pixels": images, "classes": classes}
    exec(compile(block, "pytorch-attacks.md", "exec"), names)
    said, rows = np.array(logits(jnp.asarray(names["found"].numpy()))), np.arange(8)
    own = said[rows, classes]
    said[rows, classes] = -np.inf
    assert (
        said.max(axis=1) >= own - 1e-3
    ).mean() >= 0.5  # FMN may fail, and ends on the boundary where rounding decides
    assert capsys.readouterr().out == "800 800\n"


@pytest.mark.filterwarnings("ignore")  # of what Adversarial Library imports
def test_two_libraries_make_the_same_attack():
    """DDN of Adversarial Library through the bridge is DDN of Foolbox on the JAX model itself."""
    pytest.importorskip("adv_lib", reason="Adversarial Library is not installed")
    pytest.importorskip("foolbox", reason="Foolbox is not installed")
    from experiments.attacks.foolbox import BottleneckModel
    from experiments.attacks.peers import find_peer
    from spectra_jax import Head

    model, images = BottleneckModel(logits, Head(jnp.eye(5))), jnp.asarray(drawn_images(8))
    classes = jnp.argmax(model(images), axis=-1)
    results = [find_peer(name).run(model, images, classes, False) for name in ("ddn-30", "advlib_ddn-30")]
    lengths = [np.linalg.norm(np.reshape(each.images - images, (8, -1)), axis=1) for each in results]
    np.testing.assert_allclose(*lengths, rtol=0.02)
    assert [each[1:] for each in results] == [(30, 30), (30, 30)]
    assert (lengths[0] > 0).all()
