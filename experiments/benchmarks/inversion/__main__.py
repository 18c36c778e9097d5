"""Images that reach or leave a class, compared with the minimum-norm attacks of other libraries on the same model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks.inversion.methods import NEAREST, OURS, split_limit
from experiments.cli.command import UserError, check_run_folder, parse, run_main
from experiments.cli.options import Seed
from spectra_jax.logging import Console


@dataclass(frozen=True)
class Args:
    """Inverts pairs of a trained run with our methods and attacks the same pairs with those of other libraries.

    python -m experiments.benchmarks.inversion --run-dir RUN --out DIR
        64 pixels: 5 minutes on 2 CPU cores.

    python -m experiments.benchmarks.inversion --run-dir RUN --out DIR --peers ddn-20 ddn-60:100 cw-5x50:100 \
            --ours "spectra_jax nearest" "spectra_jax nearest, first found"
        224 pixels: 15 minutes, 12 GiB of memory.

    python -m experiments.benchmarks.inversion --run-dir RUN --out DIR --untargeted \
            --peers ddn-20 ddn-100 fmn-100 alma-300 pdgd-500 sdf-3 apgd_t-8x20:100
        with the attacks of Adversarial Library (extra "attacks"), the class to be left instead of reached.

    The methods take turns batch by batch, so that a busy machine slows all alike; each is compiled first. Finished
    results are kept in DIR, and repeating the command continues from there.

    Attributes:
        run_dir: a run folder of experiments.train.
        out: the folder to write to.
        pairs: number of (image, target) pairs, half with the nearest class as target and half with any.
        batch_size: number of pairs handed over together, to our methods and to the peers.
        peers: Foolbox's ddn-STEPS and cw-SEARCHESxSTEPS, Adversarial Library's advlib_ddn-, fmn-, alma- and pdgd-STEPS
            and, untargeted, sdf-STEPS and apgd_t-SEARCHESxSTEPS. "@256" keeps to so many levels where an attack can,
            ":PAIRS" takes the first pairs only.
        ours: methods of ours by name, with ":PAIRS" likewise; untargeted, "nearest" alone knows what to do.
        untargeted: leave the predicted class for any other.
        seed: seed of the choice of pairs.
    """

    run_dir: Path
    out: Path
    pairs: int = 200
    batch_size: int = 100
    peers: tuple[str, ...] = ("ddn-20", "ddn-100", "ddn-300", "cw-5x100:100")
    ours: tuple[str, ...] | None = None
    untargeted: bool = False
    seed: Seed = 0

    def check(self) -> None:
        check_run_folder(self.run_dir)

    @property
    def our_methods(self) -> tuple[str, ...]:
        """Those named, or all that apply."""
        return self.ours or tuple(name for name in OURS if not self.untargeted or OURS[name].method == "nearest")


def _check_names(args: Args) -> None:
    from experiments.attacks.peers import find_peer

    for name in args.our_methods:
        base = split_limit(name, args.pairs)[0] if _limit_is_valid(name, args) else name
        if base not in OURS:
            raise UserError(f"--ours {name!r}: choose from {', '.join(map(repr, OURS))}")
        if args.untargeted and OURS[base].method != "nearest":
            raise UserError(f"--ours {name!r} needs a target; omit it or --untargeted")
    for name in args.peers:
        try:
            peer = find_peer(split_limit(name, args.pairs)[0] if _limit_is_valid(name, args) else name)
        except ValueError as error:
            raise UserError(f"--peers: {error}") from None
        if not (peer.targeted or args.untargeted):
            raise UserError(f"--peers {name!r} can only leave a class; add --untargeted or omit it")
    if NEAREST not in args.our_methods:
        raise UserError(f'--ours: "{NEAREST}" must be there, for all pairs; the peers are compared with it')


def _limit_is_valid(name: str, args: Args) -> bool:
    _, colon, limit = name.partition(":")
    if colon and not (limit.isdecimal() and 0 < int(limit) <= args.pairs):
        raise UserError(f"{name!r}: what follows the colon is a number of pairs, from 1 to --pairs {args.pairs}")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks.inversion")
    from experiments.benchmarks.inversion.figures import table
    from experiments.benchmarks.inversion.measure import measure
    from experiments.cli.devices import use_compilation_cache
    from experiments.runs.folder import owned_folder
    from experiments.runs.loading import load_run
    from spectra_jax.reporting.page import write_atomically

    use_compilation_cache()
    _check_names(args)
    run = load_run(args.run_dir)
    with owned_folder(args.out, "experiments.benchmarks.inversion", {"run": str(args.run_dir)}) as out:
        figures = measure(run, args, Console())
        write_atomically(out / "inversion.json", json.dumps(figures, indent=1) + "\n")
        write_atomically(out / "table.md", table(figures))
    print(table(figures))
    return 0


if __name__ == "__main__":
    run_main(main)
