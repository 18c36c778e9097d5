"""Foolbox and SPECTRA, in both directions: our classifiers as Foolbox models, our image search as a Foolbox attack."""

import functools
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from experiments.attacks.options import NEAREST
from experiments.runs.loading import LoadedRun
from spectra_jax import Head, InversionConfig, all_pairs_norms, head_logits, invert, nearest_target, perturbations
from spectra_jax.extras import extra

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which looks for a git program
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, about an import of foolbox's
    with extra("bench"):
        import foolbox
    from foolbox.attacks.base import MinimizationAttack, get_criterion, raise_if_kwargs
    from foolbox.criteria import Misclassification, TargetedMisclassification


class BottleneckModel(foolbox.models.JAXModel):
    """An attribute-bottleneck classifier as Foolbox wants it: logits of NHWC images (Foolbox: channels last) in [0, 1].

    Our models scale their input themselves, so there is no preprocessing. Foolbox's own attacks see the logits alone;
    `SpectraAttack` also uses the encoder and the head.

    Args:
        encode_fn: images (b, h, w, 3) -> attributes (b, n), any JAX function.
        head: classifier on the attributes.
    """

    def __init__(self, encode_fn: Any, head: Head):
        self.encode_fn, self.head, self.attributes = encode_fn, head, jax.jit(encode_fn)
        super().__init__(jax.jit(lambda images: head_logits(head, encode_fn(images))), bounds=(0, 1))


class SpectraAttack(MinimizationAttack):
    """The smallest attribute change that reaches a class, then an image that has it (Sections 2.5 and 2.6).

    A Foolbox attack like any other: attack(model, images, criterion, epsilons=...) returns raw images, images cut to
    each epsilon, and success. Targets are those of TargetedMisclassification. For Misclassification(labels) the method
    "nearest" leaves the labels for whatever class turns out to be closest; methods that aim at attributes take the
    class nearest in attribute space as their target. Images that are adversarial already, and those on which the
    search fails, come back as they are.

    Args:
        config: of the search for images.
    """

    distance = foolbox.distances.l2

    def __init__(self, *, config: InversionConfig = NEAREST):
        self.config = config

    def run(self, model: Any, inputs: Any, criterion: Any, *, early_stop: float | None = None, **kwargs: Any) -> Any:
        """Images whose class is another one; `early_stop` changes nothing, as the search ends at the first it finds."""
        raise_if_kwargs(kwargs)
        if not isinstance(model, BottleneckModel):
            raise ValueError(f"model is a {type(model).__name__}; SpectraAttack needs a BottleneckModel")
        images, criterion = getattr(inputs, "raw", inputs), get_criterion(criterion)  # __call__ passes EagerPy tensors
        wanted, targeted = model.attributes(images), True
        if isinstance(criterion, TargetedMisclassification):
            targets = jnp.asarray(criterion.target_classes.raw, jnp.int32)
        elif isinstance(criterion, Misclassification):
            targets = jnp.asarray(criterion.labels.raw, jnp.int32)
            targeted = self.config.method_name != "nearest"
            targets = _nearest_other(model.head, wanted, targets) if targeted else targets
        else:
            raise ValueError(f"criterion is {criterion!r}; expected Misclassification or TargetedMisclassification")
        if self.config.method_name != "nearest":
            wanted = wanted + _smallest_changes(model.head, wanted, targets)
        found = invert(
            model.encode_fn, model.head, images, wanted, targets, config=self.config, targeted=targeted
        ).images
        needed = ~criterion(images, model(images)) & criterion(found, model(found))
        result = jnp.where(needed[:, None, None, None], found, images)
        return type(inputs)(result) if hasattr(inputs, "raw") else result


@jax.jit
def _nearest_other(head: Head, attributes: Any, labels: Any) -> Any:
    found = nearest_target(all_pairs_norms(head, attributes), allowed=jax.nn.one_hot(labels, len(head.weights)) == 0)
    # Where no class is known to be reachable, the image stays as it is.
    return jnp.where(found.target < 0, labels, found.target)


@jax.jit
def _smallest_changes(head: Head, attributes: Any, targets: Any) -> Any:
    project = functools.partial(perturbations.projection_perturbation, head, margin=1.0)
    return jax.vmap(project)(attributes, targets).delta


def foolbox_model(run: LoadedRun) -> BottleneckModel:
    """A trained run as a Foolbox model."""
    return BottleneckModel(functools.partial(run.model.encode, run.params), run.model.head(run.params))
