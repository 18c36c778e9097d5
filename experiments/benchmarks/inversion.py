"""Images that reach a class, against the minimum-norm attacks of Foolbox on the same encoder and pairs."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.cli.command import UserError, check_run_folder, parse, run_main
from experiments.cli.options import Seed
from experiments.counterfactuals.options import InversionOptions
from spectra_jax.logging import Console

if TYPE_CHECKING:
    from experiments.attacks.foolbox import BottleneckModel
    from experiments.runs.loading import LoadedRun

OURS = {
    "spectra_jax nearest": InversionOptions(method="nearest", survive_steps=12),
    "spectra_jax nearest, first found": InversionOptions(method="nearest", refine_steps=0),
    "spectra_jax nearest, refine 2": InversionOptions(method="nearest", survive_steps=12, refine_steps=2),
    "spectra_jax nearest, refine 20": InversionOptions(method="nearest", survive_steps=12, refine_steps=20),
    "spectra_jax gauss_newton": InversionOptions(method="gauss_newton"),
    "spectra_jax adam": InversionOptions(margin=0.2, shrink_steps=8),
    "the paper's loop": InversionOptions(method="gradient_descent", step_size=1.0),
}


@dataclass(frozen=True)
class Args:
    """Inverts pairs of a trained run with every method and attacks the same pairs with Foolbox's DDN and C&W.

    python -m experiments.benchmarks.inversion --run-dir RUN --out DIR
        64 pixels: 5 minutes on 2 CPU cores.
    python -m experiments.benchmarks.inversion --run-dir RUN --out DIR --peers ddn-20 ddn-60:100 cw-5x50:100 \
            --ours "spectra_jax nearest" "spectra_jax nearest, first found"
        224 pixels: 15 minutes, 12 GiB of memory.

    The methods take turns batch by batch, so that a busy machine slows all alike; each is compiled before. What is
    finished is kept in DIR, and a repeated command goes on from there. Foolbox's L2FMNAttack is left out: in version
    3.3.4 its projection divides norms by themselves.

    Attributes:
        run_dir: a run folder of experiments.train.
        out: the folder to write.
        pairs: (image, target) pairs, half with the nearest class as target and half with any.
        batch_size: pairs handed over together, to ours and to Foolbox.
        peers: "ddn-STEPS" or "cw-SEARCHESxSTEPS", with ":PAIRS" to take the first pairs only.
        ours: methods of ours by name, with ":PAIRS" likewise.
        seed: of the choice of pairs.
    """

    run_dir: Path
    out: Path
    pairs: int = 200
    batch_size: int = 100
    peers: tuple[str, ...] = ("ddn-20", "ddn-100", "ddn-300", "cw-5x100:100")
    ours: tuple[str, ...] = field(default_factory=lambda: tuple(OURS))
    seed: Seed = 0

    def check(self) -> None:
        check_run_folder(self.run_dir)


def _split(name: str, most: int) -> tuple[str, int]:

    base, _, limit = name.partition(":")
    return base, int(limit) if limit else most


def _settings(name: str) -> dict[str, Any]:
    """Of one of our searches; a peer's are in its name."""
    return dataclasses.asdict(OURS[name]) if name in OURS else {}


def peer(name: str) -> Any:
    """A Foolbox attack by its short name."""
    from experiments.attacks.foolbox import foolbox

    kind, _, budget = name.partition("-")
    if kind == "ddn":
        return foolbox.attacks.DDNAttack(steps=int(budget))
    searches, steps = (int(part) for part in budget.split("x"))
    return foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=searches, steps=steps)


