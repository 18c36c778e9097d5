"""Runs every method on every batch of pairs, in turns."""

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attacks.foolbox import BottleneckModel, foolbox_model
from experiments.attacks.peers import find_peer
from experiments.benchmarks.inversion.figures import compaction, summarise
from experiments.benchmarks.inversion.methods import NEAREST, OURS, split_limit
from experiments.benchmarks.tools.timing import interleaved
from experiments.counterfactuals.find import choose_pairs
from experiments.counterfactuals.options import PairConfig
from experiments.runs.loading import LoadedRun, checksum, load_test_split
from experiments.runs.store import Store
from spectra_jax import attribute_selectivity, image_distances, invert, projection_perturbation, ssim
from spectra_jax.inversion.encoder import as_partial
from spectra_jax.inversion.search import search_step
from spectra_jax.logging import Console

if TYPE_CHECKING:
    from experiments.benchmarks.inversion.__main__ import Args


class Batch(NamedTuple):
    """Images (b, h, w, 3), the classes to reach (or to leave, where not `targeted`), and the attributes to aim at."""

    images: Any
    classes: Any
    wanted: Any
    targeted: bool

    def won(self, model: BottleneckModel, candidates: Any) -> Any:
        """(b,) whether the model says what is asked for."""
        return (jnp.argmax(model(candidates), axis=-1) == self.classes) == self.targeted


def attack(name: str, model: BottleneckModel, batch: Batch, *, least: bool = False) -> dict[str, Any]:
    """Runs one method on one batch, by next to no steps if `least`; what `summarise` needs, one row per pair."""
    if name not in OURS:
        peer = find_peer(name)
        made = (peer.compile if least else peer.run)(model, batch.images, batch.classes, batch.targeted)
        passes = {"forward": made.forward_passes, "backward": made.backward_passes}
        return {"images": made.images} | {key: np.full(len(batch.images), value) for key, value in passes.items()}
    config = OURS[name]
    budgets = jnp.full(len(batch.images), 1 if least else config.max_steps, jnp.int32)
    found = invert(
        model.encode_fn, model.head, batch.images, batch.wanted, batch.classes,
        config=config, max_steps=budgets, targeted=batch.targeted,
    )  # fmt: skip
    return {
        "images": found.images, "images_8bit": found.images_8bit, "forward": found.forward_passes,
        "backward": found.backward_passes, "evaluations": found.num_steps + 1,
        "cosine": attribute_selectivity(found.realised, found.requested).cosine,
    }  # fmt: skip


def measure_batch(name: str, model: BottleneckModel, batch: Batch) -> dict[str, np.ndarray]:
    """Time and quality of one method on one batch."""
    began = time.perf_counter()
    found = jax.block_until_ready(attack(name, model, batch))
    seconds = time.perf_counter() - began
    result = found.pop("images")
    plain = jnp.round(result * 255) / 255
    written = found.pop("images_8bit", plain)
    distances = image_distances(result, batch.images)
    figures = {
        "success": batch.won(model, result), "survives_plain": batch.won(model, plain),
        "survives_written": batch.won(model, written),
        "l2": distances.l2, "linf": distances.linf, "l2_written": image_distances(written, batch.images).l2,
        "ssim": ssim(result, batch.images), "seconds": np.full(len(plain), seconds / len(plain)),
    }  # fmt: skip
    return {key: np.asarray(value) for key, value in (figures | found).items()}


def step_cost(model: BottleneckModel, batch: Batch) -> dict[str, float]:
    """One step of "nearest" over one forward and backward pass of the bare encoder, at that batch."""

    @jax.jit
    def both_passes(encode: Any, images: Any) -> Any:
        attributes, backward = jax.vjp(encode, images)
        return backward(jnp.ones_like(attributes))[0]

    # With the weights as an input, as in the search: XLA would fold constant ones into the program.
    bare = functools.partial(both_passes, as_partial(model.encode_fn))
    step = search_step(model.encode_fn, model.head, batch.images, batch.wanted, batch.classes, config=OURS[NEAREST])
    times = interleaved({"bare": lambda: bare(batch.images), "step": step}, repeats=7)
    return {
        "step_over_bare": times["step"].median / times["bare"].median,
        "bare_ms_a_pair": 1e3 * times["bare"].median / len(batch.images),
        "batch": len(batch.images),
    }


