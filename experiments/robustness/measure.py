"""Attacks written by others on the images of a run, and the accuracy that survives them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from experiments.attacks.foolbox import BottleneckModel, SpectraAttack, foolbox, foolbox_model
from experiments.attacks.options import AttackConfig
from experiments.reporting.intervals import rate
from experiments.runs.loading import LoadedRun, checksum
from experiments.runs.store import Store
from spectra_jax import attackability, certify
from spectra_jax.logging import Console

RESAMPLES = 2000


class Attacked(NamedTuple):
    """What the attacks did to the chosen images of one run.

    Attributes:
        places: (N,) of the images in the test split, the same for all runs.
        labels: (N,) true classes.
        correct: (N,) whether the image is named correctly before any attack.
        l2_flipped: (N, R) whether PGD within a radius, or a smaller one, changed that; False where not correct.
        linf_flipped: (N, S) the same in L-infinity.
        ddn, carlini: (N,) smallest L2 change found that does; inf where none was found, 0 where not correct.
        nearest: (N,) the same by this library's `invert`, method "nearest".
        boundary: (N,) the same by the Boundary attack, which sees nothing but the class (Brendel et al. 2018).
        certified: (N,) no image at a smaller L2 distance is named otherwise; 0 where not correct or where nothing is
            proven of the model.
        attackability: (N,) of the attributes (Eq. 5).
        originals, pictures: (N, h, w, 3) float32 before and after DDN's attack; the same where not correct.
        named_after: (N,) class of `pictures`.
        seconds: (N,) that DDN took for the image, its share of a batch; 0 where not correct.
    """

    places: np.ndarray
    labels: np.ndarray
    correct: np.ndarray
    l2_flipped: np.ndarray
    linf_flipped: np.ndarray
    ddn: np.ndarray
    carlini: np.ndarray
    nearest: np.ndarray
    boundary: np.ndarray
    certified: np.ndarray
    attackability: np.ndarray
    originals: np.ndarray
    pictures: np.ndarray
    named_after: np.ndarray
    seconds: np.ndarray

    @property
    def smallest(self) -> np.ndarray:
        """(N,) the smaller one of DDN's and Carlini and Wagner's changes."""
        return np.minimum(self.ddn, self.carlini)

    def crossings(self, radii: Sequence[float]) -> tuple[int, int]:
        """How many attacks went below a certificate, of how many: expected are none."""
        found = np.stack([self.ddn, self.carlini, self.nearest, self.boundary], axis=1)[self.correct]
        flips = self.l2_flipped[self.correct] & (np.asarray(radii)[None, :] <= self.certified[self.correct][:, None])
        below = found < self.certified[self.correct][:, None]
        return int(below.sum() + flips.sum()), below.size + flips.size

    def holds_l2(self, radii: Sequence[float]) -> np.ndarray:
        """(N, R) named correctly whatever any of the three L2 attacks does within the radius."""
        return ~self.l2_flipped & (self.smallest[:, None] > np.asarray(radii)[None, :])

    def holds_linf(self) -> np.ndarray:
        """(N, S) named correctly whatever PGD does within the radius."""
        return self.correct[:, None] & ~self.linf_flipped


Attack = Callable[[BottleneckModel, Any, Any], dict[str, np.ndarray]]


def _within(attack: Any, radii: Sequence[float], name: str) -> Attack:
    """An attack on balls of rising radii; once flipped stays flipped, so a batch that is lost is not attacked again."""

    def run(model: BottleneckModel, images: Any, labels: Any) -> dict[str, np.ndarray]:
        flipped = np.zeros((len(images), len(radii)), bool)
        for place, radius in enumerate(radii):  # before the first one stands the last column: False so far
            if not flipped[:, place - 1].all():
                flipped[:, place] = np.asarray(attack(model, images, labels, epsilons=radius)[2])
            flipped[:, place] |= flipped[:, place - 1]
        return {name: flipped}

    return run


def _smallest(attack: Any, name: str, *, keep: bool = False) -> Attack:
    """An attack that looks for the smallest change."""

    def run(model: BottleneckModel, images: Any, labels: Any) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        _, found, success = attack(model, images, labels, epsilons=None)
        # Where Carlini and Wagner's attack fails it returns black images, which are another class by accident.
        black = np.asarray(jnp.max(found, axis=(1, 2, 3)) == 0)
        lengths = np.where(np.asarray(success) & ~black, np.asarray(foolbox.distances.l2(images, found)), np.inf)
        if not keep:
            return {name: lengths}
        seconds = np.full(len(lengths), (time.perf_counter() - began) / len(lengths))
        named = np.asarray(model(found)).argmax(axis=-1)
        return {name: lengths, "pictures": np.asarray(found), "named_after": named, "seconds": seconds}

    return run


def _seeded(attack: Any) -> Any:
    """Foolbox draws from NumPy's global generator; where it finds no start among noise, it raises."""

    def run(model: BottleneckModel, images: Any, labels: Any, *, epsilons: None) -> Any:
        state = np.random.get_state()
        np.random.seed(0)
        try:
            return attack(model, images, labels, epsilons=epsilons)
        except ValueError:
            return None, images, np.zeros(len(images), bool)
        finally:
            np.random.set_state(state)

    return run


