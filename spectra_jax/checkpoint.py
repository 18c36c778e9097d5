"""Checkpoints of a training run: parameters, optimiser, step, random key, and the host's progress, through orbax.

A checkpoint appears whole or not at all (orbax writes under a temporary name and renames), is written in the
background, and carries a checksum, so that restoring can tell a damaged one and fall back to the one before. A damaged
one is set aside, never deleted; and an error of the machine (memory, disk, network, permissions) is no damage.
"""

import errno
import itertools
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from spectra_jax.extras import extra

with extra("experiments"):
    import orbax.checkpoint as ocp

T = TypeVar("T")

PARAMS, REST, HOST = "params", "rest", "host"

# A file is gone or of another kind, or a decoder (no number) rejects what is in it; every other operating-system error
# is the machine's, not the file's.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, None}
# The same in the words of tensorstore and XLA, which raise ValueError and RuntimeError for everything.
_PASSING = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "PERMISSION_DENIED", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")


class CheckpointError(RuntimeError):
    """There are checkpoints, but none of them can be read, or the newest cannot be read at this moment."""


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        step: its number.
        state: the tree of arrays, like the template.
        host: the JSON value stored with it.
        damaged: the newer steps that are damaged, with the reason.
    """

    step: int
    state: Any
    host: Any
    damaged: dict[int, str]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: made if absent. Shared by all processes of a multi-host run.
        keep: how many of the newest to keep; at least 2, so that there is one to fall back to.
        read_only: change nothing there, not even what a killed writer left; for a run that another process may be
            training.
    """

    def __init__(self, directory: Path, *, keep: int = 3, read_only: bool = False):
        if keep < 2:
            raise ValueError(f"keep must be at least 2, so that a damaged checkpoint has one before it, got {keep}")
        self._directory, self._read_only = Path(directory).absolute(), read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        # Named handlers, so that a manager that has saved nothing yet can read the shapes of what is stored.
        handlers = {
            PARAMS: ocp.StandardCheckpointHandler(),
            REST: ocp.StandardCheckpointHandler(),
            HOST: ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; what is still being written is waited for."""
        self._manager.wait_until_finished()
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, host: Any) -> None:
        """Starts writing a checkpoint; the arrays may be donated as soon as this returns.

        Args:
            step: its number, larger than any before.
            state: a NamedTuple of array trees with a field `params`; typed random keys are allowed anywhere.
            host: a JSON value, for example the position of the data.
        """
        params, rest = _split(state)
        # As text with a checksum: one flipped digit of a position would resume in the wrong place without an error.
        text = json.dumps(host)
        stored = {"text": text, HOST: _checksum_text(text), PARAMS: _checksum(params), REST: _checksum(rest)}
        # A failure of the write before this one surfaces here.
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardSave(params),
                    REST: ocp.args.StandardSave(rest),
                    HOST: ocp.args.JsonSave(stored),
                }
            ),
        )

    def restore(self, template: PyTree) -> Restored | None:
        """The newest undamaged checkpoint, or None when there is none at all.

        Newer ones that are damaged are moved to a folder beside this one, whose name ends in "-damaged"; with read_only
        they stay where they are.

        Args:
            template: a state like the saved one, with concrete arrays; its shapes are expected and its shardings used,
                whatever devices the checkpoint was written from.

        Raises:
            CheckpointError: there are checkpoints but all are damaged, or the newest could not be read for a reason
                that may pass; nothing is changed then.
        """
        params, rest = _split(template)
        arguments = ocp.args.Composite(
            **{
                PARAMS: ocp.args.StandardRestore(_target(params)),
                REST: ocp.args.StandardRestore(_target(rest)),
                HOST: ocp.args.JsonRestore(),
            }
        )

        def read(step: int) -> Restored:
            found = self._manager.restore(step, args=arguments)
            _verify(found, PARAMS, REST)
            return Restored(step, _join(template, found[PARAMS], found[REST]), json.loads(found[HOST]["text"]), {})

        restored, damaged = self._newest(read)
        for step in () if self._read_only else damaged:
            self._set_aside(step)
        return None if restored is None else restored._replace(damaged=damaged)

    def restore_params(self) -> tuple[int, PyTree]:
        """The step and the parameters of the newest undamaged checkpoint, on the default device; nothing is moved.

        Raises:
            FileNotFoundError: there is no checkpoint.
            CheckpointError: as for `restore`.
        """

        def read(step: int) -> tuple[int, PyTree]:
            stored = self._manager.item_metadata(step)[PARAMS].tree
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored)
            arguments = ocp.args.Composite(**{PARAMS: ocp.args.StandardRestore(target), HOST: ocp.args.JsonRestore()})
            found = self._manager.restore(step, args=arguments)
            _verify(found, PARAMS)
            return step, found[PARAMS]

        restored, _ = self._newest(read)
        if restored is None:
            raise FileNotFoundError(
                f"There is no checkpoint in {self._directory}: let the training run reach its first."
            )
        return restored

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()

    def _newest(self, read: Callable[[int], T]) -> tuple[T | None, dict[int, str]]:
        """What `read` returns for the newest step it does not fail on, and why it failed on the newer ones."""
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                _check_files(self._directory / str(step))
                return read(step), damaged
            # Damage shows as whatever error the first missing or broken file causes, so every kind is caught.
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                if _may_pass(error):
                    raise CheckpointError(
                        f"Checkpoint {step} in {self._directory} cannot be read at this moment ({reason}). It may well "
                        "be sound, so no older one is used and nothing is changed: repeat the command."
                    ) from error
                damaged[step] = reason
        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"No checkpoint in {self._directory} can be read ({reasons}). Were they written by another version? "
                "To train from the start, delete the folder or choose another one for the run."
            )
        return None, damaged

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self._directory.with_name(f"{self._directory.name}-damaged")
            aside.mkdir(exist_ok=True)
            names = (str(step) if time == 1 else f"{step}-{time}" for time in itertools.count(1))
            # One that was damaged at this step before stays as well.
            free = next(aside / name for name in names if not (aside / name).exists())
            (self._directory / str(step)).rename(free)
        ocp.multihost.sync_global_processes(f"set aside checkpoint {step}")
        self._manager.reload()


def _check_files(folder: Path) -> None:
    """Refuses what is no file, a pipe for example, which tensorstore would read from for ever."""
    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.relative_to(folder)} is no file")


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is of the machine and not of the file."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in _DAMAGE):
            return True
        if any(word in str(error) for word in _PASSING):
            return True
        error = error.__cause__ or error.__context__
    return False


def _target(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def _checksum_text(text: str) -> int:
    return zlib.crc32(text.encode())


def _verify(found: Mapping[str, Any], *items: str) -> None:
    if found[HOST][HOST] != _checksum_text(found[HOST]["text"]):
        raise ValueError(f"the checksum of {HOST!r} does not match")
    for item in items:
        if found[HOST][item] != _checksum(found[item]):
            raise ValueError(f"the checksum of {item!r} does not match")


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _split(state: PyTree) -> tuple[PyTree, PyTree]:
    """Parameters, and everything else with random keys as their raw data."""
    plain = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)
    fields = plain._asdict()
    return fields.pop("params"), fields


def _join(template: PyTree, params: PyTree, rest: PyTree) -> PyTree:
    plain = type(template)(**{**rest, "params": params})
    return jax.tree.map(
        lambda leaf, data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else data,
        template,
        plain,
    )


def _checksum(tree: PyTree) -> int:
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf).data, value)
    return value
