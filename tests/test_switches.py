"""Public functions and JAX's own switches: what is right without them is right, and the same, with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_inversion import METHODS

import spectra_jax as sj
from spectra_jax import metrics

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
BATCH, CLASSES, ATTRIBUTES = 4, 5, 4


def array(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


# A class without hope: its row is that of class 0, its bias lower. Answers for it are inf by their documentation.
W = array(CLASSES, ATTRIBUTES)
HEAD = sj.Head(W.at[4].set(W[0]), array(CLASSES).at[4].set(-9).at[0].set(0.1))
ATTRS, TARGETS, LABELS = array(BATCH, ATTRIBUTES), jnp.asarray([1, 4, 0, 4], jnp.int32), jnp.asarray([0, 1, 2, 3])
TRUTH = (ATTRS > 0).astype(jnp.float32)
IMAGES = jnp.asarray(RANDOM.integers(40, 210, size=(BATCH, 12, 12, 3)) / 255, jnp.float32)
CHANGE = jnp.asarray(RANDOM.uniform(0.05, 0.15, size=(BATCH - 1, 4, 6, 3)), jnp.float32)
CHANGED = IMAGES.at[1:, 2:6, 3:9].add(CHANGE)  # the first image stays: its PSNR is inf
REGION, MATRIX = jnp.zeros((BATCH, 12, 12), bool).at[:, 1:7, 1:8].set(True), array(12 * 12 * 3, ATTRIBUTES) / 20
GROUPS = jnp.asarray([0, 0, 1, 1], jnp.int32)
POINTS = array(BATCH, 3, 3) * 0.2 + 0.5
POINTS = POINTS.at[:, :, 2].set(jnp.asarray(RANDOM.integers(2, size=(BATCH, 3)), jnp.float32))  # some are hidden
REGIONS = ((0,), (1, 2))
MAPS, TRUE_MAPS = array(BATCH, 2, 4, 5), sj.region_maps(POINTS, REGIONS, height=4, width=5)


def encode(images):
    return images.reshape(len(images), -1) @ MATRIX


def pairwise(solve, **options):
    """One sample and target at a time, as a batch."""
    return lambda head, attributes, targets: jax.vmap(lambda e, j: solve(head, e, j, **options))(attributes, targets)


def total(head, attributes, truth, labels):
    return sj.total_loss(head, attributes, truth, labels, lambda_stability=0.1, lambda_sparsity=0.1)


# name -> (function, arguments); those along the batch are sharded over the mesh.
CASES = {
    "head_logits": (sj.head_logits, (HEAD, ATTRS)),
    "boundary": (pairwise(sj.boundary_perturbation, margin=0.1), (HEAD, ATTRS, TARGETS)),
    "pinv": (pairwise(sj.pinv_perturbation, margin=0.1), (HEAD, ATTRS, TARGETS)),
    "single": (pairwise(sj.single_attribute_perturbations, margin=0.1), (HEAD, ATTRS, TARGETS)),
    "projection": (pairwise(sj.projection_perturbation, margin=0.1), (HEAD, ATTRS, TARGETS)),
    "box": (pairwise(sj.box_perturbation, lower=jnp.full(ATTRIBUTES, -3.0), margin=0.1), (HEAD, ATTRS, TARGETS)),
    "sparse": (pairwise(sj.sparse_perturbation, max_changes=2, margin=0.1), (HEAD, ATTRS, TARGETS)),
    "one_hot": (pairwise(sj.one_hot_perturbation, groups=GROUPS, margin=0.1), (HEAD, ATTRS, TARGETS)),
    "best_single": (functools.partial(sj.best_single_attributes, margin=0.1), (HEAD, ATTRS)),
    "all_pairs_projection": (functools.partial(sj.all_pairs_projection, margin=0.1), (HEAD, ATTRS)),
    **{f"norms, {method}": (functools.partial(sj.all_pairs_norms, method=method, margin=0.1), (HEAD, ATTRS))
       for method in ("boundary", "pinv", "projection")},
    "nearest_target": (
        lambda head, e: sj.nearest_target(sj.all_pairs_norms(head, e, method="boundary")),
        (HEAD, ATTRS),
    ),
    "attackability": (sj.attackability, (HEAD, ATTRS)),
    "attackability, projection": (functools.partial(sj.attackability, method="projection"), (HEAD, ATTRS)),
    "attribute_loss": (sj.attribute_loss, (ATTRS, TRUTH)),
    "classification_loss": (sj.classification_loss, (ATTRS, LABELS)),
    "consistency_loss": (sj.consistency_loss, (ATTRS, TRUTH)),
    "part_loss": (lambda maps, parts: sj.part_loss(jax.nn.log_softmax(maps, axis=(2, 3)), parts), (MAPS, TRUE_MAPS)),
    "region_maps": (functools.partial(sj.region_maps, regions=REGIONS, height=4, width=5), (POINTS,)),
    "sparsity_loss": (sj.sparsity_loss, (ATTRS,)),
    "stability_loss": (sj.stability_loss, (HEAD, ATTRS)),
    "total_loss": (total, (HEAD, ATTRS, TRUTH, LABELS)),
    "gradient": (jax.jit(jax.grad(total)), (HEAD, ATTRS, TRUTH, LABELS)),
    "class_accuracy": (metrics.class_accuracy, (ATTRS, LABELS)),
    "psnr": (sj.psnr, (CHANGED, IMAGES)),
    "ssim": (sj.ssim, (CHANGED, IMAGES)),
    "image_distances": (sj.image_distances, (CHANGED, IMAGES)),
    "frequency_split": (sj.frequency_split, (CHANGED, IMAGES)),
    "class_change": (sj.class_change, (ATTRS, TRUTH, LABELS)),
    "attribute_selectivity": (sj.attribute_selectivity, (ATTRS, TRUTH)),
    "noise_ratio": (sj.perturbation_noise_ratio, (CHANGED - IMAGES, ATTRS)),
    "reconstruction_loss": (sj.reconstruction_loss, (CHANGED, IMAGES)),
    "energy_lift": (sj.energy_lift, (CHANGED, IMAGES, REGION)),
    "pointing_hit": (sj.pointing_hit, (CHANGED, IMAGES, REGION)),
    "activation_map": (lambda images: sj.activation_map(lambda x: jnp.tanh(encode(x)), images, 1, top_k=9), (IMAGES,)),
    "causal_split": (
        lambda images, reference, *rest: sj.causal_split(encode, HEAD, images, reference, *rest),
        (CHANGED, IMAGES, REGION, LABELS, LABELS),
    ),
}  # fmt: skip
SWITCHES = {
    "jax_debug_nans": lambda: jax.debug_nans(True),
    "jax_debug_infs": lambda: jax.debug_infs(True),
    "jax_transfer_guard": lambda: jax.transfer_guard("disallow"),
    "standard promotion": lambda: jax.numpy_dtype_promotion("standard"),  # the other tests are strict
}


@pytest.fixture(scope="module")
def expected():
    """What each case gives without switches, made once."""
    return functools.cache(lambda name: jax.tree.map(np.asarray, CASES[name][0](*CASES[name][1])))


def same(found, wanted, **tolerance):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, **tolerance)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", CASES)
def test_a_switch_changes_nothing(name, switch, expected):
    function, arguments = CASES[name]
    with SWITCHES[switch]():
        found = jax.block_until_ready(function(*arguments))
    same(found, expected(name), rtol=1e-6)


def test_the_cases_have_infinite_answers(expected):
    assert np.isinf(expected("projection").delta).any() and np.isinf(expected("psnr")).any()
    assert np.isinf(expected("norms, projection")).any()


def on_mesh(arguments):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    assert mesh.axis_types == (AxisType.Explicit,)

    def place(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data")))

    return [jax.device_put(each, NamedSharding(mesh, PartitionSpec())) if isinstance(each, sj.Head) else place(each)
            for each in arguments]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_batch_sharded_over_a_mesh_with_explicit_axes(name, expected):
    function, arguments = CASES[name]
    found = jax.jit(function)(*on_mesh(arguments))
    same(found, expected(name), rtol=1e-4, atol=1e-5)
    for leaf in jax.tree.leaves(found):
        if leaf.ndim and len(leaf) == BATCH and name != "gradient":
            assert leaf.sharding.spec[0] == "data"  # the answers lie where their samples do


@pytest.mark.parametrize("method", METHODS)
def test_inversion_passes_every_switch(method):
    config = sj.InversionConfig(method=method, max_steps=4, survive_steps=2, shrink_steps=2)
    goals = encode(IMAGES).at[3].set(jnp.inf)  # the last one is infeasible

    def run():
        return sj.invert(encode, HEAD, IMAGES, goals, LABELS, config=config)

    wanted = jax.tree.map(np.asarray, run())
    assert wanted.reason[3] == sj.Status.INFEASIBLE
    for switch in ("jax_debug_nans", "jax_debug_infs", "jax_transfer_guard"):
        with SWITCHES[switch]():
            same(run(), wanted, rtol=1e-6)
