"""What a checkpoint that cannot be read leads to: damage is set aside, an error of the machine changes nothing."""

import errno
import gzip
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectra_jax.checkpoint import CheckpointError, Checkpoints

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. (<coroutine object _read_array_index|None):pytest.PytestUnraisableExceptionWarning"
)


class State(NamedTuple):
    step: jax.Array
    params: dict


def state(value):
    return State(jnp.asarray(value, jnp.int32), {"head": jnp.full(3, float(value), jnp.float32)})


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 1 and 2 of a run."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state(step), {"position": step})
    checkpoints.close()
    return tmp_path / "checkpoints"


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.parent.rglob("*") if path.is_relative_to(folder))


def fail_on(checkpoints, step, error, monkeypatch):
    original = checkpoints._manager.restore

    def restore(wanted, **options):
        if wanted == step:
            raise error
        return original(wanted, **options)

    monkeypatch.setattr(checkpoints._manager, "restore", restore)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError(),
        ValueError('RESOURCE_EXHAUSTED: Error opening "zarr" driver'),
        caused(ValueError("cannot restore"), OSError(errno.ESTALE, "Stale file handle")),
    ],
    ids=["EIO", "EMFILE", "EACCES", "MemoryError", "tensorstore", "cause"],
)
@pytest.mark.parametrize("read", ["restore", "restore_params"])
def test_an_error_that_may_pass_neither_removes_nor_skips_a_sound_checkpoint(folder, read, error, monkeypatch):
    checkpoints = Checkpoints(folder)
    before = listing(folder)
    arguments = (state(0),) if read == "restore" else ()
    with monkeypatch.context() as patch:
        fail_on(checkpoints, 2, error, patch)
        with pytest.raises(CheckpointError, match=r"Checkpoint 2 .* at this moment .*repeat the command"):
            getattr(checkpoints, read)(*arguments)
    assert listing(folder) == before
    assert checkpoints.steps() == [1, 2]
    restored = getattr(checkpoints, read)(*arguments)
    assert restored[0] == 2
    np.testing.assert_array_equal(jax.tree.leaves(restored[1])[-1], 2)
    checkpoints.close()


@pytest.mark.parametrize(
    "error", [gzip.BadGzipFile("not gzipped"), FileNotFoundError(errno.ENOENT, "gone"), KeyError()]
)
def test_errors_that_tell_of_the_file_are_damage(folder, error, monkeypatch):
    checkpoints = Checkpoints(folder)
    with monkeypatch.context() as patch:
        fail_on(checkpoints, 2, error, patch)
        restored = checkpoints.restore(state(0))
    assert restored.step == 1 and list(restored.damaged) == [2]
    checkpoints.close()


def test_a_damaged_checkpoint_is_set_aside_and_its_number_can_be_used_again(folder):
    shutil.rmtree(folder / "2" / "params")
    kept = listing(folder / "2")
    for name in ("2", "2-2"):  # the second time there is already one of that number aside
        checkpoints = Checkpoints(folder)
        restored = checkpoints.restore(state(0))
        assert restored.step == 1 and restored.host == {"position": 1} and list(restored.damaged) == [2]
        assert listing(folder.with_name("checkpoints-damaged") / name) == kept
        checkpoints.save(2, state(20), {"position": 20})
        assert checkpoints.steps() == [1, 2]
        restored = checkpoints.restore(state(0))
        assert restored.step == 2 and int(restored.state.step) == 20 and not restored.damaged
        checkpoints.close()
        shutil.rmtree(folder / "2" / "params")
        kept = listing(folder / "2")


def test_a_copy_that_was_set_aside_before_stays(folder):
    aside = folder.with_name("checkpoints-damaged")
    for name in ("2", "2-2"):
        (aside / name).mkdir(parents=True)
        (aside / name / "notes.txt").write_text(name)
    shutil.rmtree(folder / "2" / "params")
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(state(0)).step == 1
    checkpoints.close()
    assert [(aside / name / "notes.txt").read_text() for name in ("2", "2-2")] == ["2", "2-2"]
    assert (aside / "2-3" / "rest").is_dir() and not (folder / "2").exists()


def test_readers_move_nothing(folder):
    shutil.rmtree(folder / "2" / "params")
    before = listing(folder)
    assert Checkpoints(folder, read_only=True).restore_params()[0] == 1
    restored = Checkpoints(folder, read_only=True).restore(state(0))
    assert restored.step == 1 and list(restored.damaged) == [2]
    assert listing(folder) == before and not folder.with_name("checkpoints-damaged").exists()


def test_a_template_of_another_structure_loses_nothing(folder):
    checkpoints = Checkpoints(folder)
    with pytest.raises(CheckpointError, match=r"step 2: .*step 1: .*another version"):
        checkpoints.restore(State(jnp.zeros((), jnp.int32), {"decoder": jnp.zeros(3)}))
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore(state(0)).step == 2
    checkpoints.close()
