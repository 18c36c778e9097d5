"""What would have to change: named answers under rules, for a run or for your own model."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.cli.command import UserError, check_file, command, run_main
from experiments.cli.options import OwnModel, check_subject
from experiments.explain.rules import Rules
from spectra_jax.logging import Console, MetricsFile, duration, write_json


@dataclass(frozen=True)
class Args:
    """Shows what would have to change for images to be of another class, and searches for images that show it.

    python -m experiments.explain --run-dir RUN --out DIR --max-changes 3 --immutable "has_size::*"
    python -m experiments.explain --encoder my_model:encode --head head.safetensors --images x.npz \\
        --attribute-names a.txt --class-names c.txt --immutable Male Young --observed-range --max-changes 3 --out DIR

    python -m experiments.explain --attributes features.npz --head head.safetensors --out DIR
        explains attributes that you have already, without images.

    Writes answers.csv (a row per change), answers.npz, images.npz, images/ (PNG), summary.json and report.html.

    Attributes:
        out: the folder to write to.
        run_dir: the run folder of experiments.train or experiments.quickstart.
        attributes: (N, n) in .npz, .npy or .safetensors, in place of --run-dir or of --encoder and --images.
        rows: positions of the images in the test split or the file; the first ones if not given. The answers number
            them from 0 in this order.
        num_images: number of images, if no rows are given.
        targets: "nearest", "all", or names of classes.
        margin: lead of the target over every other class, in logits.
        num_answers: number of different answers per image and target.
        realise: search for an image of each answer, by the smallest change that reaches the class.
        quiet: show only errors.
    """

    out: Path
    run_dir: Path | None = None
    own: Annotated[OwnModel, tyro.conf.arg(name="")] = field(default_factory=OwnModel)
    attributes: Path | None = None
    rules: Annotated[Rules, tyro.conf.arg(name="")] = field(default_factory=Rules)
    rows: tuple[int, ...] = ()
    num_images: int = 12
    targets: tuple[str, ...] = ("nearest",)
    margin: float = 0.1
    num_answers: int = 1
    realise: bool = True
    quiet: bool = False

    def check(self) -> None:
        """Raises UserError unless there is a run, an own model or attributes, and something to explain."""
        if self.attributes is None:
            check_subject(self.run_dir, self.own)
        elif self.run_dir or self.own.encoder or self.own.images or self.own.head is None:
            raise UserError("--attributes needs --head and excludes --run-dir, --encoder and --images.")
        check_file("attributes", self.attributes)
        if self.num_images < 1:
            raise UserError(f"--num-images {self.num_images}: expected 1 or more")


def explain_run(args: Args) -> Path:
    """Answers, writes the out folder and returns the report."""
    import jax.numpy as jnp
    import pyarrow.csv

    from experiments.explain.pictures import write_pictures
    from experiments.explain.subject import open_explained
    from experiments.runs.folder import IMAGES, METRICS, SUMMARY, owned_folder
    from experiments.runs.store import write_arrays
    from spectra_jax import Status, explain

    began, console = time.monotonic(), Console(quiet=args.quiet)
    subject = open_explained(args.run_dir, args.own, args.attributes)
    head, attributes = subject.head, subject.attributes
    rows = np.array(args.rows or range(min(args.num_images, len(attributes))), int)
    if rows.min() < 0 or rows.max() >= len(attributes):
        raise UserError(f"--rows: expected numbers from 0 to {len(attributes) - 1}")
    targets = args.targets[0] if args.targets in (("nearest",), ("all",)) else list(args.targets)
    try:
        answers = explain(
            *(head, jnp.asarray(attributes[rows], head.weights.dtype)),
            attribute_names=subject.attribute_names,
            class_names=subject.class_names,
            targets=targets,
            margin=args.margin,
            num_answers=args.num_answers,
            reference=attributes if len(attributes) > 1 else None,
            **args.rules.as_arguments(),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    pixels = None if subject.pixels is None else subject.pixels(rows)
    images = None if pixels is None else jnp.asarray(pixels, jnp.float32) / 255
    options = {"answers": dataclasses.asdict(args.rules), "rows": rows.tolist(), "model": subject.identity}
    options |= {name: getattr(args, name) for name in ("targets", "margin", "num_answers", "realise")}
    with owned_folder(args.out, "experiments.explain", options) as out:
        if args.realise and pixels is not None:
            answers = answers.realise(subject.encode, images)
            found = answers.realised
            assert found is not None
            write_arrays(out / "images.npz", originals=pixels, images=found.images, success=found.success)
            write_pictures(out / IMAGES, rows, answers, pixels)
        pyarrow.csv.write_csv(answers.table("arrow"), out / "answers.csv")
        arrays = {name: np.asarray(getattr(answers, name)) for name in ("delta", "norm", "status", "targets", "proven")}
        write_arrays(out / "answers.npz", rows=rows, attributes=attributes[rows], **arrays)
        solved = arrays["status"][..., 0] == Status.SOLVED
        records = MetricsFile(out / METRICS)
        for step, answer in enumerate(answers):
            words = {"sample": int(rows[answer.sample]), "target": answer.target, "distance": answer.distance}
            records.append({"step": step, "split": "test", **words, "status": answer.status.name.lower()})
        records.close()
        figures = {"explain/num_pairs": int(solved.size), "explain/solved": float(solved.mean())}
        figures["explain/proven"] = float(arrays["proven"][..., 0].mean())
        if answers.realised is not None:
            figures["explain/images_reached"] = float(np.asarray(answers.realised.success)[solved].mean())
        write_json(out / SUMMARY, figures | {"seconds": time.monotonic() - began})
        console.say(str(answers))
        for place in np.argwhere(~solved & (answers.targets != answers.predicted[:, None]))[:5].tolist():
            console.say(f"Sample {place[0]}: {answers.reason(*place)}")
        left = len(attributes) - len(rows)
        others = f"; {left} other samples were not chosen (--num-images, --rows)" if left else ""
        took = duration(time.monotonic() - began)
        console.say(f"{solved.sum()} of {solved.size} pairs have an answer, found in {took}{others}")
        return answers.to_html(
            out / "report.html",
            images=None if images is None else np.asarray(images),
            title="What would have to change",
        )


main = command(Args, "explain", explain_run)

if __name__ == "__main__":
    run_main(main)
