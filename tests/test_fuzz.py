"""A small run of the fuzzer: whatever is damaged, the commands do what was asked or refuse in one message."""

import os
import warnings

import pytest
from fuzz_inputs import fuzz


# A damaged checkpoint leaves orbax's other reads without an event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_mutant_is_done_or_refused_in_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRA_JAX_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():  # a command may warn, of a float that is no number for example
        warnings.simplefilter("default")
        outcomes = fuzz(7, 0, 60, tmp_path, tell=lambda outcome: None)
    bad = [f"{outcome.number} {outcome.what}: {outcome.text}" for outcome in outcomes if not outcome.ended_well]
    assert not bad, "\n".join(bad)
    assert 5 < sum(outcome.code == 0 for outcome in outcomes) < 50  # damage that is none, and damage that is seen
    assert not os.listdir(tmp_path / "cache" / "prepared")[1:]  # the data of the one sound run
