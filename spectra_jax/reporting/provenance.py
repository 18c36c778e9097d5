"""Where a report comes from: command, versions, device, date."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata


def command_line() -> str:
    """The running command as one would type it; a module run with -m is shown by its name, without machine paths."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:
        name = spec.name.removesuffix(".__main__")
        return shlex.join(["python", "-m", name, *sys.argv[1:]])
    return shlex.join(["python", sys.argv[0].rsplit("/", 1)[-1], *sys.argv[1:]])


def versions() -> str:
    """Versions of Python and of the packages that decide the numbers."""
    found = [f"Python {platform.python_version()}"]
    for package in ("jax", "flax", "numpy", "spectra-jax"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def device() -> str:
    """Number and kind of the JAX devices in use; says so if JAX was never imported (it is not started for this)."""
    jax = sys.modules.get("jax")
    if jax is None:
        return "JAX not used"
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})"


def now() -> str:
    """The present date and time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
