"""Certificates: never more than the oracle's distance, tight where they can be, nothing where nothing is proven."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import region_distances

import spectra_jax as sj

RANDOM = np.random.default_rng(0)
CLASSES, ATTRIBUTES, PIXELS, ROWS = 12, 9, 40, 7
EVERY = np.tile(np.arange(CLASSES), (ROWS, 1))


def head_of(dtype=np.float64, *, bias=True, twins=0.0):
    """A random head; with `twins` the first two classes have rows that far apart."""
    weights = RANDOM.normal(size=(CLASSES, ATTRIBUTES))
    if twins:
        weights[1] = weights[0] + twins * RANDOM.normal(size=ATTRIBUTES)
    return sj.Head(np.asarray(weights, dtype), np.asarray(RANDOM.normal(size=CLASSES), dtype) if bias else None)


def samples(dtype=np.float64):
    return np.asarray(RANDOM.normal(size=(ROWS, ATTRIBUTES)), dtype)


def test_a_linear_encoder_is_certified_to_the_optimum_over_its_images():
    """The nearest image of a class behind x -> A x, A A^T = L^2 I, is the pseudo-inverse image of the projection."""
    with jax.enable_x64(True):
        frame = 2.5 * np.linalg.qr(RANDOM.normal(size=(PIXELS, ATTRIBUTES)))[0].T
        images, head = RANDOM.normal(size=(ROWS, PIXELS)), head_of()
        attributes = images @ frame.T
        in_pixels = sj.Head(head.weights @ frame, head.bias)
        found = sj.certified_radius(head, attributes, lipschitz=2.5, targets=EVERY)
        expected = region_distances(in_pixels, images)
        np.testing.assert_allclose(found.radius, expected, rtol=1e-6, atol=1e-12)
        untargeted = sj.certified_radius(head, attributes, lipschitz=2.5)
        others = np.where(untargeted.answer[:, None] == EVERY, np.inf, expected)
        np.testing.assert_allclose(untargeted.radius, others.min(axis=1), rtol=1e-6)
    assert found.confidence == untargeted.confidence == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("twins", [0.0, 1e-1, 1e-4, 1e-7])
@pytest.mark.parametrize("bias", [True, False])
def test_no_radius_is_longer_than_the_oracle_s(dtype, twins, bias):
    with jax.enable_x64(dtype == np.float64):
        head, attributes = head_of(dtype, twins=twins, bias=bias), samples(dtype)
        found = sj.certified_radius(head, attributes, lipschitz=1.0, targets=EVERY)
        untargeted = sj.certified_radius(head, attributes, lipschitz=1.0)
    true = region_distances(head, attributes)
    assert np.all(found.radius <= true * (1 + 1e-12))
    others = np.where(untargeted.answer[:, None] == EVERY, np.inf, true)
    assert np.all(untargeted.radius <= others.min(axis=1) * (1 + 1e-12))
    # What is taken off for the classifier's own rounding grows as the twins come together.
    lost = {np.float32: 3e-3, np.float64: 1e-9}[dtype]
    usual = np.isfinite(true) & (true > 0) & (twins in (0.0, 1e-1))
    assert np.all(found.radius[usual] >= true[usual] * (1 - lost))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_classifier_s_own_rounding_never_crosses_a_certificate(dtype):
    """Attributes moved by almost the certified distance, straight at the nearest twin, keep their computed class."""
    with jax.enable_x64(dtype == np.float64):
        head, attributes = head_of(dtype, twins=1e-3), samples(dtype)
        found = sj.certified_radius(head, attributes, lipschitz=1.0)
        for row in range(ROWS):
            own = found.answer[row]
            normals = np.asarray(head.weights, float) - np.asarray(head.weights[own], float)
            normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
            moved = attributes[row] + found.radius[row] * (1 - 1e-6) * normals
            logits = np.asarray(sj.head_logits(head, jnp.asarray(np.asarray(moved, dtype))))
            assert np.all(np.argmax(logits, axis=1) == own)


def test_what_nothing_is_proven_of():
    weights = np.eye(3, dtype=np.float32)
    tie = np.array([[1.0, 1.0, 0.0], [np.nan, 0.0, 0.0], [np.inf, 0.0, 0.0], [2.0, 1.0, 0.0]], np.float32)
    found = sj.certified_radius(sj.Head(weights), tie, lipschitz=1.0)
    assert list(found.radius[:3]) == [0, 0, 0] and 0.706 < found.radius[3] < np.sqrt(0.5)
    targets = sj.certified_radius(sj.Head(weights), tie, lipschitz=1.0, targets=np.array([1, 1, 1, 0]))
    assert list(targets.radius) == [0, 0, 0, 0]
    twins = sj.Head(np.array([[1.0, 0.0], [1.0, 0.0]], np.float32))
    assert sj.certified_radius(twins, np.array([[3.0, 0.0]], np.float32), lipschitz=1.0).radius == 0


def test_masked_classes_are_never_reached():
    head = sj.Head(np.eye(3, dtype=np.float32), np.array([0.0, -np.inf, 0.0], np.float32))
    attributes = np.array([[2.0, 1.9, 0.0]], np.float32)
    assert sj.certified_radius(head, attributes, lipschitz=1.0, targets=np.array([1])).radius == np.inf
    np.testing.assert_allclose(sj.certified_radius(head, attributes, lipschitz=1.0).radius, np.sqrt(2), rtol=1e-5)


def test_rounding_is_taken_off_twice_and_the_constant_divides():
    with jax.enable_x64(True):
        head, attributes = head_of(), samples()
        plain = sj.certified_radius(head, attributes, lipschitz=1.0).radius
        rounding = np.linspace(0, 0.1, ROWS)
        given = sj.certified_radius(head, attributes, lipschitz=4.0, rounding=rounding).radius
    np.testing.assert_allclose(given, np.maximum(plain - 2 * rounding, 0) / 4, rtol=1e-12)


def test_an_attribute_s_radius_is_its_distance_to_the_threshold():
    attributes = np.array([[0.5, -0.25, 0.1]])
    found = sj.certified_attribute_radius(
        attributes, lipschitz=2.0, scale=np.array([1.0, 10.0, 4.0]), offset=np.array([0.0, 1.0, -0.4]), rounding=0.01
    )
    np.testing.assert_allclose(found.radius, [[(0.5 - 0.02) / 2, (0.15 - 0.02) / 2, 0]], atol=1e-12)
    assert found.answer.tolist() == [[True, False, False]]
    assert sj.certified_attribute_radius(np.array([[np.nan]]), lipschitz=1.0).radius == 0


def test_certified_accuracy_counts_correct_answers_beyond_the_radius():
    certificate = sj.Certificate(np.array([0.5, 1.0, 2.0, np.inf]), np.array([0, 1, 2, 3]), 1.0, "")
    shares = sj.certified_accuracy(certificate, np.array([0, 1, 0, 3]), [0.0, 0.5, 1.0, 5.0])
    assert shares.tolist() == [0.75, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e170])
def test_a_radius_does_not_depend_on_the_size_of_the_weights(size):
    """Squares of such weights are 0 or inf in float64."""
    weights, attributes = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.2]])
    found = sj.certified_radius(sj.Head(size * weights), attributes, lipschitz=1.0)
    targets = sj.certified_radius(sj.Head(size * weights), attributes, lipschitz=1.0, targets=np.array([1]))
    distance = 0.8 / np.sqrt(2)
    assert distance * (1 - 1e-5) < found.radius < distance and 0 < targets.radius <= distance


@pytest.mark.parametrize(("weights", "attributes"), [(1e-30, 1e-20), (1e25, 1e20)])
def test_nothing_is_certified_where_the_classifier_s_logits_leave_its_type(weights, attributes):
    head = sj.Head((weights * np.eye(2)).astype(np.float32))
    rows = np.array([[1.0, 0.2]], np.float32) * np.float32(attributes)
    assert len(np.unique(sj.head_logits(head, jnp.asarray(rows)))) == 1  # 0, or inf
    assert sj.certified_radius(head, rows, lipschitz=1.0).radius == 0
    assert sj.certified_radius(head, rows, lipschitz=1.0, targets=np.array([1])).radius == 0


def test_twins_apart_by_their_bias_alone_are_certified_as_far_as_logits_hold_it():
    head = sj.Head(np.ones((2, 2), np.float32), np.array([0, 0.1], np.float32))
    radius = sj.certified_radius(head, np.array([[1.0, 0.2]], np.float32), lipschitz=1.0).radius[0]
    assert 1e3 < radius < 1e8
    far = jnp.full((1, 2), 1e8, jnp.float32)  # where 0.1 is lost
    assert np.argmax(sj.head_logits(head, far)) == 0


def test_no_samples_are_certified_too():
    head, none = head_of(), np.zeros((0, ATTRIBUTES))
    for shape in ((0,), (0, 3)):
        assert sj.certified_radius(head, none, lipschitz=1.0, targets=np.zeros(shape, int)).radius.shape == shape


def test_arrays_of_an_explicit_mesh_are_read():
    rows, head = samples(np.float32), head_of(np.float32)
    mesh = jax.make_mesh((1,), ("data",))
    placed = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    for targets in (None, EVERY):
        expected = sj.certified_radius(head, rows, lipschitz=1.0, targets=targets)
        found = sj.certified_radius(head, placed, lipschitz=1.0, targets=targets)
        np.testing.assert_array_equal(found.radius, expected.radius)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lipschitz": 0.0}, "lipschitz is 0.0; expected a number between 0 and inf"),
        ({"lipschitz": float("nan")}, "lipschitz is nan; expected a number between 0 and inf"),
        ({"lipschitz": None}, "lipschitz is None; expected a number between 0 and inf"),
        ({"rounding": -1.0}, "rounding is -1.0; expected one number >= 0"),
        ({"rounding": np.zeros(3)}, rf"rounding is .*; expected one number >= 0, or {ROWS} of them"),
        ({"targets": np.zeros(3, int)}, rf"targets has shape \(3,\); expected \({ROWS},\) or \({ROWS}, t\)"),
        ({"targets": np.full(ROWS, CLASSES)}, f"targets contains {CLASSES}; expected class indices"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        sj.certified_radius(head_of(np.float32), samples(np.float32), **({"lipschitz": 1.0} | change))


def test_a_proof_is_no_function_to_be_traced():
    with pytest.raises(ValueError, match="is traced; expected numbers, because a proof is about numbers: call"):
        jax.jit(lambda rows: sj.certified_radius(head_of(np.float32), rows, lipschitz=1.0).radius)(samples(np.float32))


def test_a_model_without_a_proof_is_refused():
    model = sj.build_model("cnn", num_attributes=ATTRIBUTES, num_classes=CLASSES)
    message = "model 'cnn' has no proven Lipschitz bound; expected .*lipschitz_cnn.*smoothed_certificate"
    for call in (
        lambda: sj.lipschitz_bound(model, {}),
        lambda: sj.encoder_rounding(model, {}, (64, 64, 3)),
        lambda: sj.certify(model, {}, np.zeros((1, 64, 64, 3))),
    ):
        with pytest.raises(ValueError, match=message):
            call()
