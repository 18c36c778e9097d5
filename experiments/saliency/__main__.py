"""Which pixels the attributes of a trained run depend on, and whether they lie on the part that the attribute names."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.cli.command import UserError, command, run_main
from experiments.cli.options import OwnModel, Seed, check_subject
from spectra_jax.logging import Console, MetricsFile, duration, write_json


@dataclass(frozen=True)
class Args:
    """Activation maps of a trained run's test images: the paper's Section 2.4.

    python -m experiments.saliency --run-dir RUN --out DIR
        60 correctly classified images x 3 attributes; about a minute on 2 CPU cores. If the data have part points, it
        also measures how often the 500 pixels fall on the part that the attribute names.

    python -m experiments.saliency --run-dir RUN --out DIR --image 12 40 --attribute NAME
        these images of the test split and this attribute.

    Writes metrics.jsonl (one record per map), summary.json and report.html.

    Attributes:
        out: the folder to write to.
        run_dir: the run folder of experiments.train or experiments.quickstart.
        image: positions in the test split; by default correctly classified images of all classes in turn.
        attribute: names or 0-based ids; by default those that contribute most to the class (weight times value).
        num_images: number of images to choose if none are given.
        num_attributes: number of attributes to choose per image if none are given.
        top_k: number of pixels to keep, 500 in the paper.
        seed: seed of the choice of images and of the random attributes to compare with.
        quiet: show only errors.
    """

    out: Path
    run_dir: Path | None = None
    own: Annotated[OwnModel, tyro.conf.arg(name="")] = field(default_factory=OwnModel)
    image: tuple[int, ...] = ()
    attribute: tuple[str, ...] = ()
    num_images: int = 60
    num_attributes: int = 3
    top_k: int = 500
    seed: Seed = 0
    quiet: bool = False

    def check(self) -> None:
        check_subject(self.run_dir, self.own)

    def __post_init__(self) -> None:
        for name in ("num_images", "num_attributes", "top_k"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")


def saliency(args: Args) -> Path:
    """Draws the maps, measures them and writes the out folder; returns the report."""
    import jax
    import jax.numpy as jnp

    from experiments.counterfactuals.parts import lift, part_discs
    from experiments.runs.folder import METRICS, SUMMARY, owned_folder
    from experiments.runs.loading import checksum
    from experiments.runs.own_model import open_subject
    from experiments.runs.part_names import group_of, part_names
    from experiments.saliency.choice import choose
    from experiments.saliency.page import NO_PARTS, Map, figures, records, write
    from spectra_jax import activation_map

    began = time.monotonic()
    console = Console(quiet=args.quiet)
    run, attributes, labels = open_subject(args.run_dir, args.own)
    info, size = run.info, run.config.image_size
    rng = np.random.default_rng(args.seed)
    chosen = choose(
        *(run, attributes, labels, rng), chosen_images=args.image, chosen_attributes=args.attribute,
        num_images=args.num_images, num_attributes=args.num_attributes,
    )  # fmt: skip
    encode = functools.partial(run.model.encode, run.params)
    strongest = jax.jit(lambda images, f: activation_map(encode, images, f, top_k=args.top_k)[0])
    groups = np.array([group_of(name) for name in info.attribute_names])
    maps = []
    options = {"maps": chosen, "top_k": args.top_k, "seed": args.seed, "model": checksum(run, attributes)}
    with (
        owned_folder(args.out, "experiments.saliency", options) as out,
        console.progress("activation maps", len(chosen), unit="maps") as task,
    ):
        for index, f, contribution in chosen:
            name = info.attribute_names[f]
            picture = run.dataset.images("test", np.array([index]), image_size=size)
            pixels = jnp.asarray(picture, jnp.float32) / 255
            kept = np.asarray(strongest(pixels, f))
            discs = part_discs(info, run.dataset.example("test", index), name, size)
            others = [g for g in range(len(groups)) if not set(part_names(groups[g])) & set(part_names(name))]
            control, control_lift = None, float("nan")
            if discs is not None and others:  # the same place, seen by an attribute of another part
                control = int(rng.choice(others))
                control_lift = lift(np.asarray(strongest(pixels, control)) > 0, discs.inside)
            inside = float("nan") if discs is None else lift(kept > 0, discs.inside)
            maps.append(Map(index, int(labels[index]), f, contribution, picture[0], kept, discs, inside, control,
                            control_lift))  # fmt: skip
            task.update(len(maps))
        metrics = MetricsFile(out / METRICS)
        for step, row in enumerate(records(run, maps)):
            metrics.append({"step": step, "split": "test", **row})
        metrics.close()
        summary = figures(maps) | {"seconds": time.monotonic() - began}
        write_json(out / SUMMARY, summary)
        console.say(f"{len(maps)} maps in {duration(summary['seconds'])}")
        if not info.part_names:
            console.say(NO_PARTS)
        return write(run, maps, summary, out / "report.html", top_k=args.top_k, seed=args.seed)


main = command(Args, "saliency", saliency)

if __name__ == "__main__":
    run_main(main)
