"""How often the solvers are wrong: families of hard heads, in float32 and float64, against rational arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.benchmarks.tools.command import run
from experiments.cli.command import check_file, run_main
from experiments.cli.options import Seed

WRONG = 1e-4  # relative error of a norm that counts as wrong
# A certificate stands if any answer would have to be this many times as long as the sample and the farthest boundary.
OUT_OF_REACH = 100.0


@dataclass(frozen=True)
class Args:
    """Compares projections, and projections into ranges, with an oracle in rational arithmetic, pair by pair.

    python -m experiments.benchmarks.exactness --pairs 2900
        every family in float32 and float64; a minute or two per thousand pairs of one family in one precision on 2 CPU
        cores, most of it for the rational arithmetic. The columns after the pairs should contain only zeros.

    Prints one row per family and precision.

    Attributes:
        pairs: number of pairs per family.
        families: names of families to run; all of them if none is given.
        seed: seed of heads and samples.
        case: a .npz of weights and attributes to run as a separate family.
        out: also write the figures to this JSON file.
    """

    pairs: int = 500
    families: tuple[str, ...] = ()
    seed: Seed = 0
    case: Path | None = None
    out: Path | None = None

    def check(self) -> None:
        check_file("case", self.case)


class Family(NamedTuple):
    """A head, samples, and ranges of the attributes or None."""

    weights: np.ndarray
    bias: np.ndarray | None
    samples: np.ndarray
    margin: float
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None


class Count(NamedTuple):
    """Outcomes of a family.

    Attributes:
        pairs: that the oracle could decide.
        undecided: those it could not.
        unresolved: answers that are NaN.
        wrong: norms off by more than WRONG.
        false_feasible: finite answers where there is none.
        false_infeasible: the reverse.
        bad_certificates: infeasible answers whose multipliers prove too little.
        worst: largest relative error.
    """

    pairs: int
    undecided: int
    unresolved: int
    wrong: int
    false_feasible: int
    false_infeasible: int
    bad_certificates: int
    worst: float


def families(seed: int) -> Iterator[tuple[str, Family]]:
    """Heads that solvers have failed on, drawn anew for every seed."""

    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape)

    for apart in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        twins = np.repeat(normal(15, 40), 2, 0) + apart * normal(30, 40)
        yield f"twins {apart:g} apart", Family(twins, None, normal(100, 40), 0.0)
        yield f"twins {apart:g} apart, margin .1", Family(twins, 0.1 * normal(30), normal(100, 40), 0.1)
    doubles = np.repeat(normal(14, 20), 2, 0)
    yield "duplicate rows, margin 1e-6", Family(doubles, None, normal(108, 20), 1e-6)
    yield "duplicate rows", Family(doubles, None, normal(108, 20), 0.0)
    yield "random", Family(normal(30, 40), None, normal(100, 40), 0.1)
    yield "60 classes, 8 attributes, bias", Family(normal(60, 8), normal(60), normal(50, 8), 0.0)
    yield "500 classes, 4 attributes, margin 10", Family(normal(500, 4), None, normal(20, 4), 10.0)
    yield "low rank", Family(normal(24, 4) @ normal(4, 20), None, normal(120, 20), 0.05)
    yield "integers, ties", Family(np.sign(normal(12, 20)), None, np.round(normal(250, 20)), 0.0)
    yield "tiny weights", Family(1e-20 * normal(20, 30), None, normal(150, 30), 1e-21)
    yield "huge weights", Family(1e19 * normal(20, 30), None, normal(150, 30), 1e18)
    for name, width in (("0/1 concepts, 20 x 12", 12), ("0/1 concepts, 12 x 40", 40)):
        classes = 20 if width == 12 else 12
        concepts = (rng.random((200, width)) < 0.3).astype(float)
        ends = np.zeros_like(concepts), np.ones_like(concepts)
        yield name, Family(normal(classes, width), None, concepts, 0.1, *ends)
    observed = normal(200, 15)
    within = np.broadcast_to(observed.min(0), observed.shape), np.broadcast_to(observed.max(0), observed.shape)
    yield "observed ranges, 24 x 15", Family(normal(24, 15), normal(24), observed, 0.3, *within)
    narrow = observed - rng.uniform(0, 0.4, observed.shape), observed + rng.uniform(0, 0.4, observed.shape)
    yield "narrow ranges, 12 x 15", Family(normal(12, 15), normal(12), observed, 0.1, *narrow)
    twins = np.repeat(normal(8, 12), 2, 0) + 1e-6 * normal(16, 12)
    box = np.full((200, 12), -np.inf), np.full((200, 12), 1.5)
    yield "twins 1e-6 apart, one end", Family(twins, None, np.minimum(normal(200, 12), 1.4), 0.0, *box)
    corner = np.round(rng.random((200, 6)))
    ends = np.zeros_like(corner), np.ones_like(corner)
    yield "integers at corners", Family(rng.integers(-2, 3, (8, 6)).astype(float), None, corner, 0.0, *ends)


def compare(family: Family, pairs: int, dtype: type, seed: int, *, show: bool = False) -> Count:
    """Solves `pairs` random pairs of the family in this precision, and each again in fractions."""
    import jax.numpy as jnp

    import spectra_jax as sj
    from experiments.benchmarks.tools.exact import (
        farthest,
        fractions,
        least_norm_by_certificate,
        nearest,
        problem,
        shortfall,
    )
    from experiments.benchmarks.tools.projections import project, project_into_ranges

    rng = np.random.default_rng(seed)
    weights: np.ndarray = family.weights.astype(dtype)
    samples: np.ndarray = family.samples.astype(dtype)
    bias: np.ndarray | None = None if family.bias is None else family.bias.astype(dtype)
    rows, targets = rng.integers(len(samples), size=pairs), rng.integers(len(weights), size=pairs).astype(np.int32)
    head, margin = sj.Head(jnp.asarray(weights), None if bias is None else jnp.asarray(bias)), dtype(family.margin)
    ends: list[np.ndarray] = []
    if family.lower is not None and family.upper is not None:
        # A sample that is rounded must not leave a range that is not.
        ends = [np.asarray(end[rows], dtype) for end in (family.lower, family.upper)]
    arguments = head, jnp.asarray(samples[rows]), jnp.asarray(targets), jnp.asarray(margin)
    result = project_into_ranges(*arguments, *map(jnp.asarray, ends)) if ends else project(*arguments)
    norms, multipliers = np.asarray(result.norm, np.float64), np.asarray(result.multipliers, np.float64)
    deltas = np.asarray(result.delta, np.float64)
    logits = fractions(samples).dot(fractions(weights).T)
    logits = logits if bias is None else logits + fractions(bias)[None, :]
    predicted = [int(np.argmax(row)) for row in logits]
    # The sweep's own way to the norms must agree.
    whole = None if ends else np.asarray(sj.all_pairs_norms(head, jnp.asarray(samples), margin=margin), np.float64)

    counts, worst = dict.fromkeys(Count._fields[:-1], 0), 0.0
    for i in track(range(pairs), description="fractions", disable=not show, transient=True):
        given = problem(weights, bias, samples[rows[i]], int(targets[i]), margin, *(end[i] for end in ends))
        expected = nearest(given)
        if expected is None:
            counts["undecided"] += 1
            continue
        counts["pairs"] += 1
        found = [norms[i]]
        if whole is not None and targets[i] != predicted[rows[i]]:  # which is 0 by definition, whatever the margin
            found.append(whole[rows[i], targets[i]])
        counts["unresolved"] += bool(np.isnan(found).any())
        counts["false_infeasible"] += bool(expected < np.inf and np.isinf(found).any())
        counts["false_feasible"] += bool(expected == np.inf and np.isfinite(found).any())
        if norms[i] == np.inf:
            length = least_norm_by_certificate(given, np.delete(multipliers[i], targets[i]))
            size = float(np.linalg.norm(samples[rows[i]].astype(np.float64)))
            counts["bad_certificates"] += not length >= OUT_OF_REACH * max(size, farthest(given))
        if expected == np.inf:
            continue
        errors = [
            abs(value - expected) / expected if expected else float(value > 0) for value in found if value < np.inf
        ]
        if norms[i] < np.inf:  # the change itself: as long as told, and nothing is violated
            errors += [shortfall(given, deltas[i]) / (expected or 1.0)]
        error = max(errors, default=0.0)
        counts["wrong"] += error > WRONG
        worst = max(worst, error)
    return Count(**counts, worst=worst)


def measure(args: Args) -> dict[str, Any]:
    """Prints a row for every family and precision."""
    import jax

    chosen = list(families(args.seed))
    if args.case is not None:
        with np.load(args.case) as case:
            head = Family(case["weights"], None, case["attributes"], 0.0)
        chosen += [(args.case.stem, head), (f"{args.case.stem}, margin .5", head._replace(margin=0.5))]
    table = Table("family", "precision", *(name.replace("_", " ") for name in Count._fields))
    figures = {}
    for name, family in chosen:
        if args.families and name not in args.families:
            continue
        for dtype in (np.float32, np.float64):
            with jax.enable_x64(dtype == np.float64):
                count = compare(family, args.pairs, dtype, args.seed, show=True)
            print(f"{name}, {dtype.__name__}: {count}", flush=True)  # hours of work are not lost with the table
            shown = (f"{value:.1e}" if isinstance(value, float) else f"{value:,}" for value in count)
            table.add_row(name, dtype.__name__, *shown)
            figures[f"{name} ({dtype.__name__})"] = count._asdict()
        jax.clear_caches()
    Console().print(table)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:

    return run("exactness", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
