"""The cost of certificates, and whether any attack gets below them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from experiments.cli.command import UserError, check_run_folder, parse, run_main
from experiments.cli.options import Seed
from spectra_jax.logging import Console, write_json

if TYPE_CHECKING:
    from experiments.runs.loading import LoadedRun

BATCH = 64


@dataclass(frozen=True)
class Args:
    """Times a certified run's training step and certificates, and attacks it within the certified distances.

    python -m experiments.benchmarks.certificates --run-dir runs/lipschitz_cnn-synthetic-seed0
        half an hour on 2 CPU cores.

    The training step is timed in turns with that of the same network whose rescalings are all 1, which is a plain
    residual network of the same shapes. Attacks look for every class other than the predicted one
    within its own certified distance of the image: by projected gradient steps of three lengths on the lead of the
    target, from the image and from a random start. A crossing is an image within the distance that is named as the
    target, in float32 or in float64.

    Attributes:
        run_dir: the run folder of a finished training of lipschitz_cnn.
        num_images: number of test images to attack, towards every class.
        steps: gradient steps of each attack.
        repeats: timings of each kind.
        seed: seed of the random starts.
        out: also write the figures to this JSON file.
    """

    run_dir: Path
    num_images: int = 64
    steps: int = 10
    repeats: int = 7
    seed: Seed = 0
    out: Path | None = None

    def check(self) -> None:
        check_run_folder(self.run_dir)


def certificates(args: Args) -> dict[str, Any]:
    """All figures."""
    from experiments.runs.loading import load_run

    loaded = load_run(args.run_dir)
    if not loaded.has_proof:
        raise UserError(f"--run-dir {args.run_dir}: nothing is proven of its model, {loaded.model.name}")
    return step_cost(loaded, args) | certificate_cost(loaded, args) | operator_norms(loaded) | crossings(loaded, args)


def operator_norms(loaded: LoadedRun) -> dict[str, float]:
    """The largest norm of a Jacobian that power iteration finds, of the run's network and of random ones."""
    import jax
    import jax.numpy as jnp

    from spectra_jax.certificates import in_float64

    size, random = loaded.config.image_size, np.random.default_rng(0)
    with jax.enable_x64(True):

        @jax.jit
        def norm(params: Any, x: Any, direction: Any) -> Any:
            def encode(one: Any) -> Any:
                return loaded.model.encode(params, one[None])[0]

            def step(_: int, direction: Any) -> Any:
                ahead = jax.jvp(encode, (x,), (direction / jnp.linalg.norm(direction),))[1]
                return jax.vjp(encode, x)[1](ahead)[0]

            direction = jax.lax.fori_loop(0, 30, step, direction)
            return jnp.linalg.norm(jax.jvp(encode, (x,), (direction / jnp.linalg.norm(direction),))[1])

        def largest(params: Any, count: int) -> float:
            exact = in_float64(loaded.model, params)
            starts = jnp.asarray(random.normal(size=(count, size, size, 3)))
            images = jnp.asarray(pictures(loaded, count), jnp.float64)
            return max(float(norm(exact, x, start)) for x, start in zip(images, starts, strict=True))

        def drawn(seed: int) -> Any:
            fresh = loaded.model.init(jax.random.key(seed), (size, size, 3))
            bend = 10.0 ** random.uniform(-2, 0.5)
            return jax.tree.map(lambda leaf: np.asarray(leaf) + bend * random.normal(size=leaf.shape), fresh)

        trained = largest(loaded.params, 8)
        others = max(largest(drawn(seed), 1) for seed in range(19))
    print(f"largest norm of a Jacobian: {trained:.4f} trained, {others:.4f} in 19 random networks")
    return {"operator_norm": trained, "operator_norm_random": others}


def step_cost(loaded: LoadedRun, args: Args) -> dict[str, float]:
    """A training step beside that of a plain network of the same shapes."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks.tools.timing import interleaved
    from spectra_jax.training import init_state, make_optimizer, make_train_step
    from spectra_jax.types import Batch

    config, info, size = loaded.config, loaded.info, loaded.config.image_size
    images = jnp.asarray(pictures(loaded, config.batch_size))
    batch = Batch(images, jnp.zeros((len(images), info.num_attributes)), jnp.zeros(len(images), jnp.int32),
                  jnp.ones(len(images), bool))  # fmt: skip
    optimizer = make_optimizer(loaded.model, config, 1000)
    fresh = loaded.model.init(jax.random.key(0), (size, size, 3))
    states = {kind: init_state(loaded.model, optimizer, fresh, jax.random.key(1)) for kind in ("certified", "plain")}
    steps = {kind: make_train_step(loaded.model, optimizer, config) for kind in states}

    def take(kind: str) -> Any:
        states[kind], metrics = steps[kind](jax.tree.map(jnp.copy, states[kind]), batch)
        return metrics

    with mock.patch("spectra_jax.models._lipschitz.rescale", lambda kernel, log_weight: jnp.ones_like(log_weight)):
        take("plain")  # compiled here, once and for all
    times = interleaved({kind: functools.partial(take, kind) for kind in states}, repeats=args.repeats)
    print(f"training step: {times['certified'].text(1)} s, plain {times['plain'].text(1)} s")
    return {"step_over_plain": times["certified"].median / times["plain"].median}


def certificate_cost(loaded: LoadedRun, args: Args) -> dict[str, float]:
    """Certificates of encoded images beside the encoding of these images in float32, and in float64."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks.tools.timing import interleaved
    from spectra_jax import certified_radius
    from spectra_jax.certificates import encode_exactly

    images, forward = pictures(loaded, 64), jax.jit(loaded.model.encode)
    proven = encode_exactly(loaded.model, loaded.params, images, batch_size=64)
    calls = {
        "forward": lambda: forward(loaded.params, jnp.asarray(images)),
        "radius": lambda: (
            certified_radius(
                proven.head, proven.attributes, lipschitz=proven.lipschitz, rounding=proven.rounding
            ).radius
        ),
        "everything": lambda: encode_exactly(loaded.model, loaded.params, images, batch_size=64).attributes,
    }
    times = interleaved(calls, repeats=args.repeats)
    print("64 images: " + ", ".join(f"{name} {timing.text(1e-3)} ms" for name, timing in times.items()))
    return {
        "radius_over_forward": times["radius"].median / times["forward"].median,
        "everything_over_forward": times["everything"].median / times["forward"].median,
        "lipschitz": proven.lipschitz,
        "rounding": proven.rounding,
    }


