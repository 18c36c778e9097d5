"""This project's own searches, next to the cited systems: the paper's loop, the smallest change, and the manifold."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.cited_systems.subject import Search, Subject
from spectra_jax import GradientDescent, InversionConfig, Manifold, Nearest, invert, projection_perturbation
from spectra_jax.inversion.config import Method

# The paper names no step size. On 16 validation images of the synthetic birds, 200 steps of 1, 10 and 100 flip 38, 69
# and 100 % at a median L2 of 1.0, 2.1 and 7.5; the last is one jump and no search.
PAPER_STEP = 10.0
MANIFOLD_STEP = 0.02  # in standard deviations of a latent
# Few changes of the attributes can be drawn: without aiming anew, 6 % of those images reach the target in 100 steps.
MANIFOLD_REAIM = 5


def methods(subject: Subject) -> dict[str, Method]:
    """By name, the methods of `invert` that are compared."""
    return {
        "paper_loop": GradientDescent(step_size=PAPER_STEP),
        "nearest": Nearest(),
        "manifold": Manifold(subject.draw, subject.to_latents, step_size=MANIFOLD_STEP),
    }


def search(subject: Subject, method: Method, *, margin: float, requested_margin: float, max_steps: int) -> Search:
    """One of `methods` towards e + delta, delta the shortest change of the attributes.

    On the manifold e is what the classifier sees in the reconstruction, where that search starts, and the attributes
    aimed at become, every few steps, the nearest ones of the target's region: the generator cannot draw most changes.
    """
    on_manifold = isinstance(method, Manifold)
    config = InversionConfig(
        method=method, margin=margin, max_steps=max_steps, survive_steps=12,
        reaim_every=MANIFOLD_REAIM if on_manifold else 0, reaim_margin=requested_margin,
    )  # fmt: skip
    head, encode = subject.head, subject.encode

    @jax.jit
    def aims(images: Float[Array, "b h w 3"], targets: Int[Array, " b"]) -> Float[Array, "b n"]:
        start = subject.draw(subject.to_latents(images)) if on_manifold else images
        attributes = encode(start)
        margin = jnp.asarray(requested_margin, attributes.dtype)
        solve = jax.vmap(lambda e, j: projection_perturbation(head, e, j, margin=margin).delta)
        return attributes + solve(attributes, targets)

    def run(images: Float[Array, "b h w 3"], targets: Int[Array, " b"]) -> Float[Array, "b h w 3"]:
        return invert(encode, head, images, aims(images, targets), targets, config=config).images_8bit

    return run
