"""All pairs of a sweep, from the folder to the report."""

import time
from pathlib import Path

from experiments.runs.folder import SUMMARY
from experiments.sweep_attackability.inputs import Problem, Scan, scan
from experiments.sweep_attackability.nearest import Nearest, estimate_cost, write_nearest
from experiments.sweep_attackability.options import SolveConfig
from experiments.sweep_attackability.shards import Shard
from experiments.sweep_attackability.solve import (
    Plan,
    cannot_write,
    check_same_input,
    finished_part,
    make_plan,
    seconds_solved,
    solve,
    sweep_folder,
    together,
)
from spectra_jax.logging import Console, duration, write_json


def solve_all(
    problem: Problem,
    config: SolveConfig,
    nearest: Nearest | None,
    out: Path,
    *,
    shard: Shard | None,
    merge: bool,
    console: Console,
    began: float,
) -> int:
    """Solves, or goes on solving, and reports; returns the exit code.

    Args:
        problem: what is swept.
        config: the options, with methods.
        nearest: the answers that came first, on process 0.
        out: the folder to write.
        shard: solves its share of the files and reports nothing.
        merge: solves nothing and reports what is there.
        console: told about progress.
        began: time.monotonic() when the command did.
    """
    cost = estimate_cost(problem, config.methods)
    console.say(f"all {cost.pairs:,} pairs, about {duration(cost.seconds)} and {cost.gigabytes:.2g} GB")

    def prepare() -> tuple[Scan, Plan]:
        found = scan(problem, config.precision)
        return found, make_plan(problem, config, found.fingerprint)

    found, plan = together(prepare)
    check_same_input(plan)
    part = shard.name if shard is not None else "merge" if merge else None
    with sweep_folder(out, plan.options, part=part) as folder:
        if shard is not None:
            plan = plan._replace(partitions=plan.partitions[shard.number :: shard.of])
        whole = plan
        if merge:
            plan = finished_part(plan, folder)
        earlier = seconds_solved(folder, plan)
        try:
            if nearest is not None:
                write_nearest(problem, nearest, folder)
            code = solve(problem, config, plan, found, folder, alone=shard is None, console=console)
            if code == 0 and nearest is not None:
                from experiments.sweep_attackability.page import analyse, write_report  # plots: shards need none

                console.say("reading the answers")
                answers = analyse(problem, config, plan, folder)
                seconds = earlier + time.monotonic() - began
                write_json(folder / SUMMARY, {**answers.summary, "seconds": seconds})
                path = write_report(problem, config, plan, answers, nearest, folder, seconds=seconds)
                console.say(f"done in {duration(time.monotonic() - began)}; open {path.resolve().as_uri()}")
        except OSError as error:
            raise cannot_write(folder, error) from error
    missing = [partition for partition in whole.partitions if partition not in plan.partitions]
    for partition in missing:
        console.say(f"missing: samples {partition.start:,} to {partition.stop - 1:,}, in {partition.name}")
    return 1 if missing else code
