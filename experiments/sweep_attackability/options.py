"""The options of experiments.sweep_attackability."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.cli.command import UserError, check_file, check_run_folder
from spectra_jax.array_sources import url_of

# Of nearest.parquet, before the further ids; the other tables have more.
NEAREST_COLUMNS = (
    *("sample", "id", "label", "predicted", "predicted_name"),
    *("nearest", "nearest_name", "distance", "attackability"),
)

_OTHER_COLUMNS = (
    *("target", "method", "norm", "active_constraints", "feasible", "residual", "delta", "length"),
    *("single_attribute", "single_delta", "largest_attribute", "largest_delta"),
)


@dataclass(frozen=True)
class InputConfig:
    """The features and the head.

    Attributes:
        run_dir: a finished run folder of experiments.train or experiments.quickstart; uses its test split and its head.
        features: (N, n) in .npy, .npz, .safetensors, .parquet (lists of equal length, or a column per dimension) or
            .array_record (a row per record), a Zarr v3 array or group, a folder of such files whose rows are
            concatenated, or the URL of a file or folder. Needs --head.
        head: (c, n) weights, optional (c,) bias, in .npy, .npz or .safetensors, e.g. a PyTorch state dict.
        labels: class indices (N,), (N, 1) or one-hot, in a file of the same kinds; by default those in the features'
            file, if any.
        feature_name: name of the array in the file; default attributes, features, embeddings or the only one that fits.
        label_name: name of the labels; default labels, label, targets, target, y or the only one that fits; none for
            no labels.
        head_weight: name of the weights, e.g. fc.weight; default weights, weight or the only one that fits.
        head_bias: name of the bias, e.g. fc.bias; default the array beside the weights that fits.
        head_transposed: the weights are stored as (n, c), as Flax and Keras keep a kernel.
        bias: with --no-bias the head has no bias, whatever lies beside the weights.
        class_names: text file, one name per line; a run folder has its own.
        attribute_names: text file, one name per line; a run folder has its own.
        ids: names of the samples in tables and files: a text file, one id per line; by default the array or column
            ids or id beside the features, else the row number, counted from 0.
        id_name: another name of that array or column. If there are several, the first names the samples, and all of
            them are copied to all tables of samples and pairs.
    """

    run_dir: Path | None = None
    features: Path | None = None
    head: Path | None = None
    labels: Path | None = None
    feature_name: str | None = None
    label_name: str | None = None
    head_weight: str | None = None
    head_bias: str | None = None
    head_transposed: bool = False
    bias: bool = True
    class_names: Path | None = None
    attribute_names: Path | None = None
    ids: Path | None = None
    id_name: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises UserError unless there is one input, and its files are there."""
        given = (self.run_dir is not None, self.features is not None, self.head is not None)
        if given not in ((True, False, False), (False, True, True)):
            raise UserError("Name either --run-dir, or --features and --head.")
        if self.run_dir is not None:
            check_run_folder(self.run_dir)
        for name in ("features", "head", "labels", "class_names", "attribute_names", "ids"):
            path = getattr(self, name)
            if path is not None and url_of(path) is None:
                check_file(name.replace("_", "-"), path)
        carried = self.id_name[self.ids is None :]
        known = NEAREST_COLUMNS + _OTHER_COLUMNS
        names = [name.lower() for name in self.id_name]  # as SQL reads them
        taken = [name for name in carried if name.lower() in known or names.count(name.lower()) > 1]
        if taken:
            raise UserError(
                f"--id-name {' '.join(self.id_name)}: {taken[0]} would name two columns; expected names that differ "
                f"from each other and from {', '.join(known)}"
            )


@dataclass(frozen=True)
class ShardConfig:
    """A share of the samples, answered without a coordinator.

    Attributes:
        shard: i/n, counted from 0: answer only the i-th of n shares of the samples. Start as many as you like with the
            same --out, in any order, on any machine; a shard that is finished already ends at once.
        merge: read the finished shards, write the tables and the report, and list the missing shards; the exit code
            is 1 if any are missing.
        ray: number of shards to answer all samples in, on the Ray cluster that RAY_ADDRESS names or on the cores of
            this machine; they are then merged. Needs the extra "ray".
    """

    shard: str = ""
    merge: bool = False
    ray: int = 0

    def check(self) -> None:
        """Raises UserError unless there is such a shard."""
        if self.ray < 0:
            raise UserError(f"--ray {self.ray}: expected a number of shards, e.g. 32")
        if self.ray and (self.shard or self.merge):
            raise UserError("--ray answers all shards and merges them: omit --shard and --merge.")
        if not self.shard:
            return
        if self.merge:
            raise UserError("--shard answers a share and --merge reads the answers: give only one of them.")
        number, _, of = self.shard.partition("/")
        if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            raise UserError(f"--shard {self.shard}: expected i/n with i from 0 to n - 1, e.g. 0/8")


@dataclass(frozen=True)
class SolveConfig:
    """The distances to solve for all (sample, target) pairs, besides those to the nearest class.

    Attributes:
        all_pairs: also solve every pair, by projection and boundary. This is the default if it takes only a minute or
            two: up to 5 million pairs of a head that is not too large. The options below concern all pairs and imply
            this one.
        nearest_only: solve no pairs, however few there are: only one product of features and head, and no compilation
            of the exact solver.
        methods: which of projection (exact for every target), boundary (EXACT for attackability and the nearest class;
            a lower bound for a single target) and pinv (the paper's all-way tie; cheap, except with a bias or a margin
            and more classes than attributes: a factorisation per class and block); default projection and boundary.
        margin: the lead in logits that a target must have over every other class.
        immutable: names or indices of attributes that must not change; not available with pinv.
        deltas: also write the changes themselves, n numbers per row; pinv then needs one more factorisation per class
            and block.
        precision: float32, or float64 for pairs that float32 leaves unresolved (about 2 times slower on a CPU).
        samples_per_partition: samples per file; 0 for files of about 262,144 pairs per method. Ctrl-C or a kill loses
            at most the files in progress.
    """

    methods: tuple[Literal["projection", "boundary", "pinv"], ...] = ()
    margin: float = 0.0
    immutable: tuple[str, ...] = ()
    deltas: bool = False
    precision: Literal["float32", "float64"] = "float32"
    samples_per_partition: int = 0
    all_pairs: bool = False
    nearest_only: bool = False

    @property
    def asks_for_pairs(self) -> bool:
        """Whether an option speaks of all pairs."""
        return bool(
            self.methods or self.margin or self.immutable or self.deltas or self.samples_per_partition or self.all_pairs
        )

    def check(self) -> None:
        """Raises UserError where pairs are both asked for and not wanted."""
        if self.nearest_only and self.asks_for_pairs:
            raise UserError(
                "--nearest-only solves no pairs, but another option asks for them (--all-pairs, --methods, --margin, "
                "--immutable, --deltas or --samples-per-partition): omit one of the two."
            )
