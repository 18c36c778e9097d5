"""How every command begins and ends: arguments are read and checked before anything heavy is imported."""

import dataclasses
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from data_prep.commands import ended
from spectra_jax.extras import MissingLibraryError

_T = TypeVar("_T")


class UserError(Exception):
    """A mistake in what was asked for; shown as one message, without a traceback."""


def parse(
    options: type[_T],
    arguments: Sequence[str] | None,
    name: str,
    *,
    default: Callable[[Sequence[str]], _T] | None = None,
) -> _T:
    """The options of `python -m experiments.NAME`, checked as far as that needs no work.

    Groups of options that name files have a method `check`, which raises UserError where one is not there. `default`
    makes the defaults from the words of the command line, where one option decides those of others.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    given: dict[str, Any] = {} if default is None else {"default": default(words)}
    args = tyro.cli(options, args=words, prog=f"python -m experiments.{name}", **given)
    _check(args)
    return args


def command(
    options: type[_T],
    name: str,
    work: Callable[[_T], Path | tuple[Path, int] | None],
    *,
    default: Callable[[Sequence[str]], _T] | None = None,
) -> Callable[[Sequence[str] | None], int]:
    """The `main` of `python -m experiments.NAME`: from the words of the command line to its exit code.

    Args:
        options: what `parse` reads.
        name: of the command.
        work: does it; returns the path to print, alone or with an exit code.
        default: see `parse`.
    """

    def main(arguments: Sequence[str] | None = None) -> int:
        args = parse(options, arguments, name, default=default)
        from experiments.cli.devices import join_hosts, use_compilation_cache
        from spectra_jax.checkpoint import CheckpointError
        from spectra_jax.training import NonFiniteError

        use_compilation_cache()
        if hasattr(args, "hosts"):
            join_hosts(args.hosts)
        try:
            done = work(args)
        except (NonFiniteError, CheckpointError) as error:
            raise UserError(str(error)) from error
        path, code = done if isinstance(done, tuple) else (done, 0)
        if path is not None:
            print(path)
        return code

    return main


def _check(options: Any) -> None:
    if getattr(getattr(options, "hosts", None), "several", False):
        return  # one that ended before it has joined would leave the others waiting: they check together
    if hasattr(options, "check"):
        options.check()
    for setting in dataclasses.fields(options):
        value = getattr(options, setting.name)
        if dataclasses.is_dataclass(value):
            _check(value)


def check_run_folder(run_dir: Path) -> None:
    """Raises UserError unless there is a run folder."""
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir} is not a run folder: it has no config.json. Train a run with experiments.train.")


def check_file(option: str, path: Path | None) -> None:
    """Raises UserError where a file is named that is not there."""
    if path is not None and not path.exists():
        raise UserError(f"--{option} {path}: there is no such file.")


def run_main(main: Callable[..., int]) -> None:
    """Runs a script's `main`: what its user can mend is one message and exit code 2, Ctrl-C exit code 130."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns about options that we set on purpose
    sys.unraisablehook = _show_unraisable
    sys.exit(ended(main, UserError, MissingLibraryError))


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows what Python cannot raise, but for the reads that orbax had begun when it found a checkpoint damaged."""
    if str(unraisable.exc_value) != "Event loop is closed" and not inspect.iscoroutine(unraisable.object):
        sys.__unraisablehook__(unraisable)