def ssim_error(model: BottleneckModel, batch: Batch) -> float:
    """Largest difference of our SSIM and scikit-image's, on images found by "nearest"."""
    from skimage.metrics import structural_similarity

    found = attack(NEAREST, model, batch)["images"]
    pairs = zip(np.asarray(found, np.float64), np.asarray(batch.images, np.float64), strict=True)
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs = [structural_similarity(a, b, channel_axis=-1, data_range=1.0, **options) for a, b in pairs]
    return float(np.max(np.abs(np.asarray(ssim(found, batch.images)) - np.asarray(theirs))))


def measure(run: LoadedRun, args: "Args", console: Console) -> dict[str, Any]:
    """All figures of one run."""
    attributes, labels, _ = load_test_split(args.run_dir)
    index, target = choose_pairs(run, attributes, labels, PairConfig(num_pairs=args.pairs), seed=args.seed)
    model = foolbox_model(run)
    solve = jax.jit(jax.vmap(functools.partial(projection_perturbation, model.head, margin=jnp.float32(1))))

    @functools.lru_cache(maxsize=1)  # all methods are measured on one batch before the next
    def batch(start: int) -> Batch:
        rows = np.arange(start, start + args.batch_size) % args.pairs  # the last one wraps: one compilation
        pixels = run.dataset.images("test", index[rows], image_size=run.config.image_size)
        images = jnp.asarray(pixels, jnp.float32) / 255
        before = model.attributes(images)
        if args.untargeted:
            return Batch(images, jnp.argmax(model(images), axis=-1).astype(jnp.int32), before, targeted=False)
        targets = jnp.asarray(target[rows], jnp.int32)
        return Batch(images, targets, before + solve(before, targets).delta, targeted=True)

    about = {
        "model": checksum(run, attributes, labels), "backend": jax.default_backend(), "pairs": args.pairs,
        "batch_size": args.batch_size, "seed": args.seed, "targeted": not args.untargeted,
    }  # fmt: skip
    limits = dict(split_limit(name, args.pairs) for name in (*args.our_methods, *args.peers))
    settings = {name: dataclasses.asdict(OURS[name]) if name in OURS else {} for name in limits}  # a peer's: its name
    stores = {name: Store(args.out / "attacks", about | {"config": settings[name]}) for name in limits}
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in limits}
    first = batch(0)
    lanes = min(16 if jax.default_backend() == "cpu" else 256, args.batch_size)
    few = Batch(first.images[:lanes], first.classes[:lanes], first.wanted[:lanes], first.targeted)
    for name in limits:
        attack(name, model, first, least=True)
        if name in OURS and OURS[name].survive_steps:  # which comes after a success only
            attack(name, model, few)
    with console.progress("attacking", args.pairs, unit="pairs") as task:
        for start in range(0, args.pairs, args.batch_size):
            for name, limit in limits.items():
                keep = min(args.batch_size, limit - start)
                if keep <= 0:
                    continue

                def compute(name: str = name, start: int = start) -> dict[str, np.ndarray]:
                    found = measure_batch(name, model, batch(start))
                    return {key: value[: args.pairs - start] for key, value in found.items()}

                kept = stores[name].get(f"{name.replace(' ', '_')}-{start:05d}", compute)
                parts[name].append({key: value[:keep] for key, value in kept.items()})
            task.update(min(start + args.batch_size, args.pairs))
    rows = {n: {key: np.concatenate([part[key] for part in each]) for key in each[0]} for n, each in parts.items()}
    return {
        "methods": summarise(rows),
        "untargeted": args.untargeted,
        "compaction": compaction(rows[NEAREST]["evaluations"], args.batch_size, lanes),
        "step": step_cost(model, few),
        "ssim_error": ssim_error(model, few),
    }
