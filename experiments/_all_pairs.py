"""All pairs of a sweep, from the folder to the report."""

import time
from pathlib import Path

from experiments import _folder, _nearest, _sweep, _sweep_inputs, _sweep_pages
from experiments._sweep_options import SolveConfig
from spectra_jax.logging import Console, duration, write_json


def solve_all(
    problem: _sweep_inputs.Problem,
    config: SolveConfig,
    nearest: _nearest.Nearest | None,
    out: Path,
    *,
    console: Console,
    began: float,
) -> int:
    """Solves, or goes on solving, and reports; returns the exit code.

    Args:
        problem: what is swept.
        config: the options, with methods.
        nearest: the answers that came first, on process 0.
        out: the folder to write.
        console: told about progress.
        began: time.monotonic() when the command did.
    """
    cost = _nearest.estimate_cost(problem, config.methods)
    console.say(f"all {cost.pairs:,} pairs, about {duration(cost.seconds)} and {cost.gigabytes:.2g} GB")

    def prepare() -> tuple[_sweep_inputs.Scan, _sweep.Plan]:
        found = _sweep_inputs.scan(problem, config.precision)
        return found, _sweep.make_plan(problem, config, found.fingerprint)

    found, plan = _sweep.together(prepare)
    _sweep.check_same_input(plan)
    with _sweep.sweep_folder(out, plan.options) as folder:
        earlier = _sweep.seconds_solved(folder, plan)
        try:
            if nearest is not None:
                _nearest.write_nearest(problem, nearest, folder)
            code = _sweep.solve(problem, config, plan, found, folder, console=console)
            if code == 0 and nearest is not None:
                console.say("reading the answers")
                answers = _sweep_pages.analyse(problem, config, plan, folder)
                seconds = earlier + time.monotonic() - began
                write_json(folder / _folder.SUMMARY, {**answers.summary, "seconds": seconds})
                path = _sweep_pages.write_report(problem, config, plan, answers, nearest, folder, seconds=seconds)
                console.say(f"done in {duration(time.monotonic() - began)}; open {path.resolve().as_uri()}")
        except OSError as error:
            raise _sweep.cannot_write(folder, error) from error
    return code