def attack(
    name: str, model: BottleneckModel, images: Any, targets: Any, wanted: Any, *, least: bool = False
) -> dict[str, Any]:
    """Runs one method on one batch, by one step per pair if `least`; what `summarise` needs, one row per pair."""
    import jax.numpy as jnp

    from experiments.attacks.foolbox import foolbox
    from spectra_jax import attribute_selectivity, invert

    if name in OURS:
        config = OURS[name]
        budgets = jnp.full(len(images), 1 if least else config.max_steps, jnp.int32)
        found = invert(model.encode_fn, model.head, images, wanted, targets, config=config, max_steps=budgets)
        return {
            "images": found.images, "images_8bit": found.images_8bit, "forward": found.forward_passes,
            "backward": found.backward_passes, "evaluations": found.num_steps + 1,
            "cosine": attribute_selectivity(found.realised, found.requested).cosine,
        }  # fmt: skip
    return {"images": peer(name).run(model, images, foolbox.criteria.TargetedMisclassification(targets))}


def measure_batch(name: str, model: BottleneckModel, images: Any, targets: Any, wanted: Any) -> dict[str, np.ndarray]:
    """Time and quality of one method on one batch."""
    import jax
    import jax.numpy as jnp

    from spectra_jax import image_distances, ssim

    began = time.perf_counter()
    found = jax.block_until_ready(attack(name, model, images, targets, wanted))
    seconds = time.perf_counter() - began
    result = found.pop("images")
    plain = jnp.round(result * 255) / 255
    written = found.pop("images_8bit", plain)

    def reaches(candidates: Any) -> Any:
        return jnp.argmax(model(candidates), axis=-1) == targets

    distances = image_distances(result, images)
    figures = {
        "success": reaches(result), "survives_plain": reaches(plain), "survives_written": reaches(written),
        "l2": distances.l2, "linf": distances.linf, "l2_written": image_distances(written, images).l2,
        "ssim": ssim(result, images), "seconds": np.full(len(images), seconds / len(images)),
    }  # fmt: skip
    return {key: np.asarray(value) for key, value in (figures | found).items()}