def attacks(config: AttackConfig) -> dict[str, tuple[Attack, dict[str, Any]]]:
    """Every attack by name, with the settings on which its results depend. None starts at random: repeatable.

    L2FMNAttack of Foolbox 3.3.4 is not among them: its projection divides norms by themselves.
    """
    pgd: dict[str, Any] = {"steps": config.pgd_steps, "rel_stepsize": 2.5 / config.pgd_steps, "random_start": False}
    l2, linf = list(config.l2_radii), [level / 255 for level in config.linf_levels]
    carlini: dict[str, Any] = {
        "binary_search_steps": 5,
        "steps": config.carlini_steps,
        "initial_const": 0.1,
        "stepsize": 0.01,
    }
    ddn = {"steps": config.ddn_steps, "kept": "pictures, class, seconds"}
    made: dict[str, tuple[Attack, dict[str, Any]]] = {
        "ddn": (_smallest(foolbox.attacks.DDNAttack(steps=config.ddn_steps), "ddn", keep=True), ddn),
        "l2_pgd": (_within(foolbox.attacks.L2PGD(**pgd), l2, "l2_flipped"), pgd | {"radii": l2}),
        "linf_pgd": (_within(foolbox.attacks.LinfPGD(**pgd), linf, "linf_flipped"), pgd | {"radii": linf}),
    }
    if config.carlini_steps:
        made["carlini"] = (_smallest(foolbox.attacks.L2CarliniWagnerAttack(**carlini), "carlini"), carlini)
    if config.nearest:
        ours = {"nearest": repr(SpectraAttack().config), "targeted": False}  # an older version aimed at a class
        made["nearest"] = (_smallest(SpectraAttack(), "nearest"), ours)
    if config.boundary_steps:
        blind = foolbox.attacks.BoundaryAttack(steps=config.boundary_steps)
        made["boundary"] = (_smallest(_seeded(blind), "boundary"), {"boundary": config.boundary_steps})
    return made


def attack_run(run: LoadedRun, config: AttackConfig, folder: Path, *, name: str, console: Console) -> Attacked:
    """Attacks the chosen images batch by batch. A batch in `folder` that is of this very model, these images and
    settings is not attacked again."""
    count = run.dataset.num_examples("test")
    index = np.sort(np.random.default_rng(config.image_seed).permutation(count)[: config.num_images])
    labels = np.asarray([run.dataset.source("test")[int(i)]["label"] for i in index], np.int32)
    model, folder = foolbox_model(run), folder / "attacks"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = run.dataset.images("test", index, image_size=run.config.image_size)
    originals = pixels.astype(np.float32) / 255
    named = over_batches(model, originals, config.batch_size).argmax(axis=-1)
    correct = named == labels
    right = np.flatnonzero(correct)
    found: dict[str, np.ndarray] = {
        "l2_flipped": np.zeros((len(index), len(config.l2_radii)), bool),
        "linf_flipped": np.zeros((len(index), len(config.linf_levels)), bool),
        "ddn": np.zeros(len(index)),
        **{name: np.where(correct, np.inf, 0.0) for name in ("carlini", "nearest", "boundary")},
        "pictures": originals.copy(),
        "named_after": named,
        "seconds": np.zeros(len(index)),
    }
    made, identity = attacks(config), checksum(run, index)
    with console.progress(f"attacking {name}", len(made) * len(right), unit="images") as task:
        for place, (kind, (attack, settings)) in enumerate(made.items()):
            for start in range(0, len(right), config.batch_size):
                rows = right[start : start + config.batch_size]
                store = Store(folder, [identity, settings, rows.tolist(), config.batch_size])

                def compute(attack: Any = attack, rows: np.ndarray = rows) -> dict[str, Any]:
                    filled = np.resize(rows, config.batch_size)  # a last batch wraps: one compilation
                    with jax.numpy_dtype_promotion("standard"):  # Foolbox mixes types freely
                        done = attack(model, jnp.asarray(originals[filled]), jnp.asarray(labels[filled]))
                    return {key: array[: len(rows)] for key, array in done.items()}

                for key, array in store.get(kind, compute).items():
                    found[key][rows] = array
                task.update(place * len(right) + start + len(rows), kind)
    found["certified"] = np.zeros(len(index))
    if run.has_proof:
        proven = certify(run.model, run.params, originals)
        found["certified"] = np.where(correct & (proven.answer == labels), proven.radius, 0.0)
    found["attackability"] = over_batches(
        lambda images: attackability(model.head, model.attributes(images)), originals, config.batch_size
    )
    return Attacked(places=index, labels=labels, correct=correct, originals=originals, **found)


