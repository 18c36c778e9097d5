"""Makes the picture of an answer in the background and reports its progress."""

import functools
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from experiments.explore.images import difference, to_bytes
from experiments.explore.questions import Question
from experiments.explore.session import Session
from spectra_jax import InversionConfig, InversionProgress, InversionResult, Status, head_logits, invert

Aim = Literal["class", "attributes"]
CONFIGS: dict[Aim, InversionConfig] = {
    "class": InversionConfig(method="nearest", max_steps=60, survive_steps=16),
    "attributes": InversionConfig(method="gauss_newton", max_steps=60, survive_steps=16),
}
_JOBS_KEPT = 8


class Cancelled(Exception):
    """Somebody pressed the button."""


@dataclass
class Job:
    """One picture that is being made.

    Attributes:
        state: "running", "done", "cancelled" or "failed".
        steps: updates made.
        most_steps: when it gives up.
        images: by name, as they come: "original", "now", then "result" and "difference".
        report: what came out, as JSON.
        reason: why it failed, or why the search ended, in a sentence.
    """

    most_steps: int
    state: Literal["running", "done", "cancelled", "failed"] = "running"
    steps: int = 0
    images: dict[str, UInt8[np.ndarray, "h w 3"]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    def as_json(self) -> dict[str, Any]:
        """What the page is told."""
        return {
            **{name: getattr(self, name) for name in ("state", "steps", "most_steps", "report", "reason")},
            "images": sorted(self.images),
        }


class Maker:
    """Jobs by number; each runs in a thread and lets answers pass between its steps."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._next = 1

    def start(self, session: Session, question: Question, aim: Aim) -> int:
        """Begins a job and returns its number.

        Raises:
            ValueError: there is no answer to make a picture of.
        """
        wanted, target = session.end(question), session.target(question)
        job, number = Job(CONFIGS[aim].max_steps), self._next
        self._next += 1
        self._jobs = {key: kept for key, kept in self._jobs.items() if key > number - _JOBS_KEPT} | {number: job}
        arguments = (session, question.picture, wanted, target, aim, job)
        threading.Thread(target=_run, args=arguments, name=f"make {number}", daemon=True).start()
        return number

    def job(self, number: int) -> Job:
        """A job.

        Raises:
            KeyError: there is none of this number, or it was long ago.
        """
        return self._jobs[number]


def _run(session: Session, picture: int, wanted: Float[np.ndarray, " n"], target: int, aim: Aim, job: Job) -> None:
    try:
        original = session.pictures.one(picture)
        job.images["original"] = original
        with session.turns.turn():
            found = search(session, original, wanted, target, aim, functools.partial(_tell, session, job))
            job.report = _report(session, original, found, target, job)
        job.reason = Status(int(found.reason[0])).description
        job.state = "done"
    except Cancelled:
        job.state = "cancelled"
    except Exception as error:  # whatever it was, the page shows it and lives on
        job.reason, job.state = f"{type(error).__name__}: {error}", "failed"


def search(
    session: Session, original: UInt8[np.ndarray, "h w 3"], wanted: Float[np.ndarray, " n"], target: int, aim: Aim, tell
) -> InversionResult:
    """The picture that is classified as the target, or that has the wanted attributes as well."""
    dtype = session.head.weights.dtype
    return invert(
        *(session.encode, session.head, jnp.asarray(original[None], jnp.float32) / 255),
        *(jnp.asarray(wanted[None], dtype), jnp.asarray([target], jnp.int32)),
        config=CONFIGS[aim],
        progress=tell,
    )


def _tell(session: Session, job: Job, now: InversionProgress) -> None:
    if job.stop.is_set():
        raise Cancelled
    job.steps = int(now.num_steps[0])
    job.images["now"] = to_bytes(np.asarray(now.images[0]))
    session.turns.let_pass()


def _report(
    session: Session, original: UInt8[np.ndarray, "h w 3"], found: InversionResult, target: int, job: Job
) -> dict[str, Any]:
    kept = bool(found.success_8bit[0])
    result = to_bytes(np.asarray(found.images_8bit[0] if kept else found.images[0]))
    changed = difference(original, result)
    job.images |= {"result": result, "difference": changed.pixels}
    # The verdict is on the picture that is shown and saved, 256 levels per colour, not on the one in floating point.
    both = np.stack([original, result])
    attributes = session.encode_images(both)
    logits = np.asarray(head_logits(session.head, jnp.asarray(attributes)), float)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    change = (result.astype(float) - original) / 255
    return {
        "reached": bool(logits[1].argmax() == target),
        "target": target,
        "class": int(logits[1].argmax()),
        "probability_before": float(probabilities[0, target]),
        "probability_after": float(probabilities[1, target]),
        "steps": int(found.num_steps[0]),
        "levels_largest": int(np.abs(result.astype(int) - original).max()),
        "levels_typical": float(255 * np.sqrt(np.mean(np.square(change)))),
        "factor": changed.factor,
        "attributes": [round(float(value), 5) for value in attributes[1]],
    }
