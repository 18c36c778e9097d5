"""Attacks test images of a run with SPECTRA and DDN, and reports how far each went."""

import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.attacks.foolbox import Misclassification, SpectraAttack, foolbox, foolbox_model
from experiments.runs.loading import load_run
from spectra_jax import InversionConfig
from spectra_jax.logging import Console


def compare(run_dir: Path, num_images: int, epsilon: float, config: InversionConfig) -> None:
    """Attacks test images spread evenly over the test split; prints how many flip and how far."""
    console, run = Console(), load_run(run_dir)
    model, total = foolbox_model(run), run.dataset.num_examples("test")
    index = np.linspace(0, total - 1, min(num_images, total)).astype(int)  # the split is sorted by class
    images = jnp.asarray(run.dataset.images("test", index, image_size=run.config.image_size), jnp.float32) / 255
    labels = jnp.argmax(model(images), axis=-1)
    for attack in (SpectraAttack(config=config), foolbox.attacks.DDNAttack()):
        began = time.monotonic()
        _, clipped, success = attack(model, images, Misclassification(labels), epsilons=[None, epsilon])
        flipped, within = np.asarray(success).mean(axis=1)
        lengths = np.asarray(foolbox.distances.l2(images, clipped[0]))[np.asarray(success[0])]
        console.say(
            f"{type(attack).__name__}: flips {flipped:.1%}, median L2 {np.median(lengths):.3f}, within "
            f"{epsilon:g}: {within:.1%}, {time.monotonic() - began:.1f} s with compilation"
        )
