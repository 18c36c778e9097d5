"""The decoder: shapes, training with a model and afterwards, figures beside honest baselines, the script's folder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training_tools import CONFIG, SIDE, EndlessBatches, examples, make_problem, plain_step

from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.reconstruct import solve
from experiments.reconstruct.__main__ import main as reconstruct
from experiments.runs import folder as run_folder
from experiments.runs import loading
from experiments.train.__main__ import main as train
from experiments.training import generator
from spectra_jax.logging import read_metrics
from spectra_jax.losses import reconstruction_loss
from spectra_jax.models import build_decoder, build_model
from spectra_jax.training import fit, forward, init_state, make_optimizer, make_train_step, with_loss_parameters

JOINT = dataclasses.replace(CONFIG, lambda_reconstruction=2.0)


@pytest.mark.parametrize("size", [4, 7, 30])
def test_decoder_draws_images_of_the_asked_size_within_the_unit_range(size):
    decoder = build_decoder(num_attributes=5, image_size=size, widths=(16, 16, 8, 8))
    params = decoder.init(jax.random.key(0))
    attributes = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    decode = jax.jit(decoder.decode)
    images = np.asarray(decode(params, attributes))
    assert images.shape == (3, size, size, 3) and images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1
    # No image depends on the others of its batch.
    np.testing.assert_allclose(decode(params, attributes.at[::2].set(7))[1], images[1], atol=1e-5)
    assert not np.allclose(images[0], images[1], atol=1e-3)


def test_decoder_standardises_by_statistics_that_are_not_trained():
    decoder = build_decoder(num_attributes=5, image_size=8, widths=(8,) * 2)
    params = decoder.init(jax.random.key(0))
    rows = np.random.default_rng(0).normal(3, 2, (50, 5)).astype(np.float32)
    rows[:, 4] = 1.0  # constant: only centred
    with_statistics = decoder.with_statistics(params, rows)
    standard = (rows - rows.mean(0)) / np.where(rows.std(0) > 0, rows.std(0), 1)
    decode = jax.jit(decoder.decode)
    np.testing.assert_allclose(
        decode(with_statistics, jnp.asarray(rows)), decode(params, jnp.asarray(standard)), atol=1e-4
    )
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(decoder.decode(p, jnp.asarray(rows)))))(with_statistics)
    assert not gradient["feature_mean"].any() and not gradient["feature_std"].any()
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["network"]))


def test_linear_map_is_the_decoder_that_training_starts_from():
    decoder = build_decoder(num_attributes=5, image_size=8, widths=(8,) * 2)
    rng = np.random.default_rng(0)
    rows = rng.normal(3, 2, (40, 5)).astype(np.float32)
    kernel, mean = rng.normal(0, 0.3, (5, 8, 8, 3)), rng.uniform(size=(8, 8, 3))
    params = decoder.with_linear(decoder.with_statistics(decoder.init(jax.random.key(0)), rows), kernel, mean)
    expected = np.clip(mean + np.tensordot((rows - rows.mean(0)) / rows.std(0), kernel, 1), 0, 1)
    assert np.mean(expected == 0) > 0.02 and np.mean(expected == 1) > 0.02  # both ends are clipped
    np.testing.assert_allclose(jax.jit(decoder.decode)(params, jnp.asarray(rows)), expected, atol=0.5 / 255 + 1e-5)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(decoder.decode(p, jnp.asarray(rows))))))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["linear"]))
    assert np.any(gradient["network"]["colours"]["kernel"])  # the correction is zero but can be learned


@pytest.mark.parametrize("noise", [0.05, 5.0])
def test_ridge_penalty_is_the_best_on_held_out_examples(noise):
    rng = np.random.default_rng(0)
    attributes = rng.normal(1, 3, (90, 6)).astype(np.float32)
    signal = 0.5 + np.tensordot(attributes - 1, rng.normal(0, 0.02, (6, 8, 8, 3)), 1)
    images = np.clip(signal + 0.1 * noise * rng.normal(size=signal.shape), 0, 1).astype(np.float32)
    labels = np.zeros(90, int)
    train, held_out = solve.set_aside(solve.Examples(attributes, images, labels, labels))
    assert (len(train.labels), len(held_out.labels)) == (81, 9)
    decoder = build_decoder(num_attributes=6, image_size=8, widths=(8,) * 2)
    params = solve.linear_decoder(decoder, train, held_out, seed=0)

    def quality(images):
        return solve.mean_psnr(np.clip(images, 0, 1), held_out.images)

    fits = [
        make_pipeline(StandardScaler(), Ridge(alpha=penalty * 81)).fit(train.attributes, train.images.reshape(81, -1))
        for penalty in solve.PENALTIES
    ]
    drawn = [fit.predict(held_out.attributes).reshape(-1, 8, 8, 3).astype(np.float32) for fit in fits]
    decoded = solve.decode_all(decoder, params, held_out.attributes)
    np.testing.assert_allclose(decoded, np.clip(max(drawn, key=quality), 0, 1), atol=0.5 / 255 + 1e-4)


@pytest.mark.usefixtures("x64")
def test_decoder_runs_in_float64():
    decoder = build_decoder(num_attributes=5, image_size=8, widths=(8,) * 2)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), decoder.init(jax.random.key(0)))
    assert jax.jit(decoder.decode)(params, jnp.ones((2, 5))).dtype == jnp.float64


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="at least 4 pixels, got 3"):
        build_decoder(num_attributes=5, image_size=3)
    with pytest.raises(ValueError, match="500 pixels need 7 widths, got 6"):
        build_decoder(num_attributes=5, image_size=500)
    decoder = build_decoder(num_attributes=5, image_size=8)
    with pytest.raises(ValueError, match=r"expected \(b, 5\)"):
        decoder.decode(decoder.init(jax.random.key(0)), jnp.ones(5))


def joint_state(config):
    model, _, plain = make_problem(config)
    optimizer = make_optimizer(model, config, 60)
    params = with_loss_parameters(model, plain.params, config, jax.random.key(5))
    return model, init_state(model, optimizer, params, plain.key), make_train_step(model, optimizer, config)


def test_decoder_is_trained_with_the_model_and_padding_is_masked():
    model, state, step = joint_state(JOINT)
    assert set(state.params) == {"backbone", "bottleneck", "head", "decoder"}
    batch = examples(16)
    batch.valid[11:] = False
    decoder = build_decoder(num_attributes=6, image_size=SIDE)
    attributes, _ = forward(model, state.params, jnp.asarray(batch.inputs))
    decoded = decoder.decode(state.params["decoder"], attributes)
    expected = reconstruction_loss(decoded[:11], jnp.asarray(batch.inputs[:11]))
    first = jax.tree.map(np.array, state.params)
    logged = []
    plain, _ = plain_step()(make_problem()[2], batch)
    state, metrics = step(state, batch)
    # The reconstruction reaches the encoder, too: it turns the gradient there (its length is clipped either way).
    first_moments = [np.ravel(s.opt_state[1][0].mu["bottleneck"]["kernel"]) for s in (plain, state)]
    alone, joint = (moment / np.linalg.norm(moment) for moment in first_moments)
    assert alone @ joint < 0.999
    np.testing.assert_allclose(metrics["reconstruction_loss"], expected, rtol=1e-4)
    state, _ = fit(
        state,
        step,
        EndlessBatches(examples(128), 16),
        num_steps=60,
        steps_per_epoch=8,
        log=logged.append,
        log_every=20,
    )
    assert logged[-1]["reconstruction_loss"] < 0.5 * metrics["reconstruction_loss"]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), first["decoder"], state.params["decoder"])
    assert all(jax.tree.leaves(moved["network"]))
    assert not moved["feature_mean"] and not moved["feature_std"]


def test_frozen_backbone_has_no_images_to_reconstruct():
    model = build_model("efficientnet_lite0", num_attributes=6, num_classes=4)
    with pytest.raises(ValueError, match=r"lambda_reconstruction=2 .*features.*experiments\.reconstruct"):
        with_loss_parameters(model, {}, JOINT, jax.random.key(0))


def test_class_means_and_their_psnr():
    images = np.zeros((4, 2, 2, 3), np.float32)
    images[2:] = 0.5
    split = solve.Examples(np.zeros((4, 1)), images, np.array([0, 0, 2, 2]), np.array([0, 0, 2, 2]))
    overall, own = solve.class_means(split, 3)
    np.testing.assert_allclose(overall, 0.25)
    np.testing.assert_allclose(own[:, 0, 0, 0], [0, 0.25, 0.5])  # class 1 has no image
    assert solve.mean_psnr(np.broadcast_to(overall, images.shape), images) == pytest.approx(12.0412, abs=1e-3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same small model trained without and with a decoder."""
    folder = tmp_path_factory.mktemp("runs")
    birds = generate(folder / "tiny", num_classes=4, images_per_class=12, image_size=48, workers=1, progress=False)
    options = ["--model", "linear", "--image-size", "16", "--batch-size", "8", "--epochs", "6", "--quiet"]
    for name, more in (("plain", []), ("joint", ["--lambda-reconstruction", "5", "--lambda-sparsity", "0.01"])):
        assert train([*options, *more, "--data-dir", str(birds), "--run-dir", str(folder / name)]) == 0
    return folder


