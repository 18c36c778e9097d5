"""Every counterfactual of every sample, streamed into Parquet files; a repeated command goes on where it stopped."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import tyro
from tyro.conf import OmitArgPrefixes

from experiments import _folder, _run, _sweep, _sweep_inputs, _sweep_pages
from experiments._command import run_main
from spectra_jax.logging import Console, duration, write_json


@dataclass(frozen=True)
class Args:
    """Solves all (sample, target) pairs of a linear head and reports which samples and classes are easily confused.

    python -m experiments.sweep_attackability --run-dir runs/quickstart-synthetic-cnn-seed0 --out runs/sweep
        the test split of a finished run.
    python -m experiments.sweep_attackability --features features.npy --head model.safetensors --head-weight fc.weight
        --out runs/sweep
        anybody's features, (samples, attributes), and linear head; no PyTorch needed.

    Leaves pairs/*.parquet (a row a sample, target and method), samples/*.parquet (a row a sample),
    class_distances.parquet, summary.json, metrics.jsonl and report.html in --out. Read them with any of
        pandas.read_parquet("runs/sweep/pairs")   polars.scan_parquet("runs/sweep/pairs/*.parquet")
        duckdb.sql("select * from 'runs/sweep/pairs/*.parquet'")

    Memory does not depend on the number of samples. On a CPU every core solves samples of its own, with the same
    answers; JAX_NUM_CPU_DEVICES=1 makes one device of all cores. After Ctrl-C or a kill, repeat the command: finished
    files are kept. On several hosts start it once on each with the same --out on a shared disk.

    Attributes:
        out: the folder to write; made if absent.
        quiet: show errors only.
    """

    out: Path
    source: OmitArgPrefixes[_sweep_inputs.InputConfig] = field(default_factory=_sweep_inputs.InputConfig)
    questions: OmitArgPrefixes[_sweep.SolveConfig] = field(default_factory=_sweep.SolveConfig)
    hosts: OmitArgPrefixes[_run.HostsConfig] = field(default_factory=_run.HostsConfig)
    quiet: bool = False


def sweep(args: Args) -> int:
    """Runs or resumes a sweep; returns the exit code."""
    began = time.monotonic()
    console = Console(quiet=args.quiet or jax.process_index() > 0)
    config = args.questions

    def prepare() -> tuple[_sweep_inputs.Problem, _sweep_inputs.Scan, _sweep.Plan]:
        problem = _sweep_inputs.open_problem(args.source, config.precision)
        console.say(problem.sources)
        _sweep.check_options(config, problem)
        found = _sweep_inputs.scan(problem, config.precision)
        return problem, found, _sweep.make_plan(problem, config, found.fingerprint)

    problem, found, plan = _sweep.together(prepare)
    _sweep.check_same_input(plan)
    with _sweep.sweep_folder(args.out, plan.options) as folder:
        earlier = _sweep.seconds_solved(folder, plan)
        code = _sweep.solve(problem, config, plan, found, folder, console=console)
        if code == 0 and jax.process_index() == 0:
            console.say("reading the answers")
            try:
                answers = _sweep_pages.analyse(problem, config, plan, folder)
                seconds = earlier + time.monotonic() - began
                write_json(folder / _folder.SUMMARY, {**answers.summary, "seconds": seconds})
                path = _sweep_pages.write_report(problem, config, plan, answers, folder, seconds=seconds)
            except OSError as error:
                raise _sweep.cannot_write(folder, error) from error
            console.say(f"done in {duration(time.monotonic() - began)}; open {path.resolve().as_uri()}")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = tyro.cli(
        Args, args=sys.argv[1:] if arguments is None else arguments, prog="python -m experiments.sweep_attackability"
    )
    _run.use_compilation_cache()
    _run.one_device_a_core()
    _run.join_hosts(args.hosts)
    if args.questions.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    code = sweep(args)
    print(args.out)
    return code


if __name__ == "__main__":
    run_main(main)
