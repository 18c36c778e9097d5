"""Every architecture: shapes, exact parameter counts, transforms, independence of rows, errors, and that it learns."""

import dataclasses
from functools import cache, partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectra_jax.models import Model, build_model
from spectra_jax.models._layers import convolve_depthwise, group_norm, pool_to_grid

ATTRIBUTES, CLASSES, SIDE = 7, 5, 32
NAMES = ("linear", "cnn", "deep_cnn", "resnet", "efficientnet_lite0")
FROM_SCRATCH = NAMES[:-1]


@cache
def built(name: str, **options):
    """A model with fresh parameters for 32 px images and its jitted encoder; compiled once for the whole file."""
    model = build_model(name, num_attributes=ATTRIBUTES, num_classes=CLASSES, **options)
    params = model.init(jax.random.key(0), (SIDE, SIDE, 3))
    return model, params, jax.jit(model.encode)


@cache
def images(count: int = 4, seed: int = 1) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (count, SIDE, SIDE, 3))


def count_parameters(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", NAMES)
def test_interface_shapes_and_dtypes(name):
    model, params, encode = built(name)
    assert set(params) == {"backbone", "bottleneck", "head"}
    assert isinstance(params["backbone"], dict)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert (model.name, model.num_attributes, model.num_classes) == (name, ATTRIBUTES, CLASSES)
    attributes = encode(params, images())
    assert attributes.shape == (4, ATTRIBUTES)
    assert attributes.dtype == jnp.float32
    assert np.isfinite(attributes).all()
    assert np.std(attributes) > 1e-3, "a fresh network must not map all images to one point"
    head = model.head(params)
    assert head.weights.shape == (CLASSES, ATTRIBUTES)
    assert head.bias is None
    assert model.frozen_backbone == (name == "efficientnet_lite0")


# Backbone, bottleneck and head. ResNet: torchvision's published totals less the classifier (11,689,512 - 513,000;
# 21,797,672 - 513,000; 25,557,032 - 2,049,000). EfficientNet-Lite0: 4,652,008 - 1,281,000 plus 42,016 statistics.
@pytest.mark.parametrize(
    ("name", "options", "side", "expected"),
    [
        ("linear", {}, 32, (0, 3072 * 7 + 7, 35)),
        ("linear", {"head_bias": True}, 32, (0, 3072 * 7 + 7, 35 + 5)),
        ("cnn", {}, 64, (160_752, 2048 * 7 + 7, 35)),
        ("deep_cnn", {}, 64, (458_640, 2048 * 7 + 7, 35)),
        ("resnet", {}, 64, (11_176_512, 512 * 7 + 7, 35)),
        ("resnet", {"depth": 34}, 64, (21_284_672, 512 * 7 + 7, 35)),
        ("resnet", {"depth": 50}, 64, (23_508_032, 2048 * 7 + 7, 35)),
        ("resnet", {"stem": "small"}, 64, (11_176_512 - 9408 + 1728, 512 * 7 + 7, 35)),
        ("resnet", {"norm": "frozen_batch"}, 64, (11_176_512 + 9_600, 512 * 7 + 7, 35)),
        ("lipschitz_cnn", {}, 64, (2_525_504, 512 * 7 + 4 * 7, 35)),
        ("efficientnet_lite0", {}, 224, (3_371_008 + 42_016, 1280 * 7 + 7 + 2 * 1280, 35)),
    ],
)
def test_exact_parameter_counts(name, options, side, expected):
    model = build_model(name, num_attributes=ATTRIBUTES, num_classes=CLASSES, **options)
    params = jax.eval_shape(partial(model.init, image_shape=(side, side, 3)), jax.random.key(0))
    assert tuple(count_parameters(params[part]) for part in ("backbone", "bottleneck", "head")) == expected


def test_init_is_a_function_of_the_key():
    model, params, _ = built("cnn")
    again = model.init(jax.random.key(0), (SIDE, SIDE, 3))
    other = model.init(jax.random.key(1), (SIDE, SIDE, 3))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernel = params["backbone"]["ConvGroupNorm_2"]["kernel"]
    assert not np.array_equal(kernel, other["backbone"]["ConvGroupNorm_2"]["kernel"])
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 48)), rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent(name):
    """Padding rows cannot change the others: neither normalisation nor anything else looks across the batch."""
    _, params, encode = built(name)
    padded = images().at[2:].set(0)
    np.testing.assert_array_equal(encode(params, images())[:2], encode(params, padded)[:2])


