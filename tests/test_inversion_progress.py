"""What an inversion tells while it is under way."""

import functools

import jax
import numpy as np
import pytest
from test_inversion import config
from test_inversion_methods import curved_problem, found_by_adam

import spectra_jax as sj


class Cancelled(Exception):
    pass


def test_progress_is_told_after_every_step_and_can_end_the_search():
    seen = []

    def tell(now: sj.InversionProgress) -> None:
        seen.append((np.array(now.rows), np.array(now.num_steps), np.array(now.images)))

    quiet = found_by_adam()
    found = sj.invert(*curved_problem(), config=config("adam", max_steps=300), progress=tell)
    np.testing.assert_array_equal(found.images, quiet.images)
    assert len(seen) >= int(np.max(found.num_steps)) > 0
    counts = np.stack([steps for _, steps, _ in seen])
    assert np.all(np.diff(counts, axis=0) >= 0)
    for row, steps in zip(seen[-1][0], counts[-1], strict=True):
        assert steps == found.num_steps[row]
    assert not np.array_equal(seen[0][2], seen[-1][2])

    def cancel(now: sj.InversionProgress) -> None:
        if np.max(now.num_steps) >= 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        sj.invert(*curved_problem(), config=config("adam", max_steps=300), progress=cancel)


def test_progress_is_refused_where_it_could_not_be_told():
    encode, head, *columns = curved_problem()
    search = functools.partial(sj.invert, encode, head, config=config("adam"), progress=print)
    with pytest.raises(ValueError, match="progress is given under jit"):
        jax.jit(search)(*columns)
