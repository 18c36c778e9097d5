"""The figures of the methods, computed from a row per pair, and their table."""

from typing import Any

import numpy as np

from experiments.benchmarks.inversion.methods import NEAREST, OURS


def summarise(rows: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Figures of all methods: those of each, how near it comes to the best of all, and those of ours on its pairs."""
    lengths = {name: np.where(each["success"], each["l2"], np.inf) for name, each in rows.items()}
    most = max(map(len, lengths.values()))
    shortest = np.min(
        [np.pad(each, (0, most - len(each)), constant_values=np.inf) for each in lengths.values()], axis=0
    )
    figures = {name: method_figures(each) for name, each in rows.items()}
    for name, each in lengths.items():
        figures[name]["optimality"] = optimality(each, shortest[: len(each)])
        if len(each) < most:
            there = method_figures({key: value[: len(each)] for key, value in rows[NEAREST].items()})
            figures[name] |= {f"nearest_{key}_there": there[key] for key in ("l2_median", "ms_a_pair", "success")}
    return figures


def method_figures(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Figures of one method. A failed pair counts as infinitely far: failures stay in every denominator."""
    won = rows["success"]
    return {
        "pairs": len(won),
        "success": float(won.mean()),
        "l2_median": float(np.median(np.where(won, rows["l2"], np.inf))),
        "l2_written_median": float(np.median(np.where(rows["survives_written"], rows["l2_written"], np.inf))),
        "linf_median": float(np.median(np.where(won, rows["linf"], np.inf))),
        "ssim_median": float(np.median(rows["ssim"][won])) if won.any() else float("nan"),
        "survives_plain": float((won & rows["survives_plain"]).sum() / max(won.sum(), 1)),
        "survives_written": float((won & rows["survives_written"]).sum() / max(won.sum(), 1)),
        "ms_a_pair": 1e3 * float(rows["seconds"].mean()),
        "forward_passes": float(rows["forward"].mean()),
        "backward_passes": float(rows["backward"].mean()),
        "cosine_median": float(np.nanmedian(rows["cosine"])) if "cosine" in rows else float("nan"),
    }


def optimality(lengths: np.ndarray, shortest: np.ndarray) -> float:
    """Local optimality of AttackBench (Cina et al., 2024): the area above a method's robust-accuracy curve over that
    above the curve of the shortest changes found by anybody, up to the radius at which the latter is down to 0.

    Args:
        lengths, shortest: (pairs,) inf where nothing was found.
    """
    reached = shortest[np.isfinite(shortest)]
    if not len(reached) or reached.max() == 0:
        return float("nan")
    area, most = (np.maximum(reached.max() - each, 0).sum() for each in (lengths, shortest))
    return float(area / most) if most else float("nan")


def compaction(evaluations: np.ndarray, batch_size: int, lanes: int) -> dict[str, int]:
    """Steps of all lanes with and without refilling, worked out from the steps each pair needs, batch by batch."""
    refilled = lockstep = 0
    for start in range(0, len(evaluations), batch_size):
        batch = evaluations[start : start + batch_size]
        free = np.zeros(min(lanes, len(batch)), int)  # when each lane is done with what it has
        for need in batch:
            free[free.argmin()] += need
        refilled += int(free.max())
        lockstep += sum(int(batch[at : at + lanes].max()) for at in range(0, len(batch), lanes))
    return {"lanes": lanes, "batch_steps_refilled": refilled, "batch_steps_lockstep": lockstep}


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    heading = ("method", "pairs", "success", "median L2", "optimality", "passes forward / backward", "ms per pair",
               "successes after 8 bits: rounded / as written", "median L2 as written", "median SSIM",
               "cosine to delta, all pairs")  # fmt: skip
    lines = [heading, ("---",) * len(heading)]
    for name, each in figures["methods"].items():
        length_there = time_there = ""
        if "nearest_l2_median_there" in each:
            length_there = f" (nearest there: {each['nearest_l2_median_there']:.3f})"
            time_there = f" (nearest there: {each['nearest_ms_a_pair_there']:.1f})"
        aims = name in OURS and not figures["untargeted"]
        lines.append((
            name, str(each["pairs"]), f"{each['success']:.1%}", f"{each['l2_median']:.3f}{length_there}",
            f"{each['optimality']:.3f}", f"{each['forward_passes']:.1f} / {each['backward_passes']:.1f}",
            f"{each['ms_a_pair']:.1f}{time_there}",
            f"{each['survives_plain']:.1%} / {each['survives_written']:.1%}", f"{each['l2_written_median']:.3f}",
            f"{each['ssim_median']:.4f}", f"{each['cosine_median']:.2f}" if aims else "",
        ))  # fmt: skip
    step, packed = figures["step"], figures["compaction"]
    steps = f"{packed['batch_steps_refilled']} steps when refilled and {packed['batch_steps_lockstep']} in lockstep"
    notes = (
        f"One step of nearest costs {step['step_over_bare']:.2f} bare forward and backward passes (batch "
        f"{step['batch']}). By the steps each pair needs, {packed['lanes']} lanes make {steps}. "
        f"SSIM differs from scikit-image by {figures['ssim_error']:.1e} at most."
    )
    return "\n".join([*(" | ".join(("", *line, "")).strip() for line in lines), "", notes]) + "\n"