@pytest.mark.parametrize("name", ["linear", "cnn", "deep_cnn"])  # the others compile for long; parity tests cover them
def test_encode_is_bottleneck_of_features(name):
    model, params, encode = built(name)
    features = jax.jit(model.features)(params, images())
    assert features.shape == (4, params["bottleneck"]["kernel"].shape[0])
    np.testing.assert_allclose(model.bottleneck(params, features), encode(params, images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cnn", "deep_cnn", "resnet"])
def test_vmap_over_images_equals_the_batch(name):
    model, params, encode = built(name)
    one_by_one = jax.jit(jax.vmap(lambda image: model.encode(params, image[None])[0]))(images())
    np.testing.assert_allclose(one_by_one, encode(params, images()), rtol=1e-4, atol=1e-5)


def test_vmap_over_parameters_gives_an_ensemble():
    model, _, _ = built("linear")
    params = jax.vmap(partial(model.init, image_shape=(SIDE, SIDE, 3)))(jax.random.split(jax.random.key(0), 3))
    assert jax.vmap(model.encode, in_axes=(0, None))(params, images()).shape == (3, 4, ATTRIBUTES)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_they_should(name):
    model, params, _ = built(name)
    gradients, input_gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(model.encode(p, x) ** 2), argnums=(0, 1)))(
        params, images()
    )
    assert np.isfinite(input_gradient).all()
    assert (np.abs(input_gradient).max(axis=(1, 2, 3)) > 0).all()
    trainable = model.trainable_mask(params)
    for path, gradient in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        expected = trainable
        for entry in path:
            expected = expected[entry.key]
        moves = bool(np.any(gradient != 0))
        if path[0].key != "head":  # encode does not use the head
            assert moves == expected, jax.tree_util.keystr(path)


def test_float64_gradient_against_finite_differences(x64):
    model, params, _ = built("cnn")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    pixels = images(1).astype(jnp.float64)
    direction = jax.random.normal(jax.random.key(3), pixels.shape, jnp.float64)

    @jax.jit
    def score(x):
        return jnp.sum(jnp.sin(model.encode(params, x)))

    exact = jnp.vdot(jax.jit(jax.grad(score))(pixels), direction)
    step = 1e-6
    numeric = (score(pixels + step * direction) - score(pixels - step * direction)) / (2 * step)
    assert exact.dtype == jnp.float64
    np.testing.assert_allclose(exact, numeric, rtol=1e-5)
    np.testing.assert_allclose(jax.jvp(score, (pixels,), (direction,))[1], exact, rtol=1e-8)


def test_images_take_the_dtype_of_the_parameters():
    _, params, encode = built("cnn")
    half = images().astype(jnp.bfloat16)
    result = encode(params, half)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, encode(params, half.astype(jnp.float32)))


def test_group_norm_against_numpy():
    x = np.random.default_rng(0).normal(1000.0, 1.0, (2, 4, 5, 16)).astype(np.float32)  # an offset breaks E[x^2]-E[x]^2
    scale, bias = np.linspace(0.5, 2, 16, dtype=np.float32), np.linspace(-1, 1, 16, dtype=np.float32)
    grouped = x.astype(np.float64).reshape(2, 20, 8, 2)
    expected = (grouped - grouped.mean((1, 3), keepdims=True)) / grouped.std((1, 3), keepdims=True)
    result = group_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), 8)
    np.testing.assert_allclose(result, expected.reshape(x.shape) * scale + bias, atol=2e-3)


def test_pooling_keeps_averages_at_any_size():
    x = jax.random.normal(jax.random.key(0), (2, 7, 10, 3))
    np.testing.assert_allclose(pool_to_grid(x, 1), x.mean((1, 2)), atol=1e-6)
    even = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    blocks = even.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(pool_to_grid(even, 4), blocks.reshape(2, -1), atol=1e-6)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolution_equals_the_grouped_one(size, stride):
    x = jax.random.normal(jax.random.key(0), (2, 14, 15, 6))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 6))
    numbers = ("NHWC", "HWIO", "NHWC")
    for padding in ("SAME", ((1, 2), (0, 3))):
        expected = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=6
        )
        np.testing.assert_allclose(convolve_depthwise(x, kernel, stride, padding), expected, atol=1e-5)