STEPS = ["--steps", "40", "--image-size", "16", "--batch-size", "16", "--quiet"]


def test_decoder_of_a_finished_run(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(solve, "EVERY", 20)
    arguments = ["--run-dir", str(runs / "plain"), "--out", str(tmp_path / "out"), *STEPS]
    assert reconstruct(arguments) == 0
    summary = run_folder.read_json(tmp_path / "out" / run_folder.SUMMARY)
    assert summary["test/reconstruction_psnr"] > summary["test/reconstruction_psnr_baseline"] > 5
    assert summary["test/reconstruction_psnr_linear"] > summary["test/reconstruction_psnr_baseline"]
    looks = [row for row in read_metrics(tmp_path / "out" / run_folder.METRICS) if row["split"] == "validation"]
    best = max(looks, key=lambda row: row["reconstruction_psnr"])
    assert [row["step"] for row in looks] == [0, 20, 40] and summary["best_step"] == best["step"]
    assert 0 <= summary["test/reconstruction_class_accuracy"] <= 1 and summary["test/shrunk_class_accuracy"] > 0.25
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Held-out images" in page and "One attribute changed" in page and "Mean image PSNR" in page
    assert "skipped" not in page  # bookkeeping has no curve
    before = read_metrics(tmp_path / "out" / run_folder.METRICS)
    assert reconstruct([*arguments, "--attributes", "has_crown_color::red"]) == 0  # finished: not trained again
    assert read_metrics(tmp_path / "out" / run_folder.METRICS) == before
    assert "has_crown_color::red" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(UserError, match="has_crown_color"):
        reconstruct([*arguments, "--attributes", "has_crown_colour::red"])
    with pytest.raises(UserError, match=r"--image-size: .*at least 4 pixels"):
        reconstruct([*arguments[:2], "--out", str(tmp_path / "small"), "--image-size", "3"])


def test_stopped_decoder_resumes_bitwise(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(solve, "EVERY", 10)
    run = loading.load_run(runs / "plain")
    decoder = build_decoder(num_attributes=run.info.num_attributes, image_size=16, widths=(8, 8))
    split = solve.load_examples(run, 16, console=solve.Console(quiet=True))("train")
    split, held_out = solve.set_aside(split)
    config = solve.DecoderConfig(image_size=16, steps=30, batch_size=8)
    start = solve.linear_decoder(decoder, split, held_out, seed=0)

    class Interrupted(Exception):
        pass

    def once(out, *, stop_at=None):
        def fail(step):
            if step == stop_at:
                raise Interrupted

        original = generator.fit
        with monkeypatch.context() as patch:
            patch.setattr(generator, "fit", lambda *a, **k: original(*a, **{**k, "on_step": fail}))
            return solve.train_decoder(
                decoder, start, split, held_out, config, out, seed=0, console=solve.Console(quiet=True)
            )

    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    whole, step, code = once(tmp_path / "whole")
    assert code == 0
    with pytest.raises(Interrupted):
        once(tmp_path / "pieces", stop_at=17)
    resumed, step_after_resuming, _ = once(tmp_path / "pieces")
    assert step_after_resuming == step
    looks = [row for row in read_metrics(tmp_path / "pieces" / run_folder.METRICS) if row["split"] == "validation"]
    assert [row["step"] for row in looks] == [0, 10, 20, 30]
    kept = solve.mean_psnr(solve.decode_all(decoder, resumed, held_out.attributes), held_out.images)
    assert kept == pytest.approx(max(row["reconstruction_psnr"] for row in looks), abs=1e-4)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_decoder_that_came_with_its_run_is_measured_as_it_is(runs, tmp_path):
    assert set(json.loads((runs / "joint" / run_folder.CONFIG).read_text())["run"]["train"]) >= {
        "lambda_reconstruction"
    }
    logged = [row for row in read_metrics(runs / "joint" / run_folder.METRICS) if row["split"] == "train"]
    assert logged[0].keys() >= {"reconstruction_loss", "sparsity_loss"}
    assert reconstruct(["--run-dir", str(runs / "joint"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    summary = run_folder.read_json(tmp_path / "out" / run_folder.SUMMARY)
    assert summary["test/reconstruction_psnr"] > summary["test/reconstruction_psnr_baseline"]
    assert not (tmp_path / "out" / run_folder.METRICS).exists()
    run = loading.load_run(runs / "joint")
    assert "decoder" in run.params and run.config.lambda_reconstruction == 5
    encoded = run.model.encode(run.params, np.zeros((2, 16, 16, 3), np.float32))  # the model itself is as before
    assert encoded.shape == (2, run.info.num_attributes)
