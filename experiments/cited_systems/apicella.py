"""Middle-level explanations through an auto-encoder (Apicella, Giugliano, Isgro and Prevete, arXiv 2106.05037).

The publication explains a class c in terms of the latents z of an auto-encoder: the decoder D is put before the
classifier f, and the relevance of z_k for f_c(D(z)) is found by an attribution method for networks. Whether the
relevant ones matter is shown by taking them away, most relevant first, and watching the probability fall.

Here the attribution is gradient times input, z_k df_c(D(z)) / dz_k; theirs is layer-wise relevance propagation, whose
rules depend on the layers. Latents are standardised, so that taking one away, z_k = 0, leaves what is common to all
images. The publication stops at the explanation. The counterfactual is the step its title suggests and no more: the
most relevant latents, and they alone, move along the gradient of the target's lead until the class flips.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.cited_systems.subject import Search, Subject
from spectra_jax.inversion.encoder import per_sample

SHARE = 0.25  # of the latents that may move
STEP = 0.5  # length of a step, in standard deviations of a latent


def relevance(subject: Subject, latents: Float[Array, "b d"], classes: Int[Array, " b"]) -> Float[Array, "b d"]:
    """z_k df_c(D(z)) / dz_k, the share of each latent in the logit of a class to first order.

    Args:
        subject: the classifier and the decoder.
        latents: (b, d) z.
        classes: (b,) c.
    """

    def total(latents: Float[Array, "b d"]) -> Float[Array, ""]:
        logits = subject.logits(subject.draw(latents))
        return jnp.sum(jnp.take_along_axis(logits, classes[:, None], axis=-1))

    return latents * jax.grad(total)(latents)


def deletion_curve(
    subject: Subject, latents: Float[Array, "b d"], classes: Int[Array, " b"], order: Int[Array, "b d"],
    shares: Sequence[float],
) -> Float[np.ndarray, "b s"]:  # fmt: skip
    """The probability of a class after the first latents of an order are taken away.

    Args:
        subject: the classifier and the decoder.
        latents: (b, d) z.
        classes: (b,) whose probability is watched.
        order: (b, d) latents, the first to go first; by falling relevance, or by chance as a control.
        shares: of the latents that are taken away.

    Returns:
        (b, shares) probabilities.
    """
    rank = jnp.argsort(order, axis=-1)

    @jax.jit
    def probability(latents: Float[Array, "b d"], kept: Array) -> Float[Array, " b"]:
        chances = jax.nn.softmax(subject.logits(subject.draw(jnp.where(kept, latents, 0))), axis=-1)
        return jnp.take_along_axis(chances, classes[:, None], axis=-1)[:, 0]

    counts = [round(share * latents.shape[1]) for share in shares]
    return np.stack([np.asarray(probability(latents, rank >= count)) for count in counts], axis=1)


def search(subject: Subject, *, margin: float, max_steps: int) -> Search:
    """The counterfactual: steps of one length over the most relevant latents until the target leads by the margin."""

    @jax.jit
    def start(images: Float[Array, "b h w 3"]) -> tuple[Array, Array]:
        latents = subject.to_latents(images)
        named = jnp.argmax(subject.logits(subject.draw(latents)), axis=-1)
        found = jnp.abs(relevance(subject, latents, named))
        least = jax.lax.top_k(found, max(1, round(SHARE * latents.shape[1])))[0][:, -1:]
        return latents, found >= least

    @jax.jit
    def step(latents: Float[Array, "b d"], moves: Array, targets: Int[Array, " b"]) -> tuple[Array, Array]:
        def objective(latents: Float[Array, "b d"]) -> tuple[Array, Array]:
            _, lead = subject.judge(subject.draw(latents), targets)
            return jnp.sum(lead.lead), lead.by(margin)

        (_, won), gradient = jax.value_and_grad(objective, has_aux=True)(latents)
        gradient = jnp.where(moves, gradient, 0)
        length = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
        moved = latents + STEP * gradient / jnp.where(length > 0, length, 1)
        return jnp.where(per_sample(won, latents), latents, moved), won

    draw = jax.jit(subject.draw)

    def run(images: Float[Array, "b h w 3"], targets: Int[Array, " b"]) -> Float[Array, "b h w 3"]:
        latents, moves = start(images)
        for _ in range(max_steps):
            latents, won = step(latents, moves, targets)
            if won.all():
                break
        return draw(latents)

    return run
