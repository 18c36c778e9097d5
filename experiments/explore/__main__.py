"""Opens the live page on a trained run in the browser."""

import socket
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.cli.command import UserError, check_run_folder, parse, run_main
from spectra_jax.extras import extra

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Args:
    """Serves a local page on a trained run that shows what would have to change for a picture to be of another class.

    python -m experiments.explore --run-dir runs/quickstart-synthetic-cnn-seed0
        compiles for a minute or two the first time and for a few seconds later; each answer takes a fraction of a
        second.

    python -m experiments.explore --run-dir RUN --compare-run-dir RUN2
        two models trained on the same data, side by side.

    Pick a picture and a class, lock attributes, set ranges, limit how many may change, drag an attribute, and make the
    picture of an answer. Ctrl-C stops the server.

    Attributes:
        run_dir: the run folder of experiments.train or experiments.quickstart.
        compare_run_dir: another run folder, on the same data.
        port: port of the address; 0 takes a free one.
        browser: open the page in the browser.
        quiet: print only the address.
    """

    run_dir: Path
    compare_run_dir: Path | None = None
    port: int = 8765
    browser: bool = True
    quiet: bool = False

    def check(self) -> None:
        """Raises UserError where a folder holds no run."""
        for folder in self.folders:
            check_run_folder(folder)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The run, or both."""
        return (self.run_dir, *([self.compare_run_dir] if self.compare_run_dir else []))


def serve(args: Args) -> None:
    """Serves until Ctrl-C."""
    with listen(args.port) as listening:
        _serve(args, listening)


def _serve(args: Args, listening: socket.socket) -> None:
    with extra("explore"):
        import uvicorn

        from experiments.explore.security import kept_token
        from experiments.explore.server import make_app
    from experiments.cli.devices import cache_dir, use_compilation_cache
    from experiments.explore.runs import check_same_pictures, open_run, warm_up
    from experiments.explore.turns import Turns
    from spectra_jax.logging import Console

    use_compilation_cache()
    console, turns = Console(quiet=args.quiet), Turns()
    sessions = tuple(open_run(folder, turns) for folder in args.folders)
    if len(sessions) > 1:
        check_same_pictures(*sessions)
    for session in sessions:
        warm_up(session, console=console)

    port, token = listening.getsockname()[1], kept_token(cache_dir() / "explore.key")
    app = make_app(sessions, token=token, hosts=(f"{HOST}:{port}", f"localhost:{port}"))
    address = f"http://{HOST}:{port}/?token={token}"
    console.say("The page is served on this machine, to anyone with the key in its address. Ctrl-C stops the server.")
    print(address, flush=True)
    if args.browser:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """The socket of the server, taken before anything slow begins.

    Raises:
        UserError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(
            f"--port {port} cannot be used ({error}): choose another port, or 0 for any free one."
        ) from error
    return listening


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    serve(parse(Args, arguments, "explore"))
    return 0


if __name__ == "__main__":
    run_main(main)
