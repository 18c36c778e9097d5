"""Minimum-norm attacks of other libraries by short name, all on one JAX classifier, with passes counted alike."""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attacks.foolbox import BottleneckModel, foolbox
from spectra_jax.extras import extra


class Attacked(NamedTuple):
    """What a peer made of a batch.

    Attributes:
        images: (b, h, w, channels), those that fail included.
        forward_passes, backward_passes: per image; every evaluation of an image and every gradient of one logit or
            loss counts once.
    """

    images: Any
    forward_passes: float
    backward_passes: float


class Peer(NamedTuple):
    """An attack with its budget.

    Attributes:
        library: whose it is.
        targeted: whether it can aim at a class; all can leave one.
        run: (model, images, classes, targeted) -> Attacked.
        compile: the same with next to no steps, called once before time is taken.
    """

    library: str
    targeted: bool
    run: Callable[[BottleneckModel, Any, Any, bool], Attacked]
    compile: Callable[[BottleneckModel, Any, Any, bool], Attacked]


class _Kind(NamedTuple):
    library: str
    attack: str
    budget: tuple[str, ...]  # the names of its numbers, searches before steps
    settings: Mapping[str, Any] = MappingProxyType({})  # where the default would not do
    targeted: bool = True
    rounds: bool = False  # whether it can keep to the levels of a file


# Settings: no rounding unless asked for; ALMA's first step as long as its authors take it for L2; APGD with the 9
# likeliest classes of AutoAttack, from radius 5 down.
_KINDS = {
    "ddn": _Kind("Foolbox", "DDNAttack", ("steps",)),
    "cw": _Kind("Foolbox", "L2CarliniWagnerAttack", ("binary_search_steps", "steps")),
    "advlib_ddn": _Kind("adv_lib", "ddn", ("steps",), {"levels": None}, rounds=True),
    "fmn": _Kind("adv_lib", "fmn", ("steps",), {"norm": 2}),
    "alma": _Kind("adv_lib", "alma", ("num_steps",), {"distance": "l2", "init_lr_distance": 1}, rounds=True),
    "pdgd": _Kind("adv_lib", "pdgd", ("num_steps",)),
    "sdf": _Kind("adv_lib", "sdf", ("steps",), targeted=False),
    "apgd_t": _Kind(
        "adv_lib", "minimal_apgd", ("binary_search_steps", "n_iter"),
        {"norm": 2, "max_eps": 5.0, "targeted_version": True, "num_targets": 9}, targeted=False,
    ),
}  # fmt: skip


def find_peer(name: str) -> Peer:
    """An attack by its name: KIND-STEPS or KIND-SEARCHESxSTEPS, with @256 to keep to that many levels.

    Foolbox has ddn and cw; Adversarial Library (extra "attacks") has advlib_ddn, fmn, alma, pdgd and, without a target,
    sdf (SuperDeepFool) and apgd_t.

    Raises:
        ValueError: there is no such attack, or it does not round.
    """
    parts = re.fullmatch(r"(\w+)-([1-9]\d*(?:x[1-9]\d*)?)(?:@([1-9]\d*))?", name)
    kind = _KINDS.get(parts[1]) if parts else None
    numbers = [int(part) for part in parts[2].split("x")] if parts else []
    if kind is None or parts is None or len(numbers) != len(kind.budget):
        known = ", ".join(f"{each}-{'SEARCHESxSTEPS' if len(k.budget) == 2 else 'STEPS'}" for each, k in _KINDS.items())
        raise ValueError(f"attack is {name!r}; expected one of {known}")
    if parts[3] and not kind.rounds:
        rounding = ", ".join(each for each, k in _KINDS.items() if k.rounds)
        raise ValueError(f"attack is {name!r}; only {rounding} can keep to levels; omit @{parts[3]}")
    settings = {**kind.settings, **({"levels": int(parts[3])} if parts[3] else {})}
    run = _run_foolbox if kind.library == "Foolbox" else _run_advlib

    def with_budget(numbers: list[int]) -> Callable[..., Attacked]:
        return functools.partial(run, kind.attack, settings | dict(zip(kind.budget, numbers, strict=True)))

    return Peer(kind.library, kind.targeted, with_budget(numbers), with_budget([1, 2][-len(numbers) :]))


def _run_foolbox(attack: str, settings: dict[str, Any], model: Any, images: Any, classes: Any, targeted: bool):
    counts = {"forward": 0, "backward": 0}

    def counted(candidates: Any) -> Any:
        counts["forward"] += 1
        counts["backward"] += isinstance(candidates, jax.core.Tracer)  # then Foolbox differentiates
        return model(candidates)

    criteria = foolbox.criteria
    criterion = (criteria.TargetedMisclassification if targeted else criteria.Misclassification)(classes)
    found = getattr(foolbox.attacks, attack)(**settings).run(
        foolbox.models.JAXModel(counted, bounds=(0, 1)), images, criterion
    )
    return Attacked(found, counts["forward"], counts["backward"])


def _run_advlib(attack: str, settings: dict[str, Any], model: Any, images: Any, classes: Any, targeted: bool):
    from experiments.attacks.torch_bridge import torch

    with extra("attacks"):
        from adv_lib import attacks
        from adv_lib.attacks.auto_pgd import minimal_apgd

    known = {**vars(attacks), "minimal_apgd": minimal_apgd}
    classifier = _torch_classifier(model)
    before = np.array([classifier.forward_passes, classifier.backward_passes])
    pixels, labels = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(classes, np.int64))
    found = known[attack](classifier, pixels, labels, targeted=targeted, **settings)
    passes = np.array([classifier.forward_passes, classifier.backward_passes]) - before
    return Attacked(jnp.asarray(found.detach().numpy()), *(passes / len(images)))


@functools.lru_cache(maxsize=1)  # each one compiles anew
def _torch_classifier(model: BottleneckModel) -> Any:
    from experiments.attacks.torch_bridge import TorchClassifier

    return TorchClassifier(model)
