"""Adversarial images from the latent space of an encoder-decoder (Shukla and Banerjee, CVPR Workshops 2023).

The publication perturbs the latents of an image in place of its pixels, so that no noise margin has to be chosen: a
generative adversarial network is trained whose generator makes such images in one pass, by one term that misleads the
classifier and others that keep the image realistic. Its code was not before us.

Here nothing is trained for the attack: z itself is optimised for each image, by Adam from E(x), on the same two
demands, cross-entropy of the target and mean squared distance to the original, and the decoder alone stands for
realism. There is no pixel budget. Of all images on the way that have the target, the nearest to the original is kept.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from experiments.cited_systems.subject import Search, Subject
from spectra_jax.inversion.encoder import per_sample

STEP_SIZE = 0.05  # of Adam, in standard deviations of a latent
FIDELITY = 100.0  # weight of the mean squared distance beside the cross-entropy


def search(subject: Subject, *, margin: float, max_steps: int) -> Search:
    """The attack: `max_steps` steps of Adam over the latents.

    Args:
        subject: the classifier and the auto-encoder.
        margin: lead of the target at which an image counts as having it.
        max_steps: steps taken for every image.
    """
    optimizer = optax.adam(STEP_SIZE)

    @jax.jit
    def start(images: Float[Array, "b h w 3"]) -> tuple[Array, optax.OptState, Array, Array]:
        latents = subject.to_latents(images)
        return latents, optimizer.init(latents), subject.draw(latents), jnp.full(len(images), jnp.inf)

    @jax.jit
    def step(latents, state, best, nearest, images, targets: Int[Array, " b"]):
        def objective(latents: Float[Array, "b d"]) -> tuple[Array, tuple[Array, Array, Array]]:
            drawn = subject.draw(latents)
            logits, lead = subject.judge(drawn, targets)
            distance = jnp.mean(jnp.square(drawn - images), axis=(1, 2, 3))
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return jnp.sum(entropy + FIDELITY * distance), (drawn, distance, lead.by(margin))

        (_, (drawn, distance, won)), gradient = jax.value_and_grad(objective, has_aux=True)(latents)
        better = won & (distance < nearest)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            updates, state = optimizer.update(gradient, state)
        # Where no image has the target yet, the last one stands for it.
        shown = better | ~jnp.isfinite(nearest)
        return (
            latents + updates, state, jnp.where(per_sample(shown, drawn), drawn, best),
            jnp.where(better, distance, nearest),
        )  # fmt: skip

    def run(images: Float[Array, "b h w 3"], targets: Int[Array, " b"]) -> Float[Array, "b h w 3"]:
        latents, state, best, nearest = start(images)
        for _ in range(max_steps):
            latents, state, best, nearest = step(latents, state, best, nearest, images, targets)
        return best

    return run
