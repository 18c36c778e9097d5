"""The systems that the paper cites, next to its own and ours: same birds, same classifier, same measures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.cited_systems.options import ComparisonConfig
from experiments.cli.command import UserError, check_run_folder, command, run_main
from experiments.cli.options import Seed
from spectra_jax.logging import Console, duration


@dataclass(frozen=True)
class Args:
    """Asks every system for the same counterfactuals of a trained run and compares their answers.

    python -m experiments.cited_systems --run-dir runs/cnn-synthetic-seed0 --witness-dir OTHER_SEED --out DIR
        synthetic birds at 64 pixels; training the auto-encoder takes ten minutes on two cores, and it is cached.

    The systems are middle-level explanations (Apicella et al.), ante-hoc concepts (Sarkar et al.), latent adversarial
    images (Shukla and Banerjee), the paper's loop, the smallest change, and the search on the manifold of the
    auto-encoder that they share; and, for concepts without images, counterfactual concept bottlenecks (Dominici et
    al.). Writes table.md, summary.json and report.html. An interrupted command can be repeated: finished searches are
    kept.

    Attributes:
        run_dir: the run folder of experiments.train whose classifier is explained.
        out: the folder to write to.
        witness_dir: an independently trained run on the same data (another seed or model), which tells whether it
            agrees and how far the answers are from real images in its features. Without it, these columns are missing.
        seed: seed of all choices and of all trainings.
        quiet: show only errors.
    """

    run_dir: Path
    out: Path
    comparison: Annotated[ComparisonConfig, tyro.conf.arg(name="")] = field(default_factory=ComparisonConfig)
    witness_dir: Path | None = None
    seed: Seed = 0
    quiet: bool = False

    def check(self) -> None:
        for run_dir in (self.run_dir, self.witness_dir):
            if run_dir is not None:
                check_run_folder(run_dir)


def cited_systems(args: Args) -> Path:
    """Searches, measures and writes the out folder; returns the report."""
    import numpy as np

    from experiments.cited_systems import cf_cbm, concept_space, measure, sarkar, solve
    from experiments.cited_systems.autoencoder import reconstruction_figures, trained_autoencoder
    from experiments.cited_systems.page import Row, write_page, write_results
    from experiments.cited_systems.subject import Subject, make_pairs
    from experiments.counterfactuals.find import choose_pairs
    from experiments.counterfactuals.options import PairConfig
    from experiments.runs.folder import owned_folder
    from experiments.runs.loading import checksum, load_run, load_test_split

    began, console, config = time.monotonic(), Console(quiet=args.quiet), args.comparison
    run = load_run(args.run_dir)
    size = run.config.image_size
    attributes, labels, _ = load_test_split(args.run_dir)
    witness = None
    if args.witness_dir is not None:
        other = load_run(args.witness_dir)
        if other.dataset.path.name != run.dataset.path.name or checksum(other) == checksum(run):
            raise UserError(f"--witness-dir {args.witness_dir}: expected another network, trained on the same data")
        witness = measure.make_witness(other, size)
    chosen = PairConfig(num_pairs=config.num_pairs, targets=config.targets)
    pairs = make_pairs(run, attributes, *choose_pairs(run, attributes, labels, chosen, seed=args.seed),
                       margin=config.requested_margin)  # fmt: skip
    with owned_folder(args.out, "experiments.cited_systems", {}) as out:
        trained = trained_autoencoder(run.dataset, size, config.autoencoder, seed=args.seed, console=console)
        subject = Subject(run, trained)
        spread = attributes.std(axis=0)
        places = measure.named_places(subject, pairs, spread)
        about = [checksum(run, attributes, labels), solve.settings_of(config), args.seed]
        concepts = {
            reading: solve.learnt_concepts(subject, out, about, reading, seed=args.seed) for reading in sarkar.READINGS
        }
        originals = pairs.images.astype(np.float32) / 255

        def row(title: str, images: np.ndarray, seconds: np.ndarray | None = None) -> Row:
            timed = np.full(len(images), np.nan) if seconds is None else seconds
            found = measure.measures(subject, pairs, places, witness, spread, images, timed)
            return Row(title, images, measure.figures(found, is_control=seconds is None))

        drawn = np.round(trained.reconstruct(originals) * 255).astype(np.uint8)
        real = measure.real_images(subject, pairs, labels, seed=args.seed)
        rows = {"reconstruction": row("The original, reconstructed", drawn)}
        for name, system in solve.systems(subject, config, concepts["as defined"]).items():
            found = solve.answers(system, name, pairs, out, about, config, console=console)
            rows[name] = row(system.title, found["images"], found["seconds"])
        rows["real"] = row("A real image of the target", real)
        held_out = run.dataset.arrays("test", image_size=size).inputs.astype(np.float32) / 255
        quality = reconstruction_figures(trained, held_out)
        extra: dict[str, Any] = {f"autoencoder/{name}": float(values.mean()) for name, values in quality.items()}
        for reading, learnt in concepts.items():
            suffix = "" if reading == "as defined" else "_as_coded"
            extra[f"sarkar/fidelity{suffix}"] = float(sarkar.fidelity(subject, learnt, pairs.images).mean())
        curves = solve.deletion(subject, pairs, seed=args.seed)
        extra |= {f"apicella/deletion_{name}": float(curve.mean()) for name, curve in curves.items()}
        training, test = cf_cbm.splits(run)
        learnt_model = solve.learnt_cf_cbm(training, out, about, num_classes=run.info.num_classes, seed=args.seed)
        questions, said = concept_space.ask(
            learnt_model, test.features[pairs.rows], pairs.target, training, margin=config.margin
        )
        concept_rows = concept_space.compare(questions, said, training)
        extra |= {f"cf_cbm/{name}": value for name, value in cf_cbm.accuracy(learnt_model, test).items()}
        seconds = time.monotonic() - began
        write_results(out, rows, concept_rows, extra, seconds=seconds)
        subtitle = f"{run.config.model} on {run.info.name}, {len(pairs.rows)} pairs"
        console.say((out / "table.md").read_text(encoding="utf-8"))
        console.say(f"done in {duration(seconds)}")
        return write_page(out / "report.html", rows, concept_rows, pairs, places, run.info, curves, extra,
                          subtitle=subtitle, seed=args.seed, seconds=seconds)  # fmt: skip


main = command(Args, "cited_systems", cited_systems)

if __name__ == "__main__":
    run_main(main)
