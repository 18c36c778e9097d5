"""Data parallelism over every device of every process: batches split by rows, parameters replicated.

Only placement happens here. The training step itself is an ordinary jitted function; the compiler inserts the
reductions because its inputs carry these shardings, so one device, many devices and many hosts run the same code.
"""

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from spectra_jax.types import AnyBatch

BATCH_AXIS = "batch"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices` (default: all devices of all processes)."""
    chosen = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(chosen),), (BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters, optimiser state and metrics: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def pad_rows(batch: AnyBatch, multiple: int) -> AnyBatch:
    """Appends zero rows with `valid` False until the number of rows is a multiple of `multiple`.

    Args:
        batch: NumPy arrays with b rows each.
        multiple: the number of devices of this process.

    Returns:
        The same batch when b is already a multiple, otherwise a padded copy.
    """
    missing = -len(batch.labels) % multiple
    if not missing:
        return batch
    return jax.tree.map(lambda leaf: np.pad(leaf, [(0, missing)] + [(0, 0)] * (np.ndim(leaf) - 1)), batch)


def place_batch(batch: AnyBatch, mesh: Mesh) -> AnyBatch:
    """Moves the rows assembled by this process to its devices.

    Args:
        batch: this process's rows of the global batch, as NumPy arrays; every process passes the same number of rows.
        mesh: from `data_mesh`.

    Returns:
        The global batch as JAX arrays, sharded by rows; rows added to fill the devices have `valid` False.
    """
    here = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
    sharding = row_sharded(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), pad_rows(batch, here)
    )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every array of `tree`, typed random keys included, to every device of `mesh`.

    Every process must pass the same values. The result never shares memory with the input, so it may be donated.
    """
    sharding = replicated(mesh)

    def copy(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(copy(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        host = np.array(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index].copy())

    return jax.tree.map(copy, tree)


def any_process(flag: bool) -> bool:
    """True on every process when `flag` is true on at least one; a collective call where there are several."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def initialize_distributed(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Joins this process to the others of a multi-host run; does nothing for a single process.

    Must be called before anything touches a device. Addresses given here win; then the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; then what SLURM (more than one task) or a Cloud TPU
    pod slice announces.

    Args:
        coordinator_address: "host:port" of process 0, reachable from every process.
        num_processes: how many processes take part.
        process_id: 0 ... num_processes - 1, different on each.
        environment: the environment variables; default os.environ.

    Returns:
        True when several processes were joined.

    Raises:
        ValueError: only some of the three settings are given, or process_id is out of range.
    """
    env = os.environ if environment is None else environment
    address = coordinator_address or env.get("JAX_COORDINATOR_ADDRESS")
    count = num_processes if num_processes is not None else _integer(env, "JAX_NUM_PROCESSES")
    index = process_id if process_id is not None else _integer(env, "JAX_PROCESS_ID")
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    if any(value is not None for value in given.values()):
        missing = [name for name, value in given.items() if value is None]
        if missing or count is None or index is None:
            raise ValueError(f"A multi-process run needs all of {list(given)}; missing: {', '.join(missing)}.")
        if not 0 <= index < count:
            raise ValueError(f"process_id must lie in 0 ... {count - 1} (num_processes = {count}), not {index}.")
        if count == 1:
            return False
        jax.distributed.initialize(coordinator_address=address, num_processes=count, process_id=index)
        return True
    slurm = int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env
    tpu_pod = len([host for host in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]) > 1
    if slurm or tpu_pod:
        jax.distributed.initialize()
        return True
    return False


def _integer(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"The environment variable {name} must be a whole number, not {text!r}.") from None