def crossings(loaded: LoadedRun, args: Args) -> dict[str, float]:
    """Attacks within the certified distances."""
    import jax
    import jax.numpy as jnp

    from spectra_jax import certify
    from spectra_jax.certificates import in_float64

    images, classes = pictures(loaded, args.num_images), loaded.info.num_classes
    targets = np.tile(np.arange(classes, dtype=np.int32), (len(images), 1))
    certificate = certify(loaded.model, loaded.params, images, targets=targets)
    rows, goals = np.nonzero(targets != certificate.answer[:, None])
    attacked = crossed = 0
    kinds = [(length, noisy) for length in (1.0, 0.3, 0.1) for noisy in (False, True)]
    walk = jax.jit(functools.partial(largest_lead, loaded.model, steps=args.steps))
    with Console().progress("attacking", 2 * len(rows) * len(kinds), unit="attacks") as task:
        for dtype in (np.float32, np.float64):
            with jax.enable_x64(dtype is np.float64):
                params = in_float64(loaded.model, loaded.params) if dtype is np.float64 else loaded.params
                for start in range(0, len(rows), BATCH):
                    part = np.resize(np.arange(start, min(start + BATCH, len(rows))), BATCH)
                    x, goal, count = images[rows[part]], goals[part].astype(np.int32), min(BATCH, len(rows) - start)
                    radius = certificate.radius[rows[part], goals[part]]
                    noise = np.random.default_rng([args.seed, start]).normal(size=x.shape)
                    noise *= (radius / np.linalg.norm(noise.reshape(BATCH, -1), axis=1))[:, None, None, None]
                    for length, noisy in kinds:
                        given = (jnp.asarray(each, dtype) for each in (x, radius, noise * noisy, length * radius))
                        lead = walk(params, jnp.asarray(goal), *given)
                        crossed += int((np.asarray(lead)[:count] > 0).sum())
                        attacked += count
                        task.update(attacked, f"{crossed} crossings")
    print(f"{attacked:,} attacks within the certified distance, {crossed} crossings")
    return {"attacks": float(attacked), "crossings": float(crossed)}


def largest_lead(
    model: Any, params: Any, goal: Any, x: Any, radius: Any, change: Any, length: Any, *, steps: int
) -> Any:
    """The largest lead of the targets over their rivals on a walk of gradient steps within the radius.

    Args:
        model, params: the classifier.
        goal: (b,) targets.
        x: (b, h, w, 3) images.
        radius: (b,) of the balls.
        change: (b, h, w, 3) where to start.
        length: (b,) of a step.
        steps: how many.
    """
    import jax
    import jax.numpy as jnp

    from spectra_jax import head_logits
    from spectra_jax.perturbations import formulas

    def lead(changed: Any) -> Any:
        return formulas.lead(head_logits(model.head(params), model.encode(params, changed)), goal)

    def size(values: Any) -> Any:
        return jnp.sqrt(jnp.sum(jnp.square(values), axis=(1, 2, 3), keepdims=True))

    def inside(change: Any) -> Any:
        shorter = jnp.minimum(1, (1 - 1e-6) * radius[:, None, None, None] / jnp.maximum(size(change), 1e-30))
        return jnp.clip(x + change * shorter, 0, 1) - x

    slope = jax.grad(lambda changed: jnp.sum(lead(changed)))

    def step(_: int, carried: Any) -> Any:
        change, best = carried
        direction = slope(x + change)
        direction = direction / jnp.maximum(size(direction), 1e-30)
        change = inside(change + length[:, None, None, None] * direction)
        return change, jnp.maximum(best, lead(x + change))

    change = inside(change)
    return jax.lax.fori_loop(0, steps, step, (change, lead(x + change)))[1]


def pictures(loaded: LoadedRun, count: int) -> np.ndarray:
    """The first test images, in [0, 1]."""
    pixels = loaded.dataset.images("test", np.arange(count), image_size=loaded.config.image_size)
    return pixels.astype(np.float32) / 255


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks.certificates")
    figures = certificates(args)
    if args.out is not None:
        write_json(args.out, figures)
    return 0


if __name__ == "__main__":
    run_main(main)
