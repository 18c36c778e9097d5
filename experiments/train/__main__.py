"""Trains an attribute-bottleneck classifier and leaves a run folder; a repeated command resumes it."""

from experiments.cli.command import command, run_main
from experiments.cli.options import preset
from experiments.training.train import TrainArgs, train

main = command(TrainArgs, "train", train, default=lambda words: TrainArgs(preset(words)))

if __name__ == "__main__":
    run_main(main)