@pytest.mark.parametrize("side", [(32, 32), (64, 64), (40, 52)])
def test_convolutional_models_accept_other_image_sizes(side):
    model, params, encode = built("cnn")
    assert encode(params, jnp.full((1, *side, 3), 0.5)).shape == (1, ATTRIBUTES)
    assert model.image_size == 64


def test_the_cnn_keeps_where_a_colour_is():
    """The same red square in two corners must give different features: attributes ask for colour at a place."""
    model, params, _ = built("cnn")
    pair = jnp.full((2, SIDE, SIDE, 3), 0.5).at[0, 2:10, 2:10, 0].set(1.0).at[1, 22:30, 22:30, 0].set(1.0)
    first, second = model.features(params, pair)
    assert np.linalg.norm(first - second) > 0.2 * np.linalg.norm(first)


def test_dropout_only_with_a_key():
    model, params, _ = built("linear")
    model = dataclasses.replace(model, dropout_rate=0.5)
    features = jnp.ones((200, 3072))
    clean = model.bottleneck(params, features)
    np.testing.assert_array_equal(clean, model.bottleneck(params, features))
    dropped = model.bottleneck(params, features, key=jax.random.key(0))
    assert not np.array_equal(clean, dropped)
    np.testing.assert_array_equal(dropped, model.bottleneck(params, features, key=jax.random.key(0)))
    np.testing.assert_allclose(dropped.mean(axis=0), clean[0], atol=0.25)  # unbiased: std 0.6 / sqrt(200) a column
    plain, plain_params, _ = built("cnn")
    key = jax.random.key(0)
    np.testing.assert_array_equal(plain.encode(plain_params, images(), key=key), plain.encode(plain_params, images()))


def test_feature_statistics_standardise_and_are_not_trained():
    model = build_model("efficientnet_lite0", num_attributes=2, num_classes=2, dropout_rate=0.0)
    params = built("efficientnet_lite0")[1]
    params = {**params, "bottleneck": {**params["bottleneck"], "kernel": jnp.eye(1280, 2), "bias": jnp.zeros(2)}}
    mean, std = np.full(1280, 3.0, np.float32), np.full(1280, 2.0, np.float32)
    std[1] = 0
    ready = model.with_feature_statistics(params, mean, std)
    np.testing.assert_array_equal(params["bottleneck"]["feature_std"], np.ones(1280))  # the given tree is untouched
    assert jax.tree.structure(ready) == jax.tree.structure(params)
    features = jnp.full((1, 1280), 7.0)
    np.testing.assert_allclose(model.bottleneck(ready, features), [[2.0, 4.0]])  # (7 - 3) / 2; a constant is centred
    mask = model.trainable_mask(ready)
    assert mask["bottleneck"] == {"kernel": True, "bias": True, "feature_mean": False, "feature_std": False}
    assert mask["head"] == {"weights": True}
    assert not any(jax.tree.leaves(mask["backbone"]))
    with pytest.raises(ValueError, match=r"shape \(1280,\)"):
        model.with_feature_statistics(params, mean[:3], std)


def test_head_bias():
    model, params, _ = built("linear", head_bias=True)
    np.testing.assert_array_equal(model.head(params).bias, np.zeros(CLASSES))


