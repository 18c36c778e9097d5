"""Rules that hold together: against enumeration of every choice, with another solver for each."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from spectra_jax.constraints.options import make_options
from spectra_jax.constraints.programs import make_programs
from spectra_jax.constraints.remaining import remaining_choices
from spectra_jax.constraints.rules import as_constraints
from spectra_jax.constraints.verify import keeps_rules

daqp = pytest.importorskip("daqp")
NUM_CLASSES, NUM_ATTRIBUTES = 6, 9
GROUPS = np.array([0, 0, 0, 1, 1, -1, -1, -1, -1])
SWITCHES = np.full((NUM_ATTRIBUTES, 2), np.nan)
SWITCHES[5:7] = 0, 1

RULES = {
    "ranges": sj.Rules(lower=np.full(9, -1.5), upper=np.full(9, 1.5)),
    "directions": sj.Rules(may_rise=np.arange(9) != 0, may_fall=np.arange(9) > 3),
    "relations": sj.Rules(relations=np.eye(9)[:1] - np.eye(9)[1:2], offsets=np.zeros(1)),
    "costs": sj.Rules(costs=np.linspace(0.5, 3, 9), max_changes=3),
    "few": sj.Rules(max_changes=2),
    "one": sj.Rules(max_changes=1),
    "few within ranges": sj.Rules(max_changes=3, lower=np.full(9, -2.5), upper=np.full(9, 2.5)),
    "groups": sj.Rules(groups=GROUPS),
    "switches": sj.Rules(switch_values=SWITCHES),
    "few, groups": sj.Rules(groups=GROUPS, max_changes=3),
    "everything": sj.Rules(
        lower=np.full(9, -2.5),
        upper=np.full(9, 2.5),
        may_stay=np.arange(9) > 4,
        may_rise=np.arange(9) != 8,
        costs=np.linspace(0.5, 3, 9),
        switch_values=SWITCHES,
        groups=GROUPS,
        relations=np.eye(9)[7:8] - np.eye(9)[6:7],
        offsets=np.array([-1.0]),
        max_changes=4,
    ),
}


def random_problem(seed: int):
    rng = np.random.default_rng(seed)
    head = sj.Head(jnp.asarray(rng.normal(size=(NUM_CLASSES, NUM_ATTRIBUTES)), jnp.float32), None)
    return head, rng.normal(size=NUM_ATTRIBUTES), int(rng.integers(NUM_CLASSES))


def best_by_enumeration(head, attributes, target, rules, margin: float) -> float:
    """The least distance over every choice, each a quadratic program for DAQP; inf where none has an answer."""
    constraints = as_constraints(rules, NUM_ATTRIBUTES)
    options = make_options(constraints, attributes[None])
    per_unit = [np.flatnonzero(options.option_unit == unit) for unit in range(options.num_units)]
    programs = make_programs(head, attributes[None], np.array([target]), margin, constraints)
    weights = np.asarray(head.weights, float)
    others = np.arange(NUM_CLASSES) != target
    rows = np.concatenate([(weights[target] - weights[others]), constraints.relations]) / constraints.costs
    logits = weights @ attributes
    wanted = np.concatenate(
        [logits[others] - logits[target] + margin, constraints.offsets - constraints.relations @ attributes]
    )
    assert programs.offsets.shape == (1, NUM_CLASSES + len(constraints.relations))
    best = np.inf
    for chosen in itertools.product(*per_unit):
        chosen = np.array(chosen)
        changes = (~options.keeps[chosen]).sum()
        if not options.allowed[0, chosen].all() or (rules.max_changes is not None and changes > rules.max_changes):
            continue
        low, high = (ends[0] for ends in options.boxes(chosen[None]))
        upper = np.concatenate([high, np.full(len(rows), 1e30)])
        lower = np.concatenate([low, wanted])
        upper, lower = np.minimum(upper, 1e30), np.maximum(lower, -1e30)
        equal = upper - lower == 0
        sense = np.where(equal, 5, 0).astype(np.int32)
        found = daqp.solve(np.eye(NUM_ATTRIBUTES), np.zeros(NUM_ATTRIBUTES), rows, upper, lower, sense)
        delta, _, exit_flag = found[0], found[1], found[2]
        if exit_flag == 1:
            best = min(best, float(np.linalg.norm(delta)))
    return best


@pytest.mark.parametrize("name", RULES)
def test_the_shortest_of_all_choices_is_found(name):
    rules, margin = RULES[name], 0.1
    checked = 0
    for head, attributes, target in map(random_problem, range(12)):
        found = sj.constrained_perturbations(
            head, attributes[None].astype(np.float32), np.array([target]), rules, margin=margin
        )
        expected = best_by_enumeration(head, attributes.astype(np.float32).astype(float), target, rules, margin)
        assert found.proven[0]
        assert found.status[0] == (sj.Status.INFEASIBLE if np.isinf(expected) else sj.Status.SOLVED)
        if np.isinf(expected):
            assert found.norm[0] == np.inf and found.lower_bound[0] == np.inf
            continue
        checked += 1
        np.testing.assert_allclose(found.norm[0], expected, rtol=1e-6)
        np.testing.assert_allclose(found.lower_bound[0], expected, rtol=1e-6)
        constraints = as_constraints(rules, NUM_ATTRIBUTES)
        assert keeps_rules(constraints, attributes[None], found.delta)[0]
        logits = np.asarray(head.weights, float) @ (attributes + found.delta[0])
        assert logits[target] - np.delete(logits, target).max() >= margin - 1e-5
    assert checked >= 3


def test_remaining_choices_are_those_below_the_allowance():
    rng = np.random.default_rng(1)
    for name in ("few", "groups", "everything", "switches"):
        constraints = as_constraints(RULES[name], NUM_ATTRIBUTES)
        options = make_options(constraints, rng.normal(size=(1, NUM_ATTRIBUTES)))
        values = options.values(2 * rng.normal(size=(1, NUM_ATTRIBUTES)))[0]
        per_unit = [np.flatnonzero(options.option_unit == unit) for unit in range(options.num_units)]
        totals = {}
        for chosen in itertools.product(*per_unit):
            changes = (~options.keeps[list(chosen)]).sum()
            if options.max_changes is None or changes <= options.max_changes:
                totals[tuple(map(int, chosen))] = values[list(chosen)].sum()
        finite = sorted(total for total in totals.values() if np.isfinite(total))
        if not finite:
            continue
        assert np.isclose(finite[0], values[options.choose(values[None])[0]].sum())
        allowance = finite[len(finite) // 3] + 1e-9
        found, complete = remaining_choices(options, values, allowance, 10**6)
        assert complete
        assert {tuple(map(int, each)) for each in found} == {k for k, total in totals.items() if total < allowance}
        few, complete = remaining_choices(options, values, allowance, 2)
        assert len(few) == 2 and not complete


def test_a_sample_that_need_not_move_stays():
    head = sj.Head(jnp.eye(3))
    found = sj.constrained_perturbations(
        head, np.array([[2.0, 0.0, 0.0]]), np.array([0]), sj.Rules(lower=np.full(3, -1.0), max_changes=1)
    )
    assert found.norm[0] == 0 and found.proven[0]


def test_infeasible_rules_are_proven_empty():
    head = sj.Head(jnp.eye(3))
    attributes = np.array([[2.0, 0.0, 0.0]])
    nothing_moves = sj.Rules(may_rise=np.zeros(3, bool), may_fall=np.zeros(3, bool))
    narrow = sj.Rules(upper=np.array([3.0, 1.0, 1.0]), lower=np.array([1.5, -1.0, -1.0]))
    for rules in (nothing_moves, narrow, narrow._replace(max_changes=1)):
        found = sj.constrained_perturbations(head, attributes, np.array([1]), rules, margin=0.1)
        assert found.norm[0] == np.inf and found.proven[0]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (sj.Rules(lower=np.zeros(2)), r"rules.lower has shape \(2,\)"),
        (sj.Rules(lower=np.ones(3), upper=np.zeros(3)), "range of attribute 0"),
        (sj.Rules(costs=np.zeros(3)), "costs has entries"),
        (sj.Rules(max_changes=0), "max_changes is 0"),
        (sj.Rules(switch_values=np.array([[1.0, 0.0]] * 3)), "off value below"),
        (sj.Rules(on_level=np.nan), "on_level is nan"),
        (sj.Rules(relations=np.zeros((1, 3))), "relations has shape"),
        (sj.Rules(relations=np.full((1, 3), np.nan), offsets=np.zeros(1)), "NaN"),
    ],
)
def test_rules_that_mean_nothing_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        sj.constrained_perturbations(sj.Head(jnp.eye(3)), np.zeros((1, 3), np.float32), np.array([1]), rules)


def test_what_does_not_fit_the_samples_is_refused():
    head, attributes = sj.Head(jnp.eye(3)), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"targets has shape \(1,\)"):
        sj.constrained_perturbations(head, attributes, np.array([1]), sj.Rules())
    with pytest.raises(ValueError, match="locked has shape"):
        sj.constrained_perturbations(head, attributes, np.array([1, 1]), sj.Rules(), locked=np.zeros(3, bool))


def test_numpy_input_keeps_its_digits():
    head = sj.Head(np.eye(2), np.array([1e8, 1e8 + 1]))
    found = sj.constrained_perturbations(head, np.zeros((1, 2)), np.array([0]), sj.Rules())
    np.testing.assert_allclose(found.norm, np.sqrt(0.5), rtol=1e-9)


def test_a_soft_binary_value_of_a_group_moves_only_to_change_sides():
    head = sj.Head(jnp.asarray([[0.0, 0.0], [1.0, 0.0]]), jnp.asarray([0.0, -0.9]))
    rules = sj.Rules(switch_values=np.array([[0.0, 1.0]] * 2), groups=np.zeros(2, int))
    constraints = as_constraints(rules, 2)
    attributes = np.array([[0.7, 0.2]])
    assert not keeps_rules(constraints, attributes, np.array([[0.3, 0.0]]))[0]
    assert keeps_rules(constraints, attributes, np.array([[-0.7, 0.8]]))[0]
    assert sj.constrained_perturbations(head, attributes, np.array([1]), rules).norm[0] == np.inf
