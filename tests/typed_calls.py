"""Calls every public function with its jaxtyping annotations enforced by beartype; run as a script by test_annotations.

A script of its own, because the annotations can only be enforced while the library is first imported.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import TypeCheckError, install_import_hook

CHECKED = (
    "attackability",
    "checks",
    "image_metrics",
    "inversion",
    "localization",
    "losses",
    "metrics",
    "models",
    "perturbations",
    "saliency",
    "similarity",
    "smoothing",
)

with install_import_hook([f"spectra_jax.{name}" for name in CHECKED], "beartype.beartype"):
    import spectra_jax as sj
    from spectra_jax import metrics

    for name in sj.__all__:  # they are imported at their first use
        getattr(sj, name)

RANDOM = np.random.default_rng(0)


def array(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def traced(function, *arguments, **options) -> None:
    """Traces a call without compiling it: all that annotations speak of, shapes and types, is known then."""
    jax.eval_shape(functools.partial(function, **options), *arguments)


def solve_one_and_many(head: sj.Head, attributes: jax.Array) -> None:
    single = {
        "boundary": sj.boundary_perturbation,
        "pinv": sj.pinv_perturbation,
        "single": sj.single_attribute_perturbations,
        "projection": sj.projection_perturbation,
    }
    targets = jnp.asarray([0, 1, 2], jnp.int32)
    for solve in single.values():
        traced(jax.vmap(functools.partial(solve, margin=0.1), (None, 0, 0)), head, attributes, targets)
    sj.boundary_perturbation(head, attributes[0], 2)  # a Python integer
    mutable = jnp.arange(attributes.shape[1]) > 1
    for method in ("boundary", "pinv", "projection"):
        traced(sj.all_pairs_norms, head, attributes, method=method)
    sj.nearest_target(sj.all_pairs_norms(head, attributes, method="boundary"), allowed=jnp.ones((3, 4), bool))
    traced(sj.nearest_class, head, attributes)
    traced(sj.all_pairs_projection, head, attributes, margin=0.1, mutable=mutable)
    traced(lambda e, m: sj.all_pairs_norms(head, e, margin=m, mutable=mutable), attributes, jnp.float32(0.1))
    traced(sj.best_single_attributes, head, attributes)
    units = jnp.ones(attributes.shape[1])
    traced(sj.best_single_attributes, head, attributes, margin=0.1, scale=units, mutable=mutable)
    # The head as a constant, so that what is checked of concrete values is called with them.
    pairwise = {
        sj.projection_perturbation: {"margin": 0.1, "mutable": mutable},
        sj.box_perturbation: {"lower": attributes[0] - units, "margin": 0.1, "mutable": mutable},
        sj.sparse_perturbation: {"max_changes": 1, "mutable": mutable},
        sj.one_hot_perturbation: {"groups": jnp.asarray([0, 0, 1, 1, -1]), "threshold": 0.1},
    }
    for solve, settings in pairwise.items():
        traced(lambda e, solve=solve, settings=settings: solve(head, e, 1, **settings), attributes[0])
    sj.head_logits(head, attributes)
    sj.head_logits(head, attributes[0])
    values = sj.attackability(head, attributes)
    sj.attackability_summary(values, num_resamples=10)
    sj.attackability_summary(np.asarray(values), num_resamples=10)


def losses(head: sj.Head, attributes: jax.Array) -> None:
    labels, truth = jnp.asarray([0, 1, 2], jnp.int32), (attributes > 0).astype(attributes.dtype)
    valid = jnp.asarray([True, True, False])
    images = jnp.zeros((3, 12, 13, 3))
    total = functools.partial(
        sj.total_loss,
        lambda_stability=0.1,
        lambda_sparsity=0.1,
        lambda_reconstruction=0.1,
        lambda_consistency=0.1,
        attacked_logits=array(3, 4),
        images=images,
        reconstructions=images + 0.1,
        positive_weight=jnp.ones(attributes.shape[1]),
        valid=valid,
    )
    traced(jax.grad(lambda h, e: total(h, e, truth, labels)), head, attributes)
    sj.stability_loss(head, attributes, logits=sj.head_logits(head, attributes), detach_logits=True)


def images_and_metrics(head: sj.Head) -> None:
    model = sj.build_model("linear", num_attributes=head.weights.shape[1], num_classes=head.weights.shape[0])
    params = model.init(jax.random.key(0), (12, 13, 3))
    images = jnp.asarray(RANDOM.uniform(size=(3, 12, 13, 3)), jnp.float32)
    attributes = model.encode(params, images)
    encode = functools.partial(model.encode, params)
    result = sj.invert(
        encode,
        head,
        images,
        attributes + 0.1,
        jnp.asarray([0, 1, 2], jnp.int32),
        config=sj.InversionConfig(max_steps=2),
    )
    sj.activation_map(encode, images, 0, top_k=5)
    traced(lambda f: sj.activation_map(encode, images, f), jnp.int32(0))
    sj.ssim(result.images, images)
    sj.psnr(result.images, images)
    sj.image_distances(result.images, images, threshold=0.5)
    sj.frequency_split(result.images, images, cutoff=0.25)
    logits = sj.head_logits(head, attributes)
    traced(sj.class_change, logits, logits, jnp.asarray([0, 1, 2], jnp.int32))
    spread = jnp.std(attributes, axis=0)
    sj.attribute_selectivity(attributes, attributes, scale=spread, chosen=attributes > 0)
    sj.perturbation_noise_ratio(result.images - images, result.attributes - attributes)
    sj.attack_success_rate(result.success, attempted=result.success)
    where_it_changed(encode, head, images, result.images)
    noise = {"key": jax.random.key(0), "sigma": 0.1, "num_samples": 10}
    sj.smoothed_certificate(encode, head, images, targets=jnp.asarray([0, 1, 2], jnp.int32), **noise)
    sj.smoothed_attribute_certificate(encode, np.asarray(images), scale=np.ones(len(attributes[0])), **noise)
    metrics.class_accuracy(array(3, 4), jnp.asarray([0, 1, 2]))
    metrics.attribute_metrics(array(6, 2), (array(6, 2) > 0).astype(jnp.float32))
    metrics.attribute_metrics(np.asarray(array(6, 2)), np.asarray(array(6, 2) > 0, np.float32))


def where_it_changed(encode, head: sj.Head, images: jax.Array, changed: jax.Array) -> None:
    visible = jnp.asarray([[True, True], [True, False], [False, False]])
    centres = jnp.asarray(RANDOM.uniform(2, 10, size=(3, 2, 2)), jnp.float32)
    region = sj.part_discs(centres, visible, jnp.full(3, 2.5), height=12, width=13)
    sj.energy_lift(changed, images, region)
    sj.pointing_hit(changed, images, region)
    targets = jnp.asarray([0, 1, 2], jnp.int32)
    sj.causal_split(encode, head, changed, images, region, targets, jnp.asarray([4, 0, 1], jnp.int32))


def mistakes(head: sj.Head, attributes: jax.Array) -> None:
    """The check is really on: arguments of the wrong type or shape are refused."""
    for call in (
        lambda: sj.head_logits(head, attributes.astype(jnp.int32)),
        lambda: sj.psnr(attributes, attributes[0, 0]),
        lambda: sj.attribute_loss(attributes, attributes[:, :-1]),
        lambda: sj.pointing_hit(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4))),
    ):
        try:
            call()
        except TypeCheckError:
            continue
        raise AssertionError("a wrong argument passed the type check")


if __name__ == "__main__":
    head, attributes = sj.Head(array(4, 5)), array(3, 5)
    solve_one_and_many(head, attributes)
    images_and_metrics(head)
    mistakes(head, attributes)
    losses(sj.Head(array(4, 5), array(4)), attributes)
    print("all annotations hold")
