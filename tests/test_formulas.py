"""Every formula has one home: who changes it there changes every answer that rests on it.

A line of TABLE names the formula, its one function, and who uses it. For each of these the test negates the function's
value and sees the user change. What JAX compiles is only traced, as compiling would take minutes: its program changes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula_tables import Formula, negate, program, same, with_every_user

import spectra_jax as sj
from spectra_jax.constraints.programs import make_programs
from spectra_jax.constraints.rules import as_constraints
from spectra_jax.perturbations import formulas
from spectra_jax.sweep import sweep_block

RANDOM = np.random.default_rng(0)
WEIGHTS, SAMPLES = (RANDOM.normal(size=(3, 4)).astype(np.float32) for _ in range(2))
HEAD = sj.Head(jnp.asarray(WEIGHTS), jnp.asarray([0.1, 0.2, -0.3]))
GROUPS = jnp.asarray([0, 0, 1, 1], jnp.int32)
PREDICTED = int((SAMPLES[0] @ WEIGHTS.T + np.asarray(HEAD.bias)).argmax())
TARGET = (PREDICTED + 1) % 3


def pair(solve, **options):
    return lambda samples: solve(HEAD, samples[0], TARGET, **options)


def batch(solve, **options):
    return lambda samples: solve(HEAD, samples, **options)


def on_the_host(samples):
    rules = as_constraints(sj.Rules(), 4)
    programs = make_programs(HEAD, np.asarray(samples), np.full(len(samples), TARGET), 0.1, rules)
    return programs.offsets, programs.rounding


def of_paper_figures(samples):
    from experiments.paper_figures.requests import intervals

    found = intervals(WEIGHTS[:, 0], np.asarray(samples[0]) @ WEIGHTS.T, 0.1)
    return found.lower, found.upper, found.nearest()


def of_pages(samples):
    from experiments.reporting.pages import relative_margins

    return relative_margins(np.array([[0.0, 2.0, 3.0]]), np.array([2.0]), np.array([0]))


# Evaluated before and after: what works on the host.
VALUES = {
    "constrained_perturbations": on_the_host,
    "intervene": lambda samples: sj.intervene(HEAD, samples, {"attribute 0": 1.0}).after.lead,
    "explain": lambda samples: sj.explain(HEAD, samples, margin=0.1).status,
    "paper figures": of_paper_figures,
    "pages": of_pages,
}
# Traced before and after.
PROGRAMS = {
    "boundary_perturbation": pair(sj.boundary_perturbation),
    "pinv_perturbation": pair(sj.pinv_perturbation),
    "single_attribute_perturbations": pair(sj.single_attribute_perturbations),
    "best_single_attributes": batch(sj.best_single_attributes),
    "best_single_attributes, margin": batch(sj.best_single_attributes, margin=0.1),
    "nearest_class": batch(sj.nearest_class),
    "attackability": batch(sj.attackability),
    "attackability, pinv": batch(sj.attackability, method="pinv"),
    "all_pairs_norms, boundary": batch(sj.all_pairs_norms, method="boundary"),
    "stability_loss": batch(sj.stability_loss),
    "stability_loss, hinge": batch(sj.stability_loss, form="hinge"),
    "sweep, boundary": batch(sweep_block, methods=("boundary",)),
    "projection_perturbation": pair(sj.projection_perturbation),
    "box_perturbation": pair(sj.box_perturbation, lower=jnp.full(4, -3.0)),
    "sparse_perturbation": pair(sj.sparse_perturbation, max_changes=2),
    "one_hot_perturbation": pair(sj.one_hot_perturbation, groups=GROUPS),
    "all_pairs_norms": batch(sj.all_pairs_norms),
    "all_pairs_projection": batch(sj.all_pairs_projection),
}
SINGLE = ["single_attribute_perturbations", "best_single_attributes", "best_single_attributes, margin", "paper figures"]
ITERATIVE = [
    "projection_perturbation",
    "box_perturbation",
    "sparse_perturbation",
    "one_hot_perturbation",
    "all_pairs_norms",
    "all_pairs_projection",
]


TABLE = [
    Formula(
        "offset of a constraint, l_k - l_j + margin",
        formulas,
        "offset",
        [
            "boundary_perturbation",
            "pinv_perturbation",
            *SINGLE,
            "nearest_class",
            "attackability",
            *ITERATIVE,
            "all_pairs_norms, boundary",
            "constrained_perturbations",
        ],
    ),
    Formula("its rounding error", formulas, "offset_rounding", [*ITERATIVE, "constrained_perturbations"]),
    Formula("lead over the best rival", formulas, "lead", ["intervene", "explain"]),
    Formula("where two logits cross (Eq. 1)", formulas, "crossing", [*SINGLE, "sparse_perturbation"]),
    Formula("interval of one attribute (Eq. 2-4)", formulas, "interval", [*SINGLE, "sparse_perturbation"]),
    Formula("its smallest change", formulas, "nearest_to_zero", [*SINGLE, "sparse_perturbation"]),
    Formula(
        "boundary distance (Section 2.5.2)",
        formulas,
        "boundary_distance",
        [
            "boundary_perturbation",
            "all_pairs_norms, boundary",
            "nearest_class",
            "attackability",
            "stability_loss",
            "sweep, boundary",
        ],
    ),
    Formula(
        "attackability (Eq. 5)",
        formulas,
        "attackability",
        ["attackability", "attackability, pinv", "nearest_class", "sweep, boundary"],
    ),
    Formula(
        "relative margin, its reciprocal",
        formulas,
        "relative_margin",
        ["stability_loss", "stability_loss, hinge", "pages"],
    ),
    Formula(
        "residual of the optimality conditions, relative",
        formulas,
        "relative_residual",
        [name for name in ITERATIVE if name != "all_pairs_norms"],
    ),
]


def answer(user):
    """The user's value, or its program without the addresses of Python objects in it."""
    if user in VALUES:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(VALUES[user](jnp.asarray(SAMPLES)))]
    jax.clear_caches()  # of traced programs
    return program(PROGRAMS[user], jnp.asarray(SAMPLES))


@functools.cache
def unchanged(user):
    return answer(user)


@pytest.mark.parametrize("name", ["projection_perturbation", "nearest_class"])
def test_a_program_that_nobody_changes_is_the_same(name):
    assert same(answer(name), unchanged(name))


@with_every_user(TABLE)
def test_who_changes_the_function_changes_every_user(formula, user, monkeypatch):
    before = unchanged(user)
    negate(formula, monkeypatch)
    assert not same(before, answer(user))


def test_every_formula_of_the_module_is_in_the_table():
    public = {
        name for name, thing in vars(formulas).items() if callable(thing) and thing.__module__ == formulas.__name__
    }
    # `offsets` is `offset` of every rival.
    assert public - {"_is_target", "offsets"} == {each.function for each in TABLE if each.home is formulas}