def test_model_is_hashable_and_static():
    model, params, encode = built("cnn")
    twin = build_model("cnn", num_attributes=ATTRIBUTES, num_classes=CLASSES, widths=[16, 48, 96, 128])
    assert hash(model) == hash(twin)
    assert model == twin

    @partial(jax.jit, static_argnums=0)
    def logits(model: Model, params, x):
        return model.encode(params, x) @ model.head(params).weights.T

    expected = encode(params, images()) @ params["head"]["weights"].T
    np.testing.assert_allclose(logits(model, params, images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_overfits_sixteen_images(name):
    model, params, _ = built(name)
    pixels = images(16, seed=5)
    attributes = jax.random.bernoulli(jax.random.key(6), 0.5, (16, ATTRIBUTES)).astype(jnp.float32)
    labels = jnp.arange(16) % CLASSES
    optimizer = optax.adam(1e-3)

    def loss(params):
        scores = model.encode(params, pixels)
        logits = scores @ model.head(params).weights.T
        attribute_loss = optax.sigmoid_binary_cross_entropy(scores, attributes).mean()
        return attribute_loss + optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction raises a float to an integer step
            updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    losses = []
    for _ in range(15):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.45 * losses[0], losses


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "unknown model 'vgg'.*linear, cnn, deep_cnn, resnet, efficientnet_lite0"),
        ("cnn", {"depth": 18}, "unknown option depth for model 'cnn'.*head_bias, widths, grid, dropout_rate"),
        ("cnn", {"widths": (16, 20, 96, 128)}, "multiples of 8"),
        ("cnn", {"widths": (16, 48, 96)}, "4 widths"),
        ("deep_cnn", {"depths": (1,)}, "equally long"),
        ("resnet", {"depth": 101}, "unknown depth 101.*18, 34, 50"),
        ("resnet", {"norm": "batch"}, "unknown norm 'batch'.*frozen_batch"),
        ("resnet", {"stem": "tiny"}, "unknown stem"),
        ("cnn", {"dropout_rate": 1.0}, r"dropout_rate must lie in \[0, 1\)"),
    ],
)
def test_build_errors_name_the_choices(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, num_attributes=3, num_classes=2, **options)


@pytest.mark.parametrize(("attributes", "classes"), [(0, 2), (3, 1), (2.0, 2), (True, 2)])
def test_sizes_are_checked(attributes, classes):
    with pytest.raises(ValueError, match="must be an integer >="):
        build_model("linear", num_attributes=attributes, num_classes=classes)


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("cnn", jnp.zeros((32, 32, 3)), r"\(b, h, w, 3\).*got \(32, 32, 3\)"),
        ("cnn", jnp.zeros((1, 3, 32, 32)), r"NHWC.*got \(1, 3, 32, 32\)"),
        ("cnn", jnp.zeros((1, 32, 32, 1)), r"got \(1, 32, 32, 1\)"),
        ("cnn", jnp.zeros((1, 32, 32, 3), jnp.uint8), "uint8; divide 8-bit pixels by 255"),
        ("cnn", jnp.zeros((1, 31, 64, 3)), "at least 32 x 32 pixels, got 31 x 64"),
        ("resnet", jnp.zeros((1, 16, 16, 3)), "at least 32 x 32"),
        ("linear", jnp.zeros((1, 16, 16, 3)), r"features of shape \(b, 3072\), got \(1, 768\).*size"),
    ],
)
def test_image_errors_say_what_to_do(name, pixels, message):
    model, params, _ = built(name)
    with pytest.raises(ValueError, match=message):
        model.encode(params, pixels)


def test_models_without_a_weight_format_say_so(tmp_path):
    model, params, _ = built("resnet")
    with pytest.raises(ValueError, match="norm='frozen_batch'"):
        model.load_pretrained(params, tmp_path / "absent.safetensors")


def test_damaged_weights_are_named(tmp_path):
    model = build_model("efficientnet_lite0", num_attributes=3, num_classes=2)
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"damaged\.safetensors is not a \.safetensors file, or is damaged"):
        model.load_pretrained({}, tmp_path / "damaged.safetensors")


def consumers(jaxpr):
    """The slices with strides of a program, and the primitives that take their results, calls included."""
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from consumers(inner)
        if equation.primitive.name == "slice" and any(stride > 1 for stride in equation.params["strides"] or ()):
            (result,) = equation.outvars
            yield {other.primitive.name for other in jaxpr.eqns if result in other.invars}


def test_no_strided_slice_goes_into_a_product():
    """XLA aborts where it fuses the two for a GPU (openxla/xla#47381), and no test here sees a GPU."""
    model, params, _ = built("resnet")
    found = list(consumers(jax.make_jaxpr(model.encode)(params, images()).jaxpr))
    assert len(found) == 3  # the shortcuts between stages
    assert all(taken == {"optimization_barrier"} for taken in found)
