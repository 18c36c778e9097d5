"""How a command ends: a user's mistake in one sentence, a closed output pipe, Ctrl-C."""

import os
import signal
import sys
from collections.abc import Callable

from data_prep.cub_tables import is_utf8


def ended(main: Callable[[], int | None], *mistakes: type[Exception]) -> int:
    """The exit code of `main`.

    Args:
        main: does the work; its result is the exit code, None meaning 0.
        mistakes: exceptions that say in one message what the user can do; exit code 2, as for errors of the system's
            files. Every other one is a fault of the program and keeps its traceback.
    """
    try:
        try:
            for name in (*sys.argv[1:], os.getcwd(), os.environ.get("SPECTRA_JAX_CACHE", "")):
                if not is_utf8(name):  # the libraries for data and checkpoints fail on it, each in its own way
                    print(f"error: {name!a} is not UTF-8: rename it, or set PYTHONUTF8=1 if it is.", file=sys.stderr)
                    return 2
            return main() or 0
        finally:
            sys.stdout.flush()
    except mistakes as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read, head for example, has seen enough. What Python would flush at its end has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
