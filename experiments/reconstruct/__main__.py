"""Reconstructs the images of a trained run from their attributes: trains a decoder, measures it, shows its pictures."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from experiments.cli.command import UserError, check_run_folder, command, run_main
from experiments.cli.options import Seed
from experiments.reconstruct.options import DecoderConfig
from spectra_jax.logging import Console, duration, write_json


@dataclass(frozen=True)
class Args:
    """Reconstructs test images from only a trained run's attributes (Section 3.3, Eq. 7).

    python -m experiments.reconstruct --run-dir runs/cnn-synthetic-seed0 --out runs/reconstruct --steps 250
        synthetic birds at 64 pixels; a minute of processor time for 250 steps. Held-out PSNR 18.3 dB, mean image 14.0.

    python -m experiments.reconstruct --run-dir RUN --out DIR --steps 100
        photographs of 106 classes, shrunk to 64 pixels; a minute for 100 steps. Held-out PSNR 13.6 dB, mean image 13.2.

    The encoder stays as it is. The decoder starts as the ridge regression from the attributes to the pixels and learns
    a correction on the training split. The version that is best on the validation split is kept; in both examples the
    correction adds less than 0.01 dB to the regression. A run trained with --lambda-reconstruction has its own
    decoder, which is then measured as it is. Repeating the command resumes.

    Attributes:
        run_dir: the run folder of experiments.train or experiments.quickstart.
        out: the folder to write to.
        attributes: names or 0-based ids of the attributes to change before decoding; by default those with the most
            visible effect.
        seed: seed of initialisation, noise and the order of the examples.
        quiet: show only errors.
    """

    run_dir: Path
    out: Path
    decoder: OmitArgPrefixes[DecoderConfig] = field(default_factory=DecoderConfig)
    attributes: tuple[str, ...] = ()
    seed: Seed = 0
    quiet: bool = False

    def check(self) -> None:
        check_run_folder(self.run_dir)


def reconstruct(args: Args) -> tuple[Path, int]:
    """Trains or takes the decoder, measures it and writes the out folder. Returns the report and the exit code."""
    from experiments.reconstruct import solve as pictures
    from experiments.reconstruct.page import add_figures, add_pictures, choose_attributes
    from experiments.runs.folder import SUMMARY, owned_folder
    from experiments.runs.loading import checksum, load_run
    from experiments.runs.stored import read_records
    from spectra_jax.models import build_decoder
    from spectra_jax.reporting import Report
    from spectra_jax.training import DECODER, training_decoder

    began = time.monotonic()
    console = Console(quiet=args.quiet)
    run = load_run(args.run_dir)
    brought = DECODER in run.params
    if brought:
        decoder = training_decoder(run.model, run.config)
    else:
        try:
            decoder = build_decoder(num_attributes=run.info.num_attributes, image_size=args.decoder.image_size)
        except ValueError as error:
            raise UserError(f"--image-size: {error}") from error
    # The decoder depends on these; which attributes are shown may change without training it again.
    settings = {"decoder": dataclasses.asdict(args.decoder), "seed": args.seed, "run": checksum(run)}
    with owned_folder(args.out, "experiments.reconstruct", settings) as out:
        load = pictures.load_examples(run, decoder.image_size, console=console)
        train, test = load("train"), load("test")
        if run.dataset.num_examples("validation"):
            held_out = load("validation")
        else:
            train, held_out = pictures.set_aside(train)
        linear, best = pictures.linear_decoder(decoder, train, held_out, seed=args.seed), {}
        if brought:
            params = run.params[DECODER]
        else:
            params, step, code = pictures.train_decoder(
                decoder, linear, train, held_out, args.decoder, out, seed=args.seed, console=console
            )
            if code:
                console.say("stopped; repeat the command to continue from there")
                return out, code
            best = {"best_step": step}
        figures = pictures.reconstruction_figures(run, decoder, params, linear, train, test)
        columns = choose_attributes(run, decoder, params, test, args.attributes)
        seconds = time.monotonic() - began
        write_json(out / SUMMARY, figures | best | {"seconds": seconds})
        report = Report("SPECTRA reconstruction", subtitle=f"{run.config.model} on {run.info.name}")
        add_figures(report, figures)
        add_pictures(report, run, decoder, params, test, columns)
        if not brought:
            kept = f"Shown is the decoder of step {step}, the best on the validation split; step 0 is ridge regression."
            records = read_records(out)
            names = [n for n in ("loss", "reconstruction_psnr") if any(n in record for record in records)]
            if names:  # not where somebody deleted the records of a finished training
                report.curves("Training of the decoder", records, names=names, caption=kept)
        report.provenance(seed=args.seed, seconds=seconds, run=str(args.run_dir))
        psnr, line, mean = (figures[f"test/reconstruction_psnr{name}"] for name in ("", "_linear", "_baseline"))
        said = f"{psnr:.2f} dB on the test split, ridge regression {line:.2f} dB, the mean image {mean:.2f} dB"
        console.say(f"{said}; {duration(seconds)}")
        return report.write(out / "report.html"), 0


main = command(Args, "reconstruct", reconstruct)

if __name__ == "__main__":
    run_main(main)
