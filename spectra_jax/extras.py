"""Libraries that come with an extra; a missing one is reported together with the command that installs it."""

import contextlib
import importlib.util
from collections.abc import Iterator


class MissingLibraryError(ImportError):
    """A library of an extra that is not installed."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Wraps the imports of libraries that the extra `name` installs.

    Raises:
        MissingLibraryError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(error.name or "a library", name) from error


def require(name: str, *modules: str) -> None:
    """Looks whether the libraries that the extra `name` installs are there, without importing them.

    Raises:
        MissingLibraryError: one of them is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, name)


def _missing(module: str, name: str) -> MissingLibraryError:
    return MissingLibraryError(
        f"{module} is not installed: pip install 'spectra-jax[{name}]', or pip install -e '.[{name}]' in a clone",
        name=module,
    )