def summarise(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Figures of one method. A failed pair counts as infinitely far: failures stay in every denominator."""

    won = rows["success"]
    figures = {
        "pairs": len(won),
        "success": float(won.mean()),
        "l2_median": float(np.median(np.where(won, rows["l2"], np.inf))),
        "l2_written_median": float(np.median(np.where(rows["survives_written"], rows["l2_written"], np.inf))),
        "linf_median": float(np.median(np.where(won, rows["linf"], np.inf))),
        "ssim_median": float(np.median(rows["ssim"][won])) if won.any() else float("nan"),
        "survives_plain": float((won & rows["survives_plain"]).sum() / max(won.sum(), 1)),
        "survives_written": float((won & rows["survives_written"]).sum() / max(won.sum(), 1)),
        "ms_a_pair": 1e3 * float(rows["seconds"].mean()),
    }
    if "forward" in rows:
        figures |= {
            "forward_passes": float(rows["forward"].mean()),
            "backward_passes": float(rows["backward"].mean()),
            "cosine_median": float(np.nanmedian(rows["cosine"])),
        }
    return figures


def step_cost(model: BottleneckModel, images: Any, targets: Any, wanted: Any) -> dict[str, float]:
    """One step of "nearest" over one forward and backward pass of the bare encoder, at that batch."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks.tools.timing import interleaved
    from spectra_jax.inversion.encoder import as_partial
    from spectra_jax.inversion.search import search_step

    @jax.jit
    def both_passes(encode: Any, images: Any) -> Any:
        attributes, backward = jax.vjp(encode, images)
        return backward(jnp.ones_like(attributes))[0]

    # With the weights as an input, as in the search: XLA would fold constant ones into the program.
    bare = functools.partial(both_passes, as_partial(model.encode_fn))

    step = search_step(model.encode_fn, model.head, images, wanted, targets, config=OURS["spectra_jax nearest"])
    times = interleaved({"bare": lambda: bare(images), "step": step}, repeats=7)
    return {
        "step_over_bare": times["step"].median / times["bare"].median,
        "bare_ms_a_pair": 1e3 * times["bare"].median / len(images),
        "batch": len(images),
    }


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


def ssim_error(model: BottleneckModel, images: Any, targets: Any, wanted: Any) -> float:
    """Largest difference of our SSIM and scikit-image's, on images found by "nearest"."""
    from skimage.metrics import structural_similarity

    from spectra_jax import invert, ssim

    found = invert(model.encode_fn, model.head, images, wanted, targets, config=OURS["spectra_jax nearest"])
    pairs = zip(np.asarray(found.images, np.float64), np.asarray(images, np.float64), strict=True)
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs = [structural_similarity(a, b, channel_axis=-1, data_range=1.0, **options) for a, b in pairs]
    return float(np.max(np.abs(np.asarray(ssim(found.images, images)) - np.asarray(theirs))))


def measure(run: LoadedRun, args: Args, console: Console) -> dict[str, Any]:
    """All figures of one run."""
    import jax
    import jax.numpy as jnp

    from experiments.attacks.foolbox import foolbox_model
    from experiments.counterfactuals.find import choose_pairs
    from experiments.counterfactuals.options import PairConfig
    from experiments.runs.loading import checksum, load_test_split
    from experiments.runs.store import Store
    from spectra_jax import projection_perturbation

    attributes, labels, _ = load_test_split(args.run_dir)
    index, target = choose_pairs(run, attributes, labels, PairConfig(num_pairs=args.pairs), seed=args.seed)
    model = foolbox_model(run)
    solve = jax.jit(jax.vmap(functools.partial(projection_perturbation, model.head, margin=jnp.float32(1))))

    @functools.lru_cache(maxsize=1)  # all methods are measured on one batch before the next
    def batch(start: int) -> tuple[Any, Any, Any]:
        rows = np.arange(start, start + args.batch_size) % args.pairs  # the last one wraps: one compilation
        pixels = run.dataset.images("test", index[rows], image_size=run.config.image_size)
        images, targets = jnp.asarray(pixels, jnp.float32) / 255, jnp.asarray(target[rows], jnp.int32)
        before = model.attributes(images)
        return images, targets, before + solve(before, targets).delta

    about = {
        "model": checksum(run, attributes, labels), "backend": jax.default_backend(), "pairs": args.pairs,
        "batch_size": args.batch_size, "seed": args.seed,
    }  # fmt: skip
    limits = dict(_split(name, args.pairs) for name in (*args.ours, *args.peers))
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in limits}
    stores = {name: Store(args.out / "attacks", about | {"config": _settings(name)}) for name in limits}
    first = batch(0)
    lanes = min(16 if jax.default_backend() == "cpu" else 256, args.batch_size)
    few = jax.tree.map(lambda column: column[:lanes], first)
    for name in OURS.keys() & limits.keys():  # compile, by one step per pair
        attack(name, model, *first, least=True)
        if OURS[name].survive_steps:  # which comes after a success only
            attack(name, model, *few)
    for least in {"ddn-2" if name.startswith("ddn") else "cw-1x2" for name in limits.keys() - OURS.keys()}:
        attack(least, model, *first)
    with console.progress("attacking", args.pairs, unit="pairs") as task:
        for start in range(0, args.pairs, args.batch_size):
            for name, limit in limits.items():
                keep = min(args.batch_size, limit - start)
                if keep <= 0:
                    continue

                def compute(name: str = name, start: int = start) -> dict[str, np.ndarray]:
                    found = measure_batch(name, model, *batch(start))
                    return {key: value[: args.pairs - start] for key, value in found.items()}

                kept = stores[name].get(f"{name.replace(' ', '_')}-{start:05d}", compute)
                parts[name].append({key: value[:keep] for key, value in kept.items()})
            task.update(min(start + args.batch_size, args.pairs))
    rows = {n: {key: np.concatenate([part[key] for part in each]) for key in each[0]} for n, each in parts.items()}
    figures: dict[str, Any] = {name: summarise(each) for name, each in rows.items()}
    # A method on fewer pairs is compared with ours on the same ones.
    for name, limit in limits.items():
        if limit < args.pairs and name not in OURS:
            same = {key: value[:limit] for key, value in rows["spectra_jax nearest"].items()}
            there = summarise(same)
            figures[name] |= {f"nearest_{key}_there": there[key] for key in ("l2_median", "ms_a_pair", "success")}
    figures["compaction"] = compaction(rows["spectra_jax nearest"]["evaluations"], args.batch_size, lanes)
    figures["step"] = step_cost(model, *few)
    figures["ssim_error"] = ssim_error(model, *few)
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""

    heading = ("method", "pairs", "success", "median L2", "successes after 8 bits: rounded / as written",
               "median L2 as written", "median SSIM",
               "ms per pair", "passes forward / backward", "cosine to delta, all pairs")  # fmt: skip
    lines = [heading, ("---",) * len(heading)]
    for name, each in figures.items():
        if not isinstance(each, dict) or "success" not in each:
            continue
        there, time_there = "", ""
        if "nearest_l2_median_there" in each:
            there = f" (nearest there: {each['nearest_l2_median_there']:.3f})"
            time_there = f" (nearest there: {each['nearest_ms_a_pair_there']:.1f})"
        passes = f"{each['forward_passes']:.1f} / {each['backward_passes']:.1f}" if "forward_passes" in each else ""
        lines.append((
            name, str(each["pairs"]), f"{each['success']:.1%}", f"{each['l2_median']:.3f}{there}",
            f"{each['survives_plain']:.1%} / {each['survives_written']:.1%}", f"{each['l2_written_median']:.3f}",
            f"{each['ssim_median']:.4f}",
            f"{each['ms_a_pair']:.1f}{time_there}", passes,
            f"{each['cosine_median']:.2f}" if "cosine_median" in each else "",
        ))  # fmt: skip
    step, packed = figures["step"], figures["compaction"]
    steps = f"{packed['batch_steps_refilled']} steps when refilled and {packed['batch_steps_lockstep']} in lockstep"
    notes = (
        f"One step of nearest costs {step['step_over_bare']:.2f} bare forward and backward passes (batch "
        f"{step['batch']}). By the steps each pair needs, {packed['lanes']} lanes make {steps}. "
        f"SSIM differs from scikit-image by {figures['ssim_error']:.1e} at most."
    )
    return "\n".join([*(" | ".join(("", *line, "")).strip() for line in lines), "", notes]) + "\n"


