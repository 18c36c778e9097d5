"""Settings of JAX before it starts: other hosts, the cores of a CPU, and where compiled programs are kept."""

import dataclasses
import os
from pathlib import Path

import jax

from experiments.cli.command import UserError
from experiments.cli.options import HostsConfig
from spectra_jax.sharding import initialize_distributed


def join_hosts(config: HostsConfig) -> None:
    """Joins the other processes of a multi-host run, if there are any; before anything touches a device."""
    try:
        initialize_distributed(**dataclasses.asdict(config))
    except ValueError as error:
        raise UserError(str(error)) from error


def cache_dir() -> Path:
    """Where prepared data, weights and features are kept: $SPECTRA_JAX_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SPECTRA_JAX_CACHE")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "spectra_jax")
    try:
        return Path(chosen).expanduser().absolute()  # a run remembers it, and may be read from elsewhere
    except RuntimeError as error:
        raise UserError(f"There is no home folder to cache in ({error}): set SPECTRA_JAX_CACHE to a folder.") from error


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, where the user has not said (JAX_COMPILATION_CACHE_DIR) where to keep them.

    A script's choice: the library itself never touches jax.config.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, a full disk: without it everything works, and jax would warn about each program
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def one_device_a_core() -> None:
    """Lets JAX see a CPU as one device per core; before anything touches a device.

    One program on one device spreads each of its small operations over all cores and gains little; programs that share
    nothing do better. A number of devices that the user chose stays, and other backends do not notice.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.values["jax_num_cpu_devices"] < 0:  # JAX_NUM_CPU_DEVICES sets it as well
        jax.config.update("jax_num_cpu_devices", num_cores())


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
