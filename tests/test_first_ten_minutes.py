"""The session of docs/first-ten-minutes.md, run with a Flax NNX model that knows nothing of this package."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from faces import NAMES, PEOPLE, draw_faces
from report_words import words

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "first-ten-minutes.md"
MODEL = """
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Faces(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.bottleneck = nnx.Linear(8 * 8 * 32, 40, rngs=rngs)
        self.head = nnx.Linear(40, 5, rngs=rngs)

    def attributes(self, images):
        hidden = nnx.relu(self.second(nnx.relu(self.first(images))))
        return self.bottleneck(hidden.reshape(len(images), -1))


def load(steps=150):
    data = np.load("images.npz")
    images, labels = jnp.asarray(data["images"]), jnp.asarray(data["labels"], jnp.float32)
    persons = jnp.asarray(data["persons"])
    model = Faces(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            values = model.attributes(images)
            binary = optax.sigmoid_binary_cross_entropy(values, labels).mean()
            classes = optax.softmax_cross_entropy_with_integer_labels(model.head(values), persons).mean()
            return binary + 0.3 * classes

        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(steps):
        step(model, optimizer)
    return model
"""


def block(name: str) -> str:
    text = DOCUMENT.read_text(encoding="utf-8")
    return re.search(rf"<!-- tested: {name} -->\n```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_session_takes_25_lines():
    own = [line for line in block("the session").splitlines() if line.strip()]
    assert len(own) <= 25


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the session leaves closing its text files to Python
def test_the_session_ends_with_a_page(tmp_path, monkeypatch, capsys):
    images, labels, persons = draw_faces(160)
    np.savez(tmp_path / "images.npz", images=images, labels=labels, persons=persons)
    (tmp_path / "attribute_names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    (tmp_path / "class_names.txt").write_text("\n".join(PEOPLE), encoding="utf-8")
    (tmp_path / "my_model.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import jax

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        space: dict = {}
        exec(compile(block("the session"), "session", "exec"), space)
        exec(compile(block("interventions"), "interventions", "exec"), space)
    sys.modules.pop("my_model", None)
    answers = space["answers"]
    locked = [NAMES.index(name) for name in ("Male", "Young", "Chubby", "Big_Nose", "Oval_Face")]
    solved = answers.status == 0
    assert solved[:, :, 0].any()
    assert np.all(answers.delta[solved][:, locked] == 0)
    assert np.all((np.abs(answers.delta[solved]) > 1e-6).sum(axis=1) <= 3)
    known = np.asarray(space["known"])
    after = (np.asarray(answers.attributes)[:, None, None] + answers.delta)[solved]
    assert np.all((after <= known.max(axis=0) + 1e-3) & (after >= known.min(axis=0) - 1e-3))
    page = words(tmp_path / "answers.html")
    assert "Ada" in page and "bird" not in page.lower()
    printed = capsys.readouterr().out
    assert "the smallest change there is" in printed and "of the classes are right" in printed
