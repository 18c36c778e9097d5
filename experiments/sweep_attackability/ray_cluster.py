"""A sweep in shards on a Ray cluster, which restarts a shard whose worker was lost."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.command import UserError
from experiments.sweep_attackability.options import ShardConfig
from spectra_jax.array_sources import url_of
from spectra_jax.extras import extra
from spectra_jax.logging import Console

if TYPE_CHECKING:
    from experiments.sweep_attackability.__main__ import Args

ROOT = Path(__file__).resolve().parents[2]
# How often a shard begins again whose worker died. Errors of the input are not repeated.
RETRIES = 20


def solve_on_cluster(args: Args, num_shards: int, *, console: Console) -> None:
    """Answers all shards of a sweep on the cluster of RAY_ADDRESS, or on one that it starts on this machine.

    A shard takes one core. All workers must see the files of the sweep, and this clone, under the same paths.

    Args:
        args: of the sweep.
        num_shards: shares of the samples.
        console: shows the progress.

    Raises:
        MissingLibraryError: Ray is not installed.
        UserError: there is no such cluster, or a shard cannot be answered.
    """
    with extra("ray"):
        import ray

    here = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    try:
        with warnings.catch_warnings():  # its children start another program at once, which JAX cannot know
            warnings.filterwarnings("ignore", r"os\.fork", RuntimeWarning)
            ray.init(
                runtime_env={"env_vars": here},
                log_to_driver=False,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError) as error:
        raise UserError(f"The Ray cluster of RAY_ADDRESS cannot be reached ({error}).") from error
    try:
        solve = ray.remote(num_cpus=1, max_retries=RETRIES)(_solve)
        absolute = _with_whole_paths(args)
        waiting = [
            solve.remote(dataclasses.replace(absolute, shards=ShardConfig(shard=f"{number}/{num_shards}")))
            for number in range(num_shards)
        ]
        with console.progress("answering shards", num_shards) as task:
            while waiting:
                finished, waiting = ray.wait(waiting)
                ray.get(finished)
                task.update(num_shards - len(waiting))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise UserError(f"A shard lost its worker {RETRIES + 1} times; finished shards are kept ({error}).") from error
    finally:
        ray.shutdown()


def _solve(args: Args) -> None:
    """One shard, in a process of the cluster."""
    from experiments.sweep_attackability.__main__ import prepare_jax, sweep

    prepare_jax(args)
    sweep(args)


def _with_whole_paths(args: Args) -> Args:
    """The same sweep for a process in another folder; it says nothing."""
    source: dict[str, Any] = {
        name: value.absolute() if isinstance(value, Path) and url_of(value) is None else value
        for name, value in vars(args.source).items()
    }
    return dataclasses.replace(
        args, out=args.out.absolute(), source=dataclasses.replace(args.source, **source), quiet=True
    )