def over_batches(function: Callable[[Any], Any], images: np.ndarray, size: int) -> np.ndarray:
    """The rows of function(images), computed in batches of one size."""
    rows = (np.resize(np.arange(start, min(start + size, len(images))), size) for start in range(0, len(images), size))
    return np.concatenate([np.asarray(function(jnp.asarray(images[part]))) for part in rows])[: len(images)]


def transferred(attacked: Attacked, run: LoadedRun, config: AttackConfig) -> dict[str, float]:
    """How many images that `run` names correctly it still does after DDN flipped them for another model."""
    model, flipped = foolbox_model(run), attacked.correct & np.isfinite(attacked.ddn)
    before, after = (
        over_batches(model, images, config.batch_size).argmax(axis=-1) == attacked.labels
        for images in (attacked.originals, attacked.pictures)
    )
    return _share("transfer_accuracy", after[flipped & before])


def figures(attacked: Attacked, config: AttackConfig) -> dict[str, float]:
    """Shares of all images with 95 % Wilson intervals; medians over those named correctly with bootstrap intervals."""
    values = {"num_images": float(len(attacked.places))} | _share("clean_accuracy", attacked.correct)
    for place, radius in enumerate(config.l2_radii):
        values |= _share(f"l2_pgd_accuracy_at_{radius:g}", attacked.correct & ~attacked.l2_flipped[:, place])
        values |= _share(f"l2_accuracy_at_{radius:g}", attacked.holds_l2(config.l2_radii)[:, place])
    for place, level in enumerate(config.linf_levels):
        values |= _share(f"linf_accuracy_at_{level:g}", attacked.holds_linf()[:, place])
    asked = {"ddn": True, "carlini": config.carlini_steps, "nearest": config.nearest, "boundary": config.boundary_steps}
    for name in ("smallest", *(name for name, is_asked in asked.items() if is_asked)):
        values |= _median(f"{name}_l2_median", getattr(attacked, name)[attacked.correct])
    if attacked.certified.any():
        for radius in config.l2_radii:
            values |= _share(f"certified_accuracy_at_{radius:g}", attacked.certified > radius)
        values |= _median("certified_l2_median", attacked.certified[attacked.correct])
    crossed, pairs = attacked.crossings(config.l2_radii)
    values |= {"certificates_crossed": float(crossed), "certificates_attacked": float(pairs)}
    return values | _rank_correlation(attacked)


def _rank_correlation(attacked: Attacked) -> dict[str, float]:
    """Spearman's, of attackability with the smallest L2 change found: -1 where the one predicts the other."""
    usable = attacked.correct & np.isfinite(attacked.smallest)
    ratios, lengths = attacked.attackability[usable], attacked.smallest[usable]
    if len(ratios) < 3:
        return _median("attackability_rank_correlation", np.zeros(0))

    def spearman(rows: np.ndarray) -> float:
        return float(np.corrcoef(rankdata(ratios[rows]), rankdata(lengths[rows]))[0, 1])

    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.asarray([spearman(rows) for rows in _resamples(len(ratios))])
        value = spearman(np.arange(len(ratios)))
    return _interval(
        "attackability_rank_correlation", value, drawn[np.isfinite(drawn)] if np.isfinite(value) else drawn
    )


def compare(first: Attacked, other: Attacked, config: AttackConfig) -> dict[str, float]:
    """Differences of robust accuracy to the first run, image by image, with paired 95 % bootstrap intervals."""
    pairs = {f"l2_accuracy_at_{r:g}": (a, b) for r, a, b in _columns(first, other, config.l2_radii, "l2")}
    pairs |= {f"linf_accuracy_at_{r:g}": (a, b) for r, a, b in _columns(first, other, config.linf_levels, "linf")}
    values: dict[str, float] = {}
    for name, (before, after) in pairs.items():
        difference = after.astype(float) - before
        means = difference[_resamples(len(difference))].mean(axis=1)
        values |= _interval(f"{name}_difference", float(difference.mean()), means)
    return values


def _columns(first: Attacked, other: Attacked, radii: Sequence[float], norm: str) -> Any:
    both = [a.holds_l2(radii) if norm == "l2" else a.holds_linf() for a in (first, other)]
    return zip(radii, both[0].T, both[1].T, strict=True)


def _share(name: str, flags: np.ndarray) -> dict[str, float]:
    return rate(name, int(flags.sum()), len(flags))


def _median(name: str, values: np.ndarray) -> dict[str, float]:
    if len(values) == 0:
        return {name: float("nan"), f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    drawn = np.sort(values[_resamples(len(values))], axis=1)[:, len(values) // 2]  # an order statistic: inf stays inf
    return _interval(name, float(np.sort(values)[len(values) // 2]), drawn)


def _interval(name: str, value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _resamples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
