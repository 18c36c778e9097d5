"""Each system's answers to the same questions, searched once and kept: a stopped run continues where it stopped."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cited_systems import apicella, cf_cbm, sarkar, shukla, spectra
from experiments.cited_systems.options import ComparisonConfig
from experiments.cited_systems.subject import Pairs, Search, Subject
from experiments.runs.store import Store
from spectra_jax.logging import Console

DELETED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # shares of the latents taken away for the curve of Apicella et al.


class System(NamedTuple):
    """One row of the comparison.

    Attributes:
        title: for readers.
        build: makes its search, which may train something first.
        settings: of its own, on which its answers depend.
    """

    title: str
    build: Callable[[], Search]
    settings: Mapping[str, Any]


def systems(subject: Subject, config: ComparisonConfig, concepts: sarkar.Concepts) -> dict[str, System]:
    """The systems by name, those that the paper cites first."""
    budget: dict[str, Any] = {"margin": config.margin, "max_steps": config.max_steps}
    ours = {"requested_margin": config.requested_margin, **budget}
    methods = spectra.methods(subject)
    return {
        "apicella": System(
            "[1] Apicella et al., most relevant latents",
            lambda: apicella.search(subject, **budget),
            {**budget, "share": apicella.SHARE, "step": apicella.STEP},
        ),
        "sarkar": System(
            "[2] Sarkar et al., concepts decoded",
            lambda: sarkar.search(subject, concepts, margin=config.margin),
            {"margin": config.margin, "concepts": sarkar.CONCEPTS, "steps": sarkar.STEPS, "factors": sarkar.FACTORS},
        ),
        "shukla": System(
            "[3] Shukla and Banerjee, latent adversary",
            lambda: shukla.search(subject, **budget),
            {**budget, "step_size": shukla.STEP_SIZE, "fidelity": shukla.FIDELITY},
        ),
        "paper_loop": System(
            "SPECTRA, the paper's loop",
            lambda: spectra.search(subject, methods["paper_loop"], **ours),
            {**ours, "step_size": spectra.PAPER_STEP},
        ),
        "nearest": System("SPECTRA, nearest", lambda: spectra.search(subject, methods["nearest"], **ours), ours),
        "manifold": System(
            "SPECTRA, on the manifold",
            lambda: spectra.search(subject, methods["manifold"], **ours),
            {**ours, "step_size": spectra.MANIFOLD_STEP, "reaim_every": spectra.MANIFOLD_REAIM},
        ),
    }


def answers(
    system: System, name: str, pairs: Pairs, folder: Path, about: Any, config: ComparisonConfig, *, console: Console
) -> dict[str, np.ndarray]:
    """What a system answers: `images` (p, h, w, 3) 8-bit, and `seconds` (p,), its batch's time over its images.

    The first batch's time includes compilation.

    Args:
        system: whose answers.
        name: of the system, and of its files.
        pairs: the questions.
        folder: where they are kept.
        about: facts on which all systems' answers depend.
        config: says how many are searched together.
        console: shows the progress.
    """
    built: list[Search] = []

    def compute(rows: np.ndarray) -> dict[str, np.ndarray]:
        wrapped = np.resize(rows, config.batch_size)  # a last batch wraps: one compilation
        images = jnp.asarray(pairs.images[wrapped], jnp.float32) / 255
        if not built:
            built.append(system.build())
        began = time.perf_counter()
        found = jax.block_until_ready(built[0](images, jnp.asarray(pairs.target[wrapped])))
        seconds = (time.perf_counter() - began) / len(wrapped)
        levels = np.round(np.asarray(found) * 255).astype(np.uint8)[: len(rows)]
        return {"images": levels, "seconds": np.full(len(rows), seconds)}

    store = Store(folder / "answers", [about, dict(system.settings), pairs.rows.tolist(), pairs.target.tolist()])
    return store.get_rows(
        name, len(pairs.rows), compute, chunk=config.batch_size, console=console, title=system.title, unit="images"
    )


def learnt_concepts(
    subject: Subject, folder: Path, about: Any, reading: sarkar.Reading, *, seed: int
) -> sarkar.Concepts:
    """The concepts of the classifier by one reading of their losses, trained now or read again."""
    settings = [sarkar.CONCEPTS, sarkar.SPARSITY, sarkar.STEPS, sarkar.BATCH, sarkar.LEARNING_RATE, reading]
    store = Store(folder / "answers", [about, settings, seed])
    kept = store.get("concepts", lambda: sarkar.train_on(subject, reading=reading, seed=seed)._asdict())
    return sarkar.Concepts(**{name: jnp.asarray(value) for name, value in kept.items()})


def learnt_cf_cbm(training: cf_cbm.Split, folder: Path, about: Any, *, num_classes: int, seed: int) -> cf_cbm.Params:
    """CF-CBM of the run's features and labels, trained now or read again."""
    settings = [cf_cbm.LATENTS, cf_cbm.SHARPNESS, cf_cbm.STEPS, cf_cbm.BATCH, cf_cbm.LEARNING_RATE, *cf_cbm.WEIGHTS]
    store = Store(folder / "answers", [about, settings, seed])

    sizes = {"num_features": training.features.shape[1], "num_concepts": training.concepts.shape[1]}
    init = functools.partial(cf_cbm.init, **sizes, num_classes=num_classes)
    structure = jax.tree.structure(jax.eval_shape(init, jax.random.key(seed)))

    def learn() -> dict[str, Any]:
        leaves = jax.tree.leaves(cf_cbm.train(*training, num_classes=num_classes, seed=seed))
        return {str(number): leaf for number, leaf in enumerate(leaves)}

    kept = store.get("cf_cbm", learn)
    return jax.tree.unflatten(structure, [jnp.asarray(kept[str(number)]) for number in range(len(kept))])


def deletion(subject: Subject, pairs: Pairs, *, seed: int) -> dict[str, np.ndarray]:
    """The curves of Apicella et al., (p, shares): by relevance, and in a random order as its control."""
    images = jnp.asarray(pairs.images, jnp.float32) / 255
    latents = jax.jit(subject.to_latents)(images)
    named = jnp.argmax(jax.jit(lambda z: subject.logits(subject.draw(z)))(latents), axis=-1)
    found = jax.jit(lambda z, c: apicella.relevance(subject, z, c))(latents, named)
    rng = np.random.default_rng([seed, 42])
    by_chance = np.argsort(rng.random(latents.shape), axis=1).astype(np.int32)
    orders = {"relevance": jnp.argsort(-found, axis=-1), "random": jnp.asarray(by_chance)}
    return {name: apicella.deletion_curve(subject, latents, named, order, DELETED) for name, order in orders.items()}


def settings_of(config: ComparisonConfig) -> dict[str, Any]:
    """The options on which the answers of every system depend."""
    return {"autoencoder": dataclasses.asdict(config.autoencoder), "batch_size": config.batch_size}
