"""Trains an attribute-bottleneck classifier and leaves a run folder; a repeated command resumes it."""

from collections.abc import Sequence

from experiments.cli.command import UserError, parse, run_main
from experiments.cli.options import preset
from experiments.training.train import TrainArgs, train


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(TrainArgs, arguments, "train", default=lambda words: TrainArgs(preset(words)))
    from experiments.cli.devices import join_hosts, use_compilation_cache
    from spectra_jax.checkpoint import CheckpointError
    from spectra_jax.training import NonFiniteError

    use_compilation_cache()
    join_hosts(args.hosts)
    try:
        path, code = train(args)
    except (NonFiniteError, CheckpointError) as error:
        raise UserError(str(error)) from error
    print(path)
    return code


if __name__ == "__main__":
    run_main(main)
