"""The nearest class of every sample, and on request every counterfactual; repeating the command continues it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from experiments.cli.command import UserError, parse, run_main
from experiments.cli.options import HostsConfig
from experiments.sweep_attackability.options import InputConfig, ShardConfig, SolveConfig


@dataclass(frozen=True)
class Args:
    """Computes how far every sample of a linear head is from another class, and solves all (sample, target) pairs.

    python -m experiments.sweep_attackability --run-dir runs/quickstart-synthetic-cnn-seed0 --out runs/sweep
        the test split of a finished run.

    python -m experiments.sweep_attackability --features features.npy --head model.safetensors --head-weight fc.weight
        --out runs/sweep
        any features, (samples, attributes), and linear head; no PyTorch needed.

    The first step costs about as much as the logits: the nearest class of every sample, its distance and the
    attackability, for which the boundary is EXACT (the nearest way out of a region is through one facet). The answers
    are printed and written to nearest.parquet, summary.json and report.html. The second step solves all pairs if
    that takes only a minute or two (up to 5 million pairs), or if --all-pairs or another option about pairs asks for
    it; otherwise the command only estimates their cost. --nearest-only skips them, however few they are.

    All pairs are written to pairs/*.parquet (a row per sample, target and method), samples/*.parquet (a row per
    sample) and class_distances.parquet. Read them with any of these libraries, of which DuckDB is installed:
        pandas.read_parquet("runs/sweep/pairs")   polars.scan_parquet("runs/sweep/pairs/*.parquet")
        duckdb.sql("select * from 'runs/sweep/pairs/*.parquet'")

    Memory does not depend on the number of pairs. On a CPU, every core solves its own samples, with the same
    answers; JAX_NUM_CPU_DEVICES=1 makes all cores one device. After Ctrl-C or a kill, repeat the command: finished
    files are kept. On several hosts, start it once on each with the same --out on a shared disk. If the hosts do not
    know each other, run the shards with --shard i/n and then --merge, or do all of it with --ray n (docs/cluster.md).

    Attributes:
        out: the folder to write to; created if absent.
        quiet: show only errors.
    """

    out: Path
    source: OmitArgPrefixes[InputConfig] = field(default_factory=InputConfig)
    questions: OmitArgPrefixes[SolveConfig] = field(default_factory=SolveConfig)
    shards: OmitArgPrefixes[ShardConfig] = field(default_factory=ShardConfig)
    hosts: OmitArgPrefixes[HostsConfig] = field(default_factory=HostsConfig)
    quiet: bool = False


def sweep(args: Args) -> int:
    """Runs or resumes a sweep; returns the exit code."""
    import jax

    from experiments.sweep_attackability.inputs import Problem, open_problem
    from experiments.sweep_attackability.nearest import Nearest, estimate_cost, find_nearest
    from experiments.sweep_attackability.shards import chosen_shard, merge, solve_shard
    from experiments.sweep_attackability.solve import (
        ALL_PAIRS,
        cannot_write,
        check_options,
        nearest_options,
        refuse_other,
        sweep_folder,
        together,
        with_methods,
    )
    from spectra_jax.logging import Console, duration

    began = time.monotonic()
    console = Console(quiet=args.quiet or jax.process_index() > 0)
    shard = chosen_shard(args.shards)
    merging = args.shards.merge or args.shards.ray > 0

    def prepare() -> tuple[Problem, SolveConfig, Nearest | None]:
        if args.out.is_file():
            raise UserError(f"--out {args.out} is a file; expected a new folder or the folder of this sweep")
        problem = open_problem(args.source, args.questions.precision)
        console.say(problem.sources)
        check_options(args.questions, problem)
        config = with_methods(args.questions, problem)
        if shard is not None or (merging and not config.methods) or jax.process_index() > 0:
            return problem, config, None
        if not config.methods:
            refuse_other(args.out, nearest_options(problem, None))
        return problem, config, find_nearest(problem, console=console)  # seconds of work: one process does it

    problem, config, found = together(prepare)
    if found is not None:
        from experiments.sweep_attackability.nearest_page import show_nearest

        show_nearest(problem, found, console)
    if args.shards.ray:
        from experiments.sweep_attackability.ray_cluster import solve_on_cluster

        solve_on_cluster(args, args.shards.ray, console=console)
    if config.methods:
        from experiments.sweep_attackability.all_pairs import solve_all

        return solve_all(problem, config, found, args.out, shard=shard, merge=merging, console=console, began=began)
    if shard is not None:
        solve_shard(problem, shard, args.out, console=console)
        return 0
    if merging:
        return merge(problem, args.out, console=console, began=began)
    from experiments.sweep_attackability.nearest_page import cost_sentence, write_all  # plots, which no shard waits for

    cost = estimate_cost(problem, ALL_PAIRS)
    with sweep_folder(args.out, nearest_options(problem, found)) as folder:
        if found is not None:
            try:
                path = write_all(problem, found, cost, folder, seconds=time.monotonic() - began)
            except OSError as error:
                raise cannot_write(folder, error) from error
            console.say(cost_sentence(cost))
            console.say(f"done in {duration(time.monotonic() - began)}; open {path.resolve().as_uri()}")
    return 0


def prepare_jax(args: Args) -> None:
    """Settings of the process that computes."""
    import jax

    from experiments.cli.devices import one_device_a_core, use_compilation_cache

    use_compilation_cache()
    one_device_a_core()
    if args.questions.precision == "float64":
        jax.config.update("jax_enable_x64", True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "sweep_attackability")
    from experiments.cli.devices import join_hosts

    prepare_jax(args)
    join_hosts(args.hosts)
    code = sweep(args)
    print(args.out)
    return code


if __name__ == "__main__":
    run_main(main)
