"""Shared fixtures: strict promotion for every test, and the real CUB photographs where they are at hand."""

import os
from pathlib import Path

import jaxlib.version

# Four virtual devices let the sharding tests run on any machine; one XLA flag set before jax initialises.
flags = "--xla_force_host_platform_device_count=4"
# Four fifths of the suite's time are compilations, and what is run once on small arrays is not worth optimising.
if os.environ.get("FAST_COMPILATION"):
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if jaxlib.version.__version_info__ < (0, 13):  # XLA ends a process that gives a flag which it does not know
        flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", flags)
# Both processes and those that tests start share what is compiled, and a repeated run finds it again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402 - reads the environment
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

CUB_DIR = Path(__file__).resolve().parents[1].parent / "shared" / "cub"


@pytest.fixture(scope="session")
def cub_dir() -> Path:
    """The folder of real CUB photographs; skips the test where it is absent."""
    if not (CUB_DIR / "CUB_200_2011" / "images.txt").exists():
        pytest.skip(f"real CUB photographs not found in {CUB_DIR}")
    return CUB_DIR


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Keeps the scripts that tests run out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_of_one_file():
    """Drops what a file compiled: a program takes several memory maps, of which Linux allows a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Runs a test in float64 without leaking the switch into other tests."""
    with jax.enable_x64(True):
        yield
