"""The command line that the benchmarks share."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experiments.cli.command import parse


class BenchmarkArgs(Protocol):
    """Options of a benchmark: where to write its figures, besides its own."""

    @property
    def out(self) -> Path | None: ...


ArgsT = TypeVar("ArgsT", bound=BenchmarkArgs)


def run(
    name: str, options: type[ArgsT], measure: Callable[[ArgsT], Mapping[str, Any]], arguments: Sequence[str] | None
) -> int:
    """Reads the options, measures, and writes the figures where --out says."""
    args = parse(options, arguments, f"benchmarks.{name}")
    from experiments.cli.devices import one_device_a_core
    from spectra_jax.reporting.page import write_atomically

    one_device_a_core()
    figures = measure(args)
    if args.out is not None:
        write_atomically(args.out, json.dumps(figures, indent=1) + "\n")
    return 0