def _check_names(args: Args) -> None:

    for name in args.ours:
        if _split(name, args.pairs)[0] not in OURS:
            raise UserError(f"--ours {name!r}: choose from {', '.join(map(repr, OURS))}")
    for name in (*args.ours, *args.peers):
        base, _, limit = name.partition(":")
        if limit and not (limit.isdecimal() and 0 < int(limit) <= args.pairs):
            raise UserError(f"{name!r}: what follows the colon is a number of pairs, from 1 to --pairs {args.pairs}")
        if name in args.peers and not re.fullmatch(r"ddn-[1-9]\d*|cw-[1-9]\d*x[1-9]\d*", base):
            raise UserError(f"--peers {name!r}: expected ddn-STEPS or cw-SEARCHESxSTEPS, for example cw-5x100:50")
    if "spectra_jax nearest" not in args.ours:
        raise UserError('--ours: "spectra_jax nearest" must be there, for all pairs; the peers are compared with it')


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks.inversion")
    from experiments.cli.devices import use_compilation_cache
    from experiments.runs.folder import owned_folder
    from experiments.runs.loading import load_run
    from spectra_jax.reporting.page import write_atomically

    use_compilation_cache()
    _check_names(args)
    run = load_run(args.run_dir)
    with owned_folder(args.out, "experiments.benchmarks.inversion", {"run": str(args.run_dir)}) as out:
        figures = measure(run, args, Console())
        write_atomically(out / "inversion.json", json.dumps(figures, indent=1) + "\n")
        write_atomically(out / "table.md", table(figures))
    print(table(figures))
    return 0


if __name__ == "__main__":
    run_main(main)
