"""Every formula of images and of training has one home: who changes it there changes every answer that rests on it.

A line of TABLE names the formula, its one function, and who uses it. For each of these the test negates the function's
value and sees the user change. What JAX compiles is only traced, as compiling would take minutes: its program changes.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula_tables import Formula, negate, program, same, with_every_user
from test_inversion import METHODS, config, problem, solved
from training_tools import CONFIG, examples, make_problem

import spectra_jax as sj
from experiments.counterfactuals import few_pixels, parts
from experiments.paper_claims.pruning import make_pruner
from experiments.paper_claims.regions import Regions
from spectra_jax import localization, losses, similarity
from spectra_jax.inversion import loss as inversion_loss
from spectra_jax.perturbations import formulas, lanes
from spectra_jax.training import make_train_step

ENCODE, HEAD, IMAGES, WANTED, TARGETS = problem()
CHANGED = jnp.clip(IMAGES + 0.2 * jnp.sign(IMAGES - 0.5), 0, 1)
REGION = np.zeros(IMAGES.shape[:3], bool)
REGION[:, 2:5, 3:9] = True
INFO = SimpleNamespace(part_names=("nape", "back"), image_kind="box")
EXAMPLE = {"image": np.zeros((12, 13, 3), np.uint8), "parts": np.array([[3.0, 4.0, 1.0], [8.0, 6.0, 1.0]])}


def inverted(method):
    return lambda images: sj.invert(ENCODE, HEAD, images, WANTED, TARGETS, config=config(method, max_steps=3))


def trained(**changes):
    settings = dataclasses.replace(CONFIG, **changes)
    model, optimizer, state = make_problem(settings)
    step = make_train_step(model, optimizer, settings)
    return lambda _: step(state, examples(8))


def in_few_pixels(images):
    original, flipped = (np.asarray(pictures[0]) for pictures in (images, solved().images))
    return few_pixels.fewest_pixels(ENCODE, HEAD, original, flipped, int(TARGETS[0])).mask


def of_regions(_):
    regions = Regions.__new__(Regions)
    regions._run, regions._size = SimpleNamespace(info=INFO), 12
    return regions._discs(EXAMPLE)


# Evaluated before and after: what works on the host.
VALUES = {
    "paper figures, discs": lambda _: parts.part_discs(INFO, EXAMPLE, "has_nape_color::red", 12),
    "paper claims, discs": of_regions,
    "paper figures, lift": lambda images: parts.lift(np.square(np.asarray(images[0])).sum(-1), REGION[0]),
    "fewest_pixels": in_few_pixels,
}
# Traced before and after.
PROGRAMS = {
    **{f"invert, {name}": inverted(method) for name, method in METHODS.items()},
    "part_discs": lambda images: sj.part_discs(
        images[:, 0, :2, :2], jnp.ones((4, 2), bool), jnp.ones(4), height=5, width=5
    ),
    "energy_lift": lambda images: sj.energy_lift(images, CHANGED, jnp.asarray(REGION)),
    "paper claims, pruning": lambda images: make_pruner(lambda _, pixels: ENCODE(pixels))(
        {}, HEAD, images, CHANGED, TARGETS, jax.random.key(0)
    ),
    "all_pairs_norms": lambda images: sj.all_pairs_norms(HEAD, ENCODE(images)),
    "total_loss": lambda images: sj.total_loss(HEAD, ENCODE(images), jnp.ones((4, 8)), TARGETS),
    "loss_terms": lambda images: sj.loss_terms(HEAD, ENCODE(images), jnp.ones((4, 8)), TARGETS).total,
    "consistency_loss": lambda images: sj.consistency_loss(ENCODE(images), ENCODE(CHANGED)),
    "training": lambda images: trained()(images),
    "training, TRADES": lambda images: trained(adversarial_radius=0.1, lambda_consistency=1.0)(images),
}
INVERT = [f"invert, {name}" for name in METHODS]


TABLE = [
    Formula("loss of the inversion (Section 2.6)", inversion_loss, "inversion_loss", INVERT),
    Formula("structural similarity", similarity, "ssim", INVERT),
    Formula("lead over the best rival", formulas, "lead", [*INVERT, "fewest_pixels", "paper claims, pruning"]),
    Formula("importance of a pixel", few_pixels, "importance", ["fewest_pixels", "paper claims, pruning"]),
    Formula(
        "discs around parts",
        localization,
        "draw_discs",
        ["part_discs", "paper figures, discs", "paper claims, discs"],
    ),
    Formula("energy lift", localization, "lift_of", ["energy_lift", "paper figures, lift"]),
    Formula("next places of a queue", lanes, "refill", [*INVERT, "all_pairs_norms"]),
    Formula("training loss (Eq. 7)", losses, "loss_terms", ["total_loss", "training", "training, TRADES"]),
    Formula("divergence of two predictions", losses, "divergence", ["consistency_loss", "training, TRADES"]),
]


def answer(user):
    """The user's value, or its program without the addresses of Python objects in it."""
    jax.clear_caches()  # of traced programs
    make_pruner.cache_clear()
    if user in VALUES:
        try:
            return [np.asarray(leaf) for leaf in jax.tree.leaves(VALUES[user](IMAGES))]
        except ValueError as error:
            return str(error)
    return program(PROGRAMS[user], IMAGES)


@functools.cache
def unchanged(user):
    return answer(user)


@pytest.mark.parametrize("name", ["invert, adam", "training", "paper figures, discs"])
def test_what_nobody_changes_is_the_same(name):
    assert same(answer(name), unchanged(name))


@with_every_user(TABLE)
def test_who_changes_the_function_changes_every_user(formula, user, monkeypatch):
    before = unchanged(user)
    negate(formula, monkeypatch)
    assert not same(before, answer(user))
