"""A JAX classifier as PyTorch sees it, so that attacks written for PyTorch run on the very same weights.

Gradients come from `jax.vjp`: logits and gradients are those of the JAX model, on the same device, at the same cost per
pass. Arrays are copied where they change hands, because attacks update tensors in place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectra_jax.buckets import bucket_size
from spectra_jax.extras import extra

with extra("attacks"):
    import torch


class TorchClassifier(torch.nn.Module):
    """Calls a JAX classifier from PyTorch, forward and backward.

    Args:
        logits_fn: images (b, h, w, channels) -> logits (b, c), any JAX function.

    Attributes:
        forward_passes, backward_passes: images evaluated so far, and gradients of one image computed.
    """

    def __init__(self, logits_fn: Callable[[Any], Any]):
        super().__init__()
        self.forward_passes = self.backward_passes = 0
        self._evaluate = jax.jit(logits_fn)
        self._evaluate_and_keep = jax.jit(lambda images: jax.vjp(logits_fn, images))
        self._pull_back = jax.jit(lambda pullback, cotangents: pullback(cotangents)[0])

    def forward(self, images: Any) -> Any:
        """Logits (b, c) of images (b, h, w, channels); most attacks take an image for a vector and do not mind."""
        return _Evaluate.apply(images, self)

    def evaluate(self, images: Any, *, keep: bool) -> tuple[Any, Any]:
        """Logits, and how gradients are pulled back where they may be asked for."""
        self.forward_passes += len(images)
        padded = _to_jax(images)
        logits, pullback = self._evaluate_and_keep(padded) if keep else (self._evaluate(padded), None)
        return _to_torch(logits, len(images)), pullback

    def pull_back(self, pullback: Any, cotangents: Any) -> Any:
        """Gradients with respect to the images."""
        self.backward_passes += len(cotangents)
        return _to_torch(self._pull_back(pullback, _to_jax(cotangents)), len(cotangents))


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Any, classifier: TorchClassifier) -> Any:
        ctx.classifier = classifier
        logits, ctx.pullback = classifier.evaluate(images, keep=ctx.needs_input_grad[0])
        return logits

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return ctx.classifier.pull_back(ctx.pullback, *cotangents), None


def _to_jax(tensor: Any) -> jax.Array:
    """Padded to one of a few sizes: some attacks go on with fewer and fewer images, and each size is compiled."""
    missing = bucket_size(len(tensor)) - len(tensor)
    tensor = torch.cat([tensor.detach(), tensor[:1].detach().expand(missing, *tensor.shape[1:])])
    return jnp.from_dlpack(tensor)


def _to_torch(array: jax.Array, count: int) -> Any:
    return torch.from_dlpack(array)[:count].clone()
