"""Inversion: what success means, that finished samples rest, and that every failure says why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from experiments.counterfactuals.options import InversionOptions

SIDE, WIDTH, CLASSES, ATTRIBUTES = 12, 13, 5, 8
RANDOM = np.random.default_rng(0)
KERNEL = 0.1 * RANDOM.normal(size=(SIDE * WIDTH * 3, ATTRIBUTES))
WEIGHTS = RANDOM.normal(size=(CLASSES, ATTRIBUTES))
IMAGES = RANDOM.uniform(size=(4, SIDE, WIDTH, 3))
METHODS = {
    "adam": sj.Adam(step_size=0.01),
    "gradient_descent": sj.GradientDescent(step_size=1.0),
    "gauss_newton": sj.GaussNewton(),
    "nearest": sj.Nearest(),
}


def linear(kernel, images):
    return jnp.einsum("bk,kn->bn", images.reshape(len(images), -1), kernel, precision=jax.lax.Precision.HIGHEST)


def logarithmic(kernel, images):
    """Not finite for images with a black pixel, through its value or its gradient."""
    return linear(kernel, jnp.log(images))


def least_likely(attributes, weights, lead=0.2):
    """The least likely class of each sample, and attributes at which it leads and all others tie (Section 2.5.3)."""
    logits = attributes @ weights.T
    targets = logits.argmin(axis=1).astype(np.int32)
    centred = weights - weights.mean(axis=0)
    wished = lead * np.eye(len(weights))[targets]
    return targets, attributes + (wished - logits + logits.mean(axis=1, keepdims=True)) @ np.linalg.pinv(
        centred, rcond=1e-5
    ).T


def problem(dtype=np.float32):
    """encode_fn, head, images, target_attributes and targets of four searches that succeed."""
    encode = functools.partial(linear, jnp.asarray(KERNEL, dtype))
    head, images = sj.Head(jnp.asarray(WEIGHTS, dtype)), jnp.asarray(IMAGES, dtype)
    targets, wanted = least_likely(encoded(IMAGES), WEIGHTS)
    return encode, head, images, jnp.asarray(wanted, dtype), jnp.asarray(targets)


def config(method="adam", **options):
    return sj.InversionConfig(**{"method": METHODS.get(method, method), "max_steps": 60, **options})


@functools.cache
def solved(method="adam"):
    return sj.invert(*problem(), config=config(method))


def named(attributes):
    return (np.asarray(attributes) @ WEIGHTS.T).argmax(axis=1)


def encoded(images):
    return np.asarray(images, np.float64).reshape(len(images), -1) @ KERNEL


@pytest.mark.parametrize("method", ["adam", "gradient_descent"])
def test_success_is_the_classifiers_verdict_on_the_returned_image(method):
    _, _, images, wanted, targets = problem()
    result = solved(method)
    np.testing.assert_array_equal(result.success, True)
    np.testing.assert_array_equal(result.reason, sj.Status.SOLVED)
    np.testing.assert_array_equal(named(encoded(result.images)), targets)
    np.testing.assert_allclose(result.attributes, encoded(result.images), atol=1e-5)
    assert np.all(result.num_steps > 0) and np.all(result.num_steps <= 60)
    assert result.images.shape == images.shape and result.images.dtype == images.dtype
    assert float(result.images.min()) >= 0 and float(result.images.max()) <= 1
    distance = np.square(np.asarray(result.attributes) - np.asarray(wanted)).mean(axis=1)
    similarity = np.asarray(sj.ssim(result.images, images))
    np.testing.assert_allclose(result.loss, distance + 0.1 * (1 - similarity), rtol=1e-4)
    before = np.square(encoded(images) - np.asarray(wanted)).mean(axis=1)
    assert np.all(np.asarray(result.loss) < before)


def test_rounding_to_8_bits_is_judged_on_the_rounded_image():
    result = solved()
    rounded = np.round(np.asarray(result.images, np.float64) * 255).astype(np.uint8)
    expected = np.asarray(result.success) & (named(encoded(rounded / 255)) == np.asarray(problem()[4]))
    np.testing.assert_array_equal(result.survives_rounding, expected)


def test_a_flip_that_rounding_undoes_is_reported():
    # One pixel decides: it must pass 0.5004, which 8 bits round back to 128/255 = 0.50196 or down to 127/255.
    def brightness(images):
        return images[:, 0, 0, :1]

    head = sj.Head(jnp.asarray([[0.0], [1.0]]), jnp.asarray([0.0, -0.4996]))
    images = jnp.full((1, 2, 2, 3), 0.498)  # rounds to 127/255 = 0.49804, below the threshold
    slow = functools.partial(config, sj.GradientDescent(step_size=0.001), ssim_weight=0.0, max_steps=2000)
    search = functools.partial(sj.invert, brightness, head, images, jnp.asarray([[0.6]]), jnp.asarray([1]))
    result, safer = search(config=slow()), search(config=slow(margin=0.004))
    assert result.success[0] and not result.survives_rounding[0]
    assert safer.success[0] and safer.survives_rounding[0] and safer.num_steps[0] > result.num_steps[0]


def test_margin_is_the_lead_at_which_a_sample_stops():
    result = sj.invert(*problem(), config=config(margin=0.1))
    assert np.all(result.success)
    logits = np.asarray(result.attributes) @ WEIGHTS.T
    targets = np.asarray(problem()[4])
    lead = logits[np.arange(4), targets] - [np.delete(row, j).max() for row, j in zip(logits, targets, strict=True)]
    assert np.all(lead >= 0.1 - 1e-5)
    assert np.all(np.asarray(result.num_steps) >= np.asarray(solved().num_steps))


def test_a_finished_sample_is_bitwise_at_rest_while_others_go_on():
    encode, head, images, wanted, targets = problem()
    first = int(np.argmin(solved().num_steps))
    longer = wanted.at[jnp.asarray([row for row in range(4) if row != first])].multiply(-50.0)  # never reached
    result = sj.invert(encode, head, images, longer, targets, config=config())
    assert result.success[first] and int(result.num_steps.max()) > int(result.num_steps[first])
    np.testing.assert_array_equal(result.images[first], solved().images[first])
    assert result.loss[first] == solved().loss[first]


def test_the_budget_is_kept_and_named():
    encode, head, images, wanted, targets = problem()
    needed = np.asarray(solved().num_steps)
    budget = int(np.sort(needed)[-2])
    assert budget < needed.max()
    result = sj.invert(encode, head, images, wanted, targets, config=config(max_steps=budget))
    np.testing.assert_array_equal(result.num_steps, np.minimum(needed, budget))
    np.testing.assert_array_equal(result.reason, np.where(needed <= budget, sj.Status.SOLVED, sj.Status.BUDGET))
    np.testing.assert_array_equal(result.success, needed <= budget)
    assert not result.survives_rounding[needed.argmax()]
    np.testing.assert_allclose(result.attributes, encoded(result.images), atol=1e-5)
    budgets = np.where(np.arange(4) % 2 == 0, needed, np.maximum(needed - 1, 0)).astype(np.int32)
    each = sj.invert(encode, head, images, wanted, targets, config=config(max_steps=1), max_steps=budgets)
    np.testing.assert_array_equal(each.success, needed <= budgets)
    np.testing.assert_array_equal(each.num_steps, budgets)


def test_an_image_that_is_already_the_target_is_returned_as_it_is():
    encode, head, images, wanted, _ = problem()
    result = sj.invert(encode, head, images, wanted, jnp.asarray(named(encoded(images)), jnp.int32), config=config())
    np.testing.assert_array_equal(result.success, True)
    np.testing.assert_array_equal(result.num_steps, 0)
    np.testing.assert_array_equal(result.images, images)


def test_a_loss_that_is_not_finite_stops_its_own_sample_only():
    kernel = jnp.asarray(0.1 * KERNEL, jnp.float32)
    _, head, images, _, _ = problem()
    images = images.clip(0.2, 1).at[2, 0, 0, 0].set(0.0)
    encode = functools.partial(logarithmic, kernel)
    targets, wanted = least_likely(np.nan_to_num(np.asarray(encode(images)), neginf=0, posinf=0), WEIGHTS)
    wanted, targets = jnp.asarray(wanted, jnp.float32), jnp.asarray(targets)
    result = sj.invert(encode, head, images, wanted, targets, config=config(max_steps=300))
    assert result.reason[2] == sj.Status.NOT_FINITE and not result.success[2]
    np.testing.assert_array_equal(result.images[2], images[2])
    np.testing.assert_array_equal(np.asarray(result.success), np.arange(4) != 2)
    assert np.isfinite(result.images).all()


def test_ssim_weight_trades_likeness_for_speed():
    encode, head, images, wanted, targets = problem()
    like = sj.invert(encode, head, images, wanted, targets, config=config(ssim_weight=2.0, max_steps=200))
    free = sj.invert(encode, head, images, wanted, targets, config=config(ssim_weight=0.0))
    assert np.all(like.success) and np.all(free.success)
    assert float(jnp.mean(sj.ssim(like.images, images))) > float(jnp.mean(sj.ssim(free.images, images)))


def test_tiny_images_need_ssim_switched_off():
    images = jnp.full((1, 4, 4, 3), 0.5)
    encode = lambda x: jnp.mean(x, axis=(1, 2))  # noqa: E731
    head = sj.Head(jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    call = functools.partial(sj.invert, encode, head, images, jnp.asarray([[0.2, 0.8, 0.5]]), jnp.asarray([1]))
    with pytest.raises(ValueError, match="set ssim_weight=0"):
        call()
    assert call(config=config(ssim_weight=0.0)).success[0]


def test_other_parameters_reuse_the_compiled_loop():
    traces = []

    def counted(images, kernel):
        traces.append(images.shape)
        return linear(kernel, images)

    encode, head, images, wanted, targets = problem()
    kernel = encode.args[0]
    sj.invert(functools.partial(counted, kernel=kernel), head, images, wanted, targets, config=config())
    first = len(traces)
    other = sj.Head(head.weights * 1.5)
    sj.invert(functools.partial(counted, kernel=kernel * 2), other, images, wanted, targets, config=config())
    assert first > 0 and len(traces) == first


def test_any_function_and_any_array_type_will_do():
    encode, head, images, wanted, targets = problem()
    plain = sj.invert(lambda x: linear(encode.args[0], x), head, images, wanted, targets, config=config())
    np.testing.assert_allclose(plain.images, solved().images, atol=1e-5)
    arrays = sj.invert(
        encode, sj.Head(np.asarray(head.weights)), np.asarray(images), np.asarray(wanted), np.asarray(targets),
        config=config(),
    )  # fmt: skip
    np.testing.assert_array_equal(arrays.images, solved().images)


def test_it_can_be_called_under_jit():
    encode, head, images, wanted, targets = problem()
    compiled = jax.jit(lambda *arrays: sj.invert(encode, head, *arrays, config=config()))
    np.testing.assert_array_equal(compiled(images, wanted, targets).num_steps, solved().num_steps)


def test_a_built_model_inverts():
    model = sj.build_model("linear", num_attributes=ATTRIBUTES, num_classes=CLASSES)
    params = model.init(jax.random.key(0), (SIDE, WIDTH, 3))
    images = jnp.asarray(IMAGES[:2], jnp.float32)
    head = model.head(params)
    targets, wanted = least_likely(np.asarray(model.encode(params, images)), np.asarray(head.weights))
    wanted, targets = jnp.asarray(wanted, jnp.float32), jnp.asarray(targets)
    encode = functools.partial(model.encode, params)
    result = sj.invert(encode, head, images, wanted, targets, config=config(max_steps=200))
    np.testing.assert_array_equal(result.success, True)


def replaced(method="adam", **changes):
    names = ("encode_fn", "head", "images", "target_attributes", "targets")
    arguments = dict(zip(names, problem(), strict=True)) | {"config": config(method)} | changes
    return sj.invert(**arguments)


def narrow(images):
    return linear(problem()[0].args[0][:, :-1], images)


def whole_numbers(images):
    return jnp.zeros((len(images), ATTRIBUTES), jnp.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": jnp.full((4, SIDE, WIDTH, 3), jnp.nan)}, "images contains NaN or infinite"),
        ({"images": jnp.full((4, SIDE, WIDTH, 3), 200.0)}, "divide 8-bit values by 255"),
        ({"images": jnp.full((4, SIDE, WIDTH, 3), -0.5)}, r"rescale \(x \+ 1\) / 2"),
        ({"images": jnp.full((4, SIDE, WIDTH, 3), 1.5)}, "clip or rescale"),
        ({"images": np.zeros((4, SIDE, WIDTH, 3), np.uint8)}, "divide uint8 images by 255"),
        ({"images": jnp.zeros((SIDE, WIDTH, 3))}, "batch, height, width, channels"),
        ({"images": jnp.zeros((3, SIDE, WIDTH, 3))}, "one target for each of 3 images"),
        ({"images": jnp.zeros((4, 8, WIDTH, 3))}, "at least 11x11 for SSIM; set ssim_weight=0"),
        ({"target_attributes": jnp.zeros((4, ATTRIBUTES - 1))}, "last axis of 8"),
        ({"target_attributes": jnp.zeros(ATTRIBUTES)}, "a batch of samples"),
        ({"targets": jnp.asarray([0, 1, 2, CLASSES])}, "targets contains 5; expected class indices from 0 to 4"),
        ({"targets": jnp.asarray([0, -1, 2, 3])}, "targets contains -1"),
        ({"targets": jnp.asarray([0.0, 1.0, 2.0, 3.0])}, "expected integer class indices"),
        ({"targets": jnp.asarray([0, 1])}, "one target for each of 4 images"),
        (
            {
                "images": jnp.zeros((0, SIDE, WIDTH, 3)),
                "target_attributes": jnp.zeros((0, ATTRIBUTES)),
                "targets": jnp.zeros(0, jnp.int32),
            },
            "at least one image",
        ),
        ({"encode_fn": narrow}, "encode_fn returns shape"),
        ({"encode_fn": whole_numbers}, "encode_fn returns type int32; expected floats"),
        ({"max_steps": np.zeros(3, np.int32)}, "one budget per image"),
        ({"max_steps": np.zeros(4)}, "whole numbers of updates"),
        ({"max_steps": np.asarray([1, 2, -1, 3])}, "max_steps contains -1"),
        ({"region": np.zeros((4, 2, 2), bool)}, "one flag per pixel"),
        ({"region": np.ones((4, 12, 13))}, "True where a pixel may change"),
        ({"mutable": np.ones(ATTRIBUTES, bool), "method": "nearest"}, "does not consider single attributes"),
        ({"mutable": np.ones(ATTRIBUTES + 1, bool)}, "mutable"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replaced(**changes)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (sj.Adam, {"step_size": 0.0}, "step_size is 0.0"),
        (sj.GradientDescent, {"step_size": float("nan")}, "step_size is nan"),
        (sj.Nearest, {"refine_steps": -1}, "refine_steps is -1"),
        (InversionOptions, {"step_size": 0.0}, "step_size is 0.0"),
        (InversionOptions, {"refine_steps": -1}, "refine_steps is -1"),
        (sj.InversionConfig, {"method": "lbfgs"}, "'adam', 'gradient_descent'"),
        (sj.InversionConfig, {"max_steps": 0}, "max_steps is 0"),
        (sj.InversionConfig, {"ssim_weight": -1.0}, "ssim_weight is -1.0"),
        (sj.InversionConfig, {"margin": -0.1}, "margin is -0.1"),
        (sj.InversionConfig, {"batch_size": 0}, "batch_size is 0"),
        (sj.InversionConfig, {"encoder_dtype": "float16"}, "'same', 'bfloat16'"),
        (sj.InversionConfig, {"survive_steps": -1}, "survive_steps is -1"),
        (sj.InversionConfig, {"method": "nearest", "reaim_every": 2}, "aims anew at every step"),
        (sj.InversionConfig, {"method": sj.Nearest(), "reaim_every": 2}, "aims anew at every step"),
    ],
)
def test_bad_options_are_named(settings, options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


@pytest.mark.parametrize("name", METHODS)
def test_a_name_is_an_alias_for_the_method_with_its_default_settings(name):
    default = type(METHODS[name])()
    assert sj.InversionConfig(method=name).build_method() == InversionOptions(method=name).build_method() == default
    assert sj.InversionConfig(method=default).method_name == default.name == name
    options = InversionOptions(method=name, step_size=0.3, refine_steps=4).build_method()
    assert getattr(options, "step_size", 0.3) == 0.3 and getattr(options, "refine_steps", 4) == 4


def test_every_status_has_words():
    assert len({status.description for status in sj.Status}) == len(sj.Status)


def test_shrinking_shortens_the_change_and_keeps_the_target():
    weights = jnp.asarray([[1.0, 0.0], [0.0, 1.0]], jnp.float32)
    pixels = jnp.full((1, 12, 12, 1), 0.5, jnp.float32)

    def encode(images):  # attribute 0 is constant, attribute 1 the mean brightness: class 1 wins above 0.6
        return jnp.stack([jnp.full(len(images), 0.6, images.dtype), jnp.mean(images, axis=(1, 2, 3))], axis=-1)

    wanted, targets = jnp.asarray([[0.6, 0.9]], jnp.float32), jnp.asarray([1], jnp.int32)
    found = {
        steps: sj.invert(
            encode, sj.Head(weights), pixels, wanted, targets,
            config=config(sj.Adam(step_size=0.25), ssim_weight=0.0, shrink_steps=steps),
        )
        for steps in (0, 10)
    }  # fmt: skip
    assert found[0].success.all() and found[10].success.all()
    assert float(found[0].images.mean()) == pytest.approx(0.75, abs=1e-4)  # one step of Adam
    assert 0.6 <= float(found[10].images.mean()) <= 0.6 + 1.001 / 255  # the nearest value of 8 bits
    np.testing.assert_array_equal(found[10].images, np.round(np.asarray(found[10].images) * 255) / np.float32(255))
    assert found[10].survives_rounding.all()
    np.testing.assert_allclose(found[10].attributes, encode(found[10].images), rtol=1e-6)
