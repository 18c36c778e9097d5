"""Models that know nothing of this package, through the commands: Flax NNX and Equinox, a head of another library."""

import json
import sys

import jax
import numpy as np
import pyarrow.csv
import pytest
from faces import NAMES, PEOPLE, draw_faces
from PIL import Image
from report_words import words
from safetensors.numpy import load_file, save_file
from test_first_ten_minutes import MODEL

from experiments.cli.command import UserError
from experiments.explain import __main__ as explain
from experiments.invert import __main__ as invert
from experiments.saliency import __main__ as saliency

pytestmark = pytest.mark.slow

NNX = MODEL + "\n\nmodel = load(60)\n"
EQUINOX = """
import equinox as eqx
import jax
import jax.numpy as jnp


class Encoder(eqx.Module):
    first: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.first = eqx.nn.Conv2d(3, 8, 3, stride=4, key=one)
        self.last = eqx.nn.Linear(8 * 8 * 8, 40, key=two)

    def __call__(self, image):
        return self.last(jax.nn.relu(self.first(jnp.moveaxis(image, -1, 0))).reshape(-1))


model = Encoder(jax.random.key(0))


def encode(images):
    return jax.vmap(model)(images)
"""


@pytest.fixture(scope="module", params=["nnx", "equinox"])
def own(request, tmp_path_factory):
    """Options that name a model, its head, images and names, all in a folder of their owner."""
    folder = tmp_path_factory.mktemp(request.param)
    images, labels, persons = draw_faces(80)
    np.savez(folder / "images.npz", images=images, labels=labels, persons=persons)
    name = f"their_{request.param}"
    (folder / f"{name}.py").write_text({"nnx": NNX, "equinox": EQUINOX}[request.param], encoding="utf-8")
    # Other people's models need not keep to strict promotion.
    loose = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with pytest.MonkeyPatch.context() as patch, loose[0], loose[1]:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        module = __import__(name)
        if request.param == "nnx":
            function = f"{name}:model.attributes"
            kernel, bias = np.asarray(module.model.head.kernel[...]), np.asarray(module.model.head.bias[...])
        else:
            function = f"{name}:encode"
            rng = np.random.default_rng(0)
            kernel, bias = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
        # As torch.nn.Linear in a Hugging Face checkpoint.
        save_file(
            {"classifier.weight": np.ascontiguousarray(kernel.T), "classifier.bias": bias}, folder / "head.safetensors"
        )
        np.savez(folder / "pictures.npz", images=(255 * images).astype(np.uint8), labels=persons)
        (folder / "a.txt").write_text("\n".join(NAMES), encoding="utf-8")
        (folder / "c.txt").write_text("\n".join(PEOPLE), encoding="utf-8")
        (folder / "broken.py").write_text("def encode(images:", encoding="utf-8")
        yield (
            folder,
            [
                *("--encoder", function, "--head", "head.safetensors", "--images", "pictures.npz"),
                *("--attribute-names", "a.txt", "--class-names", "c.txt"),
            ],
        )
        sys.modules.pop(name, None)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_explain_answers_by_name(own, capsys):
    folder, options = own
    out = folder / "answers"
    rules = ["--immutable", "Male", "Young", "--observed-range", "--max-changes", "6", "--num-images", "4"]
    assert explain.main([*options, *rules, "--out", str(out)]) == 0
    table = pyarrow.csv.read_csv(out / "answers.csv")
    attributes = set(table["attribute"].to_pylist()) - {None, ""}
    assert attributes <= set(NAMES) - {"Male", "Young"} and set(table["class"].to_pylist()) <= set(PEOPLE)
    arrays = np.load(out / "answers.npz")
    solved = arrays["status"] == 0
    assert np.all((np.abs(arrays["delta"][solved]) > 1e-6).sum(axis=1) <= 6)
    figures = summary(out)
    assert figures["explain/num_pairs"] == 4 and figures["explain/solved"] == solved.mean() > 0
    page = words(out / "report.html")
    assert "bird" not in page.lower() and "becomes" in page
    assert "pairs have an answer" in capsys.readouterr().err
    stored = np.load(out / "images.npz")
    reached = np.flatnonzero(stored["success"][:, 0])
    assert len(reached) and len(list((out / "images").glob("*.png"))) == 4 + len(reached)
    for place in reached:
        with Image.open(out / "images" / f"sample-{place}-class-{arrays['targets'][place, 0]}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.rint(255 * stored["images"][place, 0]))


def test_attributes_need_no_encoder(own, capsys):
    folder, options = own
    names = options[options.index("--attribute-names") :]
    answered = ["--rows", "3", "1", "--no-realise", "--range", "-9", "9"]
    assert explain.main([*options, *answered, "--out", str(folder / "with")]) == 0
    found = np.load(folder / "with" / "answers.npz")
    np.savez(folder / "features.npz", attributes=found["attributes"])
    given = ["--attributes", "features.npz", "--head", "head.safetensors", *names]
    assert explain.main([*given, "--range", "-9", "9", "--out", str(folder / "without")]) == 0
    again = np.load(folder / "without" / "answers.npz")
    np.testing.assert_array_equal(again["targets"], found["targets"])
    np.testing.assert_allclose(again["norm"], found["norm"], rtol=1e-5)
    assert not (folder / "without" / "images.npz").exists() and not (folder / "with" / "images").exists()
    with pytest.raises(UserError, match="--attributes needs --head"):
        explain.main([*options, "--attributes", "features.npz", "--out", str(folder / "both")])
    with pytest.raises(UserError, match="looks transposed"):
        save_file({"kernel": np.zeros((40, 7), np.float32)}, folder / "kernel.safetensors")
        explain.main(["--attributes", "features.npz", "--head", "kernel.safetensors", "--out", str(folder / "turned")])


def test_another_head_starts_afresh(own):
    folder, options = own
    out, words = folder / "again", dict(zip(options[::2], options[1::2], strict=True))
    found = []
    for sign in (1, -1):
        head = {name: sign * array for name, array in load_file(folder / "head.safetensors").items()}
        save_file(head, folder / "other.safetensors")
        given = words | {"--head": "other.safetensors", "--out": str(out), "--num-pairs": "2"}
        assert invert.main([*(word for pair in given.items() for word in pair), "--quiet"]) == 0
        found.append(np.load(out / "counterfactuals.npz")["predicted"])
    assert np.any(found[0] != found[1])


def test_robustness_takes_the_same_options(own):
    pytest.importorskip("foolbox", reason="needs the extra 'bench'")
    from experiments.robustness import __main__ as robustness

    folder, options = own
    short = ["--num-images", "8", "--pgd-steps", "4", "--ddn-steps", "8", "--carlini-steps", "0", "--batch-size", "8"]
    radii = ["--l2-radii", "0.5", "--linf-levels", "8"]
    assert robustness.main([*options, *short, *radii, "--out", str(folder / "attacked"), "--quiet"]) == 0
    figures, name = summary(folder / "attacked"), options[1]
    assert figures[f"{name}/num_images"] == 8
    assert figures[f"{name}/linf_accuracy_at_8"] <= figures[f"{name}/clean_accuracy"]
    with pytest.raises(UserError, match="Give either --run-dirs"):
        robustness.main([*options, "--run-dirs", "runs", "--out", str(folder / "both")])


def test_invert_and_saliency_take_the_same_options(own):
    folder, options = own
    assert invert.main([*options, "--out", str(folder / "inverted"), "--num-pairs", "4", "--quiet"]) == 0
    found = np.load(folder / "inverted" / "counterfactuals.npz")
    assert len(found["success"]) == 4 and summary(folder / "inverted")["invert/success_rate"] == found["success"].mean()
    few = ["--num-images", "2", "--num-attributes", "1", "--top-k", "20", "--quiet"]
    assert saliency.main([*options, "--image", "0", "1", "--out", str(folder / "maps"), *few]) == 0
    pages = [words(folder / name / "report.html") for name in ("maps", "inverted")]
    assert not any("bird" in page.lower() for page in pages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--encoder": "nowhere"}, "package.module:function"),
        ({"--encoder": "nowhere:encode"}, "cannot be imported"),
        ({"--encoder": "math:nothing"}, "there is no 'nothing'"),
        ({"--encoder": "math:pi"}, "of type float"),
        ({"--encoder": "jax.numpy:sum"}, "a row of attributes per image"),
        ({"--encoder": "broken:encode"}, "SyntaxError"),
        ({"--head": "nothing.npz"}, "no such file"),
        ({"--attribute-names": "c.txt"}, "has 5 names; expected 40"),
        ({"--immutable": "Mail"}, "did you mean 'Male'"),
        ({"--run-dir": "runs"}, "Give either --run-dir"),
    ],
)
def test_what_does_not_fit_is_named(own, change, message):
    folder, options = own
    words = dict(zip(options[::2], options[1::2], strict=True)) | change
    with pytest.raises(UserError, match=message):
        explain.main([*(word for pair in words.items() for word in pair), "--out", str(folder / "no")])
