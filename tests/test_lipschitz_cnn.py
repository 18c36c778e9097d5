"""The layers enlarge nothing, the bound says so of the numbers at hand, and what rounding may do is bounded."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_tools as tools

import spectra_jax as sj
from spectra_jax.models._lipschitz import AOL, SLL, fold, lipschitz_of, space_to_channels
from spectra_jax.training import TrainConfig, make_train_step

SIDE, ATTRIBUTES, CLASSES = 32, 7, 5
SMALL = {"stem": (8,), "widths": (16, 24), "blocks": (1, 1), "features": 32, "dense_blocks": 1}
RANDOM = np.random.default_rng(0)


@functools.cache
def built(bend=0.0):
    """A small model in float64; with `bend`, its kernels, biases and weights q are far from how they were drawn."""
    model = sj.build_model("lipschitz_cnn", num_attributes=ATTRIBUTES, num_classes=CLASSES, **SMALL)
    params = model.init(jax.random.key(0), (SIDE, SIDE, 3))
    random = np.random.default_rng(int(bend * 10))
    return model, jax.tree.map(lambda leaf: np.asarray(leaf) + bend * random.normal(size=leaf.shape), params)


def images(count=3):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(count, SIDE, SIDE, 3)))


def matrix_of(function, shape):
    """The Jacobian of a function of one image at a random image, as a matrix."""
    jacobian = jax.jacobian(lambda x: function(x[None])[0])(jnp.asarray(RANDOM.normal(size=shape)))
    return jacobian.reshape(-1, math.prod(shape))


@pytest.mark.parametrize(
    "layer",
    [AOL(5, kernel_size=3), AOL(3), AOL(9), SLL(6), SLL(3, kernel_size=1), SLL(4, kernel_size=5)],
    ids=["convolution", "narrowing", "widening", "residual", "residual-matrix", "residual-wide"],
)
def test_no_layer_enlarges_anything(layer, x64):
    shape, exactly = (4, 5, 4), 1 + 1e-12  # the norm is computed with rounding
    norm = jax.jit(lambda params: jnp.linalg.norm(matrix_of(lambda x: layer.apply({"params": params}, x), shape), 2))
    first = layer.init(jax.random.key(0), jnp.zeros((1, *shape), jnp.float32))["params"]
    for _ in range(10):
        size = 10.0 ** RANDOM.uniform(-2, 2)
        params = {name: jnp.asarray(size * RANDOM.normal(size=leaf.shape)) for name, leaf in first.items()}
        params["log_weight"] /= size
        folded = fold(params)
        assert norm(folded) <= lipschitz_of(folded) * exactly <= 1 + 1e-9
        # Rescaled by too much, the bound follows the layer.
        folded["rescaling"] = 1.2 * folded["rescaling"]
        assert norm(folded) <= lipschitz_of(folded) * exactly and lipschitz_of(folded) > 1.05


def test_blocks_of_pixels_become_channels_without_loss():
    x = jnp.asarray(RANDOM.normal(size=(2, 7, 9, 3)), jnp.float32)
    y = space_to_channels(x, 4)
    assert y.shape == (2, 2, 3, 48)
    np.testing.assert_allclose(np.sort(np.abs(y[np.asarray(y) != 0]).ravel()), np.sort(np.abs(x).ravel()))
    np.testing.assert_array_equal(y[0, 0, 1, :3], x[0, 0, 4])


@pytest.mark.parametrize("bend", [0.0, 0.3, 3.0])
def test_power_iteration_never_finds_more_than_the_bound(bend, x64):
    model, params = built(bend)
    params = model.fold(jax.tree.map(jnp.asarray, params))
    bound = sj.lipschitz_bound(model, params)
    assert 0.9 < bound.value <= 1 + 1e-5 and "AOL and SLL" in bound.how
    encode = jax.jit(lambda x: model.encode(params, x[None])[0])
    for x in images():
        direction = jnp.asarray(RANDOM.normal(size=x.shape))
        for _ in range(30):
            direction = direction / jnp.linalg.norm(direction)
            ahead = jax.jvp(encode, (x,), (direction,))[1]
            norm, direction = jnp.linalg.norm(ahead), jax.vjp(encode, x)[1](ahead)[0]
        assert norm <= bound.value
    if not bend:
        assert norm > 0.2, "a fresh network must not let signals die"


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_rounding_stays_below_its_bound(bend):
    model, params = built(bend)
    with jax.enable_x64(True):
        exact = sj.certificates.in_float64(model, params)
        expected = np.asarray(model.encode(exact, images()))
        assert 0 < sj.encoder_rounding(model, exact, (SIDE, SIDE, 3)) < 1e-7
    single = model.fold(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))
    # The same numbers in both: rescalings are parts of the network that is certified.
    single = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), exact) if bend else single
    with jax.enable_x64(True):
        expected = np.asarray(model.encode(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), single), images()))
    error = np.linalg.norm(np.asarray(model.encode(single, images().astype(jnp.float32))) - expected, axis=1)
    bound = sj.encoder_rounding(model, single, (SIDE, SIDE, 3))
    assert 0 < error.max() < bound < 1


def test_storing_the_rescalings_changes_nothing():
    model, params = built()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    pictures = images().astype(jnp.float32)
    np.testing.assert_array_equal(model.encode(params, pictures), model.encode(model.fold(params), pictures))
    assert jax.tree.structure(model.fold(model.fold(params))) == jax.tree.structure(model.fold(params))


def test_the_bound_is_about_the_rescalings_that_are_stored():
    """Whoever trains on with stored rescalings leaves the network that they belong to, and is told so."""
    model, params = built()
    folded = model.fold(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))
    trained = {**folded, "bottleneck": {**folded["bottleneck"]}}
    trained["bottleneck"]["orthogonal_kernel"] = 2 * trained["bottleneck"]["orthogonal_kernel"]
    before, after = (sj.certify(model, each, images()) for each in (folded, trained))
    assert sj.lipschitz_bound(model, folded).value < 1 + 1e-5
    assert 1.99 < sj.lipschitz_bound(model, trained).value < 2.01
    np.testing.assert_allclose(after.radius, before.radius, rtol=1e-3)  # twice the distances, half the certificate


@pytest.mark.parametrize("part", ["kernel", "rescaling"])
def test_folded_parameters_are_not_trained(part):
    """Also under jit; images are differentiated as before."""
    model, params = built()
    folded = model.fold(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))
    pictures = images(1).astype(jnp.float32)
    encode = jax.jit(model.encode)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(encode(folded, x)))(pictures)).all()

    def loss(leaf):
        backbone = folded["backbone"] | {"SLL_0": folded["backbone"]["SLL_0"] | {part: leaf}}
        return jnp.sum(encode(folded | {"backbone": backbone}, pictures))

    with pytest.raises(ValueError, match="params is folded, and is being differentiated; expected parameters without"):
        jax.grad(loss)(folded["backbone"]["SLL_0"][part])


def test_rounding_grows_with_stored_rescalings_that_enlarge():
    model, params = built()
    with jax.enable_x64(True):
        folded = sj.certificates.in_float64(model, params)
        before = sj.encoder_rounding(model, folded, (SIDE, SIDE, 3))
        folded["backbone"]["SLL_0"]["rescaling"] *= 10
        # At least by what that layer makes of an image, and later layers of it.
        assert sj.encoder_rounding(model, folded, (SIDE, SIDE, 3)) > 100 * before


def test_certifying_bears_jax_s_switches():
    (model, params), pictures = built(), np.asarray(images())
    expected = sj.certify(model, params, pictures)
    with jax.transfer_guard("disallow"), jax.debug_nans(True):
        np.testing.assert_array_equal(sj.certify(model, params, pictures).radius, expected.radius)
        assert sj.encoder_rounding(model, params, (SIDE, SIDE, 3)) > 0


def test_images_of_another_size_are_named():
    model, params = built()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    message = r"images has shape \(1, 64, 64, 3\); expected the size for which the parameters of model 'lipschitz_cnn'"
    for call in (
        lambda: model.encode(params, jnp.zeros((1, 64, 64, 3))),
        lambda: sj.encoder_rounding(model, params, (64, 64, 3)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("side", [32, 50, 64, 224])
def test_any_size_will_do(side):
    model = sj.build_model("lipschitz_cnn", num_attributes=ATTRIBUTES, num_classes=CLASSES)
    shape = (side, side, 3)
    params = jax.eval_shape(functools.partial(model.init, image_shape=shape), jax.random.key(0))
    out = jax.eval_shape(model.encode, params, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert out.shape == (2, ATTRIBUTES)


def test_attributes_are_read_through_their_scale_and_offset():
    model, params = built()
    layer = {"log_scale": np.full(ATTRIBUTES, np.log(3.0)), "offset": np.arange(ATTRIBUTES, dtype=np.float32)}
    layer["log_scale"] = layer["log_scale"].astype(np.float32)
    logits = model.attribute_logits({**params, "bottleneck": layer}, jnp.ones((1, ATTRIBUTES)))
    np.testing.assert_allclose(logits, 3 + np.arange(ATTRIBUTES)[None], rtol=1e-6)


def test_what_is_certified_is_at_most_what_an_attack_needs():
    model, params = built()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    pictures = images(6).astype(jnp.float32)
    head = model.head(params)
    predicted = np.argmax(sj.head_logits(head, model.encode(params, pictures)), axis=1)
    targets = ((predicted[:, None] + np.arange(1, CLASSES)[None]) % CLASSES).astype(np.int32)
    certificate = sj.certify(model, params, pictures, targets=targets)
    anything = sj.certify(model, params, pictures)
    assert np.all(anything.radius <= certificate.radius.min(axis=1) + 1e-12) and anything.radius.max() > 0
    repeated = jnp.repeat(pictures, CLASSES - 1, axis=0)
    wanted = model.encode(params, repeated)
    encode = jax.tree_util.Partial(model.encode, model.fold(params))
    search = sj.InversionConfig("nearest", margin=1e-4, ssim_weight=0.0)
    found = sj.invert(encode, head, repeated, wanted, jnp.asarray(targets.ravel()), config=search)
    moved = np.linalg.norm(np.asarray(found.images - repeated, float).reshape(len(repeated), -1), axis=1)
    assert found.success.any()
    assert np.all(moved[found.success] >= certificate.radius.ravel()[found.success])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (8,), "blocks": (1, 1)}, r"blocks is \(1, 1\); expected a number for each of the widths \(8,\)"),
        ({"features": 0}, "features goes down to 0; expected numbers of at least 1"),
        ({"dense_blocks": -1}, "dense_blocks goes down to -1; expected numbers of at least 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sj.build_model("lipschitz_cnn", num_attributes=2, num_classes=2, **options)


def test_training_raises_what_is_certified():
    config = TrainConfig(model="lipschitz_cnn", learning_rate=1e-2, image_size=tools.SIDE, batch_size=16,
                         label_smoothing=0.0, certified_radius=0.4)  # fmt: skip
    options = {"stem": (4,), "widths": (16,), "blocks": (1,), "features": 16, "dense_blocks": 1}
    model, optimizer, state = tools.make_problem(config, num_steps=60, **options)
    data = tools.examples(64)
    step, batches = make_train_step(model, optimizer, config), tools.EndlessBatches(data, 16)

    def share(params):
        return sj.certified_accuracy(sj.certify(model, params, data.inputs), data.labels, [0.2, 0.4])

    before = share(state.params)
    for _ in range(60):
        state, metrics = step(state, next(batches))
    assert metrics["finite"]
    assert np.all(share(state.params) >= before + 0.4), (before, share(state.params))
    assert sj.lipschitz_bound(model, state.params).value <= 1 + 1e-5


def test_radii_are_not_asked_of_models_without_a_proof():
    config = TrainConfig(model="linear", image_size=tools.SIDE, certified_radius=0.5)
    model, optimizer, _ = tools.make_problem(config)
    with pytest.raises(ValueError, match=r"certified_radius is 0.5, but nothing is proven about model 'linear'"):
        make_train_step(model, optimizer, config)
