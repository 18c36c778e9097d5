"""Every benchmark of the geometry, and the table of README made from them."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks import (
    attackability,
    constraints,
    pinv,
    projection,
    single_attribute,
    sweep_growth,
    sweep_kills,
)
from experiments.cli.command import check_run_folder, parse, run_main


@dataclass(frozen=True)
class Args:
    """Runs the benchmarks one after another and writes benchmarks.json and table.md.

    python -m experiments.benchmarks --run-dir runs/efficientnet_lite0-cub-seed0 --out runs/benchmarks
        the table of README; about 12 minutes on 2 free CPU cores. Nothing else should run meanwhile.

    Attributes:
        out: the folder to write to.
        run_dir: a run folder of experiments.train, for the rows on a trained head; without it there are no such rows.
    """

    out: Path
    run_dir: Path | None = None

    def check(self) -> None:
        if self.run_dir is not None:
            check_run_folder(self.run_dir)


def times(figures: dict[str, Any], name: str) -> str:
    """median (smallest - largest)."""
    median, low, high = (figures[f"{name}/{part}_us"] for part in ("median", "low", "high"))
    return f"{median:,.3g} ({low:,.3g} - {high:,.3g}) us"


def projection_row(what: str, figures: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    error = max(figures[f"{name}/norm_error"] for name in (projection.ONE, projection.ALL))
    double, peer = figures["spectra_jax, float64/norm_error"], figures["best_peer"]
    agreement = f"{error:.0e} (float32), {double:.0e} (float64); KKT residual {figures['residual']:.0e}"
    ours = f"{times(figures, projection.ALL)} on {figures['devices']} devices, one per core; "
    ours += f"{times(figures, projection.ONE)} on one"
    factor = f"{figures['speed_up']:.1f}; {figures['speed_up_one_device']:.1f} on one"
    return what, ours, f"{peer}: {times(figures, peer)}", factor, agreement


def single_row(what: str, figures: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    agreement = f"{figures['same']} of {figures['compared']} choices and changes the same to the last bit"
    theirs = f"NumPy, all crossings: {times(figures, 'numpy')}"
    return what, f"{times(figures, 'walk')} a sample", f"{theirs} a sample", f"{figures['speed_up']:,.0f}", agreement


def constraint_rows(what: str, figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each kind of constraint."""
    rows: list[tuple[str, ...]] = []
    for name in figures["names"][1:]:
        low, median, high = (figures[f"{name}/{part}_s"] for part in ("low", "median", "high"))
        gap = figures[f"{name}/gap_max"]
        said = (
            f"{figures[f'{name}/solved']} of {figures['pairs']} solved, KKT residual {figures[f'{name}/residual']:.0e}"
        )
        said += "" if gap is None else f", proven within {gap:.1g} of the shortest"
        longer = f"{figures[f'{name}/over_projection_median']:.2f} times as long as without"
        rows.append(
            (f"{name}, {what}, one call", f"{median:.2g} ({low:.2g} - {high:.2g}) s", "none", "", f"{said}; {longer}")
        )
    return rows


def growth_rows(args: sweep_growth.Args, figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Ten times the samples, and twice the classes twice."""
    small, large, *more = (sweep_growth.Growth(**row) for row in figures["rows"])
    ways = f"{small.seconds:.1f} -> {large.seconds:.1f} s, {small.megabytes:.0f} -> {large.megabytes:.0f} MB"
    times, memory = figures["time_of_ten_times"], figures["memory_of_ten_times"]
    what = f"sweep of {small.samples:,} -> {large.samples:,} samples, {small.classes} classes, {args.attributes} wide"
    rows = [(what, ways, "", "", f"{times:.1f} times the time, {memory:.2f} times the memory")]
    what = " -> ".join(str(row.classes) for row in (small, *more))
    ways = " -> ".join(f"{row.seconds:.1f}" for row in (small, *more)) + " s"
    powers = ", then ".join(f"{exponent:.2f}" for exponent in figures["exponents"])
    return [*rows, (f"{what} classes, {small.samples:,} samples", ways, "", "", f"time grows to the power {powers}")]


def measure(args: Args) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """All figures by benchmark, and the lines of the table."""
    figures: dict[str, Any] = {}
    rows = []
    heads: list[tuple[str, Path | None]] = [("random head", None)]
    if args.run_dir is not None:
        heads.append(("trained head", args.run_dir))
    for name, run_dir in heads:
        figures[f"projection, {name}"] = projection.measure(projection.Args(run_dir=run_dir))
        rows.append(projection_row(f"projection, {name}, per pair", figures[f"projection, {name}"]))
    found = figures["pinv"] = pinv.measure(pinv.Args())
    peer = "numpy.linalg.pinv, pair by pair"
    error = f"{found['spectra_jax, all pairs/norm_error']:.0e} of float64"
    pair_times = times(found, "spectra_jax, all pairs"), f"{peer}: {times(found, peer)}"
    rows.append(("pinv, per pair", *pair_times, f"{found['speed_up']:,.0f}", error))
    for name, run_dir in heads:
        found = single_attribute.measure(single_attribute.Args(run_dir=run_dir))
        figures[f"single attribute, {name}"] = found
        rows.append(single_row(f"best single attribute, {name}", found))
    found = figures["attackability"] = attackability.measure(attackability.Args())
    ours, product = (f"{found[f'{name}/median_s']:.2f} s" for name in ("attackability", "product"))
    error = f"relative margin within {found['largest_margin_error']:.0e} of float64"
    cost = f"{1 / found['products']:.2f} (costs {found['products']:.2f} products)"
    rows.append(("attackability, 50,000 x 1,000 x 2,048", ours, f"one matrix product: {product}", cost, error))
    name, run_dir = heads[-1]
    found = figures["constraints"] = constraints.measure(constraints.Args(run_dir=run_dir))
    rows += constraint_rows(name, found)
    growth = sweep_growth.Args()
    found = figures["growth"] = sweep_growth.measure(growth)
    rows += growth_rows(growth, found)
    kills = sweep_kills.Args()
    found = figures["kills"] = sweep_kills.measure(kills)
    differing = ", ".join(found["differing"]) or "none: identical Parquet content"
    what = f"sweep killed {kills.kills} times at random moments, {kills.files} files"
    rows.append((what, f"{found['finished_by_killed']} files written by killed sweeps", "one uninterrupted sweep", "",
                 f"tables that differ: {differing}"))  # fmt: skip
    return figures, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks")
    from experiments.cli.devices import one_device_a_core
    from spectra_jax.reporting.page import write_atomically
    from spectra_jax.reporting.provenance import device, versions

    one_device_a_core()
    figures, rows = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    heading = ("what", "spectra_jax", "best peer", "times faster", "agreement")
    lines = [" | ".join(("", *row, "")).strip() for row in (heading, ("---",) * len(heading), *rows)]
    hardware = f"{os.cpu_count()} cores, {platform.machine()}, {device()}, {versions()}"
    figures["hardware"] = hardware
    write_atomically(args.out / "benchmarks.json", json.dumps(figures, indent=1) + "\n")
    write_atomically(args.out / "table.md", "\n".join([*lines, "", f"Measured on {hardware}."]) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_main(main)
