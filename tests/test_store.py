"""Arrays that are kept: of these facts and no others, whole or made anew."""

import os
import signal

import numpy as np
import pytest

from experiments.runs.store import Store
from spectra_jax.logging import Console

QUIET = Console(quiet=True)


class Counted:
    """Makes arrays and counts how often."""

    def __init__(self, value=7):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        return {"norm": np.arange(3.0), "reason": np.int32(self.value)}


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data.replace(b"PK", b"KP")])
def test_arrays_are_computed_once_and_again_where_the_file_is_damaged(tmp_path, damage):
    store, compute = Store(tmp_path / "kept", {"seed": 0}), Counted()
    for _ in range(2):
        found = store.get("pairs", compute)
        np.testing.assert_array_equal(found["norm"], [0, 1, 2])
        assert found["reason"][()] == 7 and compute.calls == 1
    path = store.path("pairs")
    path.write_bytes(damage(path.read_bytes()))
    assert store.get("pairs", compute)["reason"] == 7 and compute.calls == 2
    assert store.get("pairs", compute)["reason"] == 7 and compute.calls == 2


def test_arrays_of_other_facts_are_neither_taken_nor_lost(tmp_path):
    first, second = Counted(1), Counted(2)
    for _ in range(2):
        assert Store(tmp_path, {"seed": 0, "model": "a"}).get("pairs", first)["reason"] == 1
        assert Store(tmp_path, {"seed": 1, "model": "a"}).get("pairs", second)["reason"] == 2
    assert Store(tmp_path, {"model": "a", "seed": 0}).get("pairs", first)["reason"] == 1  # in any order
    assert first.calls == second.calls == 1


def test_rows_are_made_chunk_by_chunk_and_go_on_where_they_stopped(tmp_path):
    asked = []

    def compute(rows, *, stop_at=None):
        asked.append(rows.tolist())
        if rows[0] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)  # taken once this chunk is kept
        return {"square": rows**2}

    def rows(**options):
        return Store(tmp_path, 0).get_rows(
            "squares", 7, lambda r: compute(r, **options), chunk=3, console=QUIET, title="squaring"
        )["square"]

    with pytest.raises(KeyboardInterrupt):
        rows(stop_at=3)
    np.testing.assert_array_equal(rows(), np.arange(7) ** 2)
    np.testing.assert_array_equal(rows(), np.arange(7) ** 2)
    assert asked == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(path.suffix == ".npz" for path in tmp_path.iterdir())  # nothing half-written is left
