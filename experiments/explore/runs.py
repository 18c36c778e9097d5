"""Sessions of trained runs, with everything compiled before a user waits for it."""

import functools
from pathlib import Path

import numpy as np

from experiments.cli.command import UserError
from experiments.explore.images import Pictures
from experiments.explore.making import CONFIGS, search
from experiments.explore.questions import MOST_CHANGES, Question
from experiments.explore.session import Session
from experiments.explore.turns import Turns
from experiments.runs.loading import load_run, load_test_split
from spectra_jax.logging import Console


def open_run(run_dir: Path, turns: Turns) -> Session:
    """The session of a run's newest checkpoint and test pictures.

    Raises:
        UserError: the run is not complete.
    """
    run = load_run(run_dir)
    attributes, labels, _ = load_test_split(run_dir)
    size = run.config.image_size
    columns = [np.asarray(record["label"]) for record in run.dataset.source("train")]
    return Session(
        name=run_dir.resolve().name,
        encode=functools.partial(run.model.encode, run.params),
        head=run.model.head(run.params),
        pictures=Pictures(functools.partial(run.dataset.images, "test", image_size=size), labels),
        attributes=attributes,
        attribute_names=tuple(run.info.attribute_names),
        class_names=tuple(run.info.class_names),
        training=Pictures(functools.partial(run.dataset.images, "train", image_size=size), np.array(columns, int)),
        turns=turns,
    )


def check_same_pictures(first: Session, second: Session) -> None:
    """Refuses to compare two models that were not trained on the same data.

    Raises:
        UserError: their classes or their pictures differ.
    """
    if first.class_names != second.class_names:
        raise UserError(
            f"{second.name} has other classes than {first.name} ({len(second.class_names)} and "
            f"{len(first.class_names)}); only runs on the same data can be compared."
        )
    if not np.array_equal(first.pictures.labels, second.pictures.labels):
        raise UserError(
            f"{second.name} has other test pictures than {first.name}; only runs on the same data can be compared."
        )


def warm_up(session: Session, *, console: Console) -> None:
    """Compiles what edits and pictures need, by asking."""
    other = int((session.predicted[0] + 1) % len(session.class_names))
    name = session.attribute_names[0]
    questions = [Question(0), Question(0, other, observed=True), Question(0, other, locked=(name,))]
    limits = [limit for limit in (4, 8, 16) if limit <= min(MOST_CHANGES, len(session.attribute_names))]
    questions += [Question(0, other, at_most=limit, observed=seen) for limit in limits for seen in (False, True)]
    questions += [Question(0, at_most=limits[0])] if limits else []
    total = len(questions) + len(CONFIGS) + 1
    with console.progress(f"getting {session.name} ready", total, unit="steps") as task:
        for done, question in enumerate(questions):
            for effort in ("quick", "full"):
                session.answer(question, effort)
            task.update(done + 1)
        picture = session.pictures.one(0)
        with session.turns.turn():
            session.encode_images(picture[None])
            for done, aim in enumerate(CONFIGS):
                search(session, picture, session.attributes[0], other, aim, lambda now: None)
                task.update(len(questions) + done + 1)
        task.update(total)
