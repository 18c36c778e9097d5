"""How long an edit on the live page takes, from the user's action to the answer on the screen."""

import contextlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.tools.chromium import PageError, Tab, chromium
from experiments.cli.command import UserError, check_run_folder, parse, run_main
from experiments.cli.options import Seed

_KINDS = ("picture", "target", "lock", "drag", "range", "most", "observed", "undo")
_TIMED = """
(async () => {
  const at = (id) => document.getElementById(id);
  const set = (element, value, kind = "change") => { element.value = value; element.dispatchEvent(new Event(kind)); };
  const before = location.hash, began = performance.now();
  %s;
  if (location.hash === before) return null;
  const answered = () => document.documentElement.dataset.answered === location.hash.slice(1);
  while (!answered()) await new Promise((go) => setTimeout(go));
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
})()
"""


@dataclass(frozen=True)
class Args:
    """Makes random edits on the live page of a run, in headless Chromium, and times each.

    python -m experiments.benchmarks.explore_edits --run-dir runs/quickstart-synthetic-cnn-seed0
        200 edits, three minutes once the page has started. Prints a row for each kind of edit, then one for all.

    Rules accumulate as they would for a user: every answer obeys all of them. The pause between two edits is randomly
    short or long, so that the thorough searches that run in the pauses get in the way as they do in real use.

    Attributes:
        run_dir: the run folder of experiments.train or experiments.quickstart.
        edits: number of timed edits.
        seed: seed of the edits.
    """

    run_dir: Path
    edits: int = 200
    seed: Seed = 0

    def check(self) -> None:
        """Raises UserError where there is no run."""
        check_run_folder(self.run_dir)


@contextlib.contextmanager
def served(run_dir: Path) -> Iterator[str]:
    """The address of the page, by its own command."""
    command = [sys.executable, "-m", "experiments.explore", "--run-dir", str(run_dir), "--port", "0", "--no-browser"]
    with subprocess.Popen([*command, "--quiet"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise UserError("experiments.explore does not start; it says why above.")
            yield address
        finally:
            process.terminate()


def edit(kind: str, rng: random.Random, places: list[int], pictures: int, classes: int) -> str:
    """JavaScript of one action of a person, who has the attributes `places` open."""
    row = f"document.querySelector('.row[data-place=\"{rng.choice(places)}\"]')"
    return {
        "picture": f"location.hash = location.hash.replace(/picture=\\d+/, 'picture={rng.randrange(pictures)}')",
        "target": f"set(at('target'), '{rng.choice(['', *map(str, range(classes))])}')",
        "lock": f"{row}.querySelector('.lock').click()",
        "drag": f"{{ const s = {row}.querySelector('[type=range]');"
        f" set(s, Number(s.min) + {rng.random()} * (s.max - s.min), 'input'); }}",
        "range": f"{{ const low = {row}.querySelector('[type=number]'); set(low, {rng.uniform(-9, -4):.2f}); }}",
        "most": f"set(at('most'), '{rng.choice(['', '3', '5', '8', '12'])}')",
        "observed": "at('observed').click()",
        "undo": "at('undo').click()",
    }[kind]


def measure(tab: Tab, args: Args) -> dict[str, list[float]]:
    """Milliseconds of every edit by its kind."""
    tab.wait("document.documentElement.dataset.answered")
    tab.run(
        "[...document.querySelectorAll('#groups > details')].slice(0, 3).forEach((group) => { group.open = true; })"
    )
    size = tab.run("(async () => { const s = await (await fetch('api/session')).json();"
                   " return [s.labels.length, s.classes.length]; })()")  # fmt: skip
    tab.wait("document.querySelectorAll('.row').length > 0")
    places = tab.run("[...document.querySelectorAll('.row')].map((row) => Number(row.dataset.place))")
    rng, times = random.Random(args.seed), dict[str, list[float]]()
    while sum(map(len, times.values())) < args.edits:
        kind = rng.choice(_KINDS)
        milliseconds = tab.run(_TIMED % edit(kind, rng, places, *size))
        if milliseconds is not None:  # None: it changed nothing, as an undo with nothing to undo
            times.setdefault(kind, []).append(milliseconds)
        tab.run(f"new Promise((go) => setTimeout(go, {rng.choice([20, 150, 900])}))")
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks.explore_edits")
    try:
        with (
            served(args.run_dir) as address,
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            chromium(Path(folder)) as browser,
        ):
            tab = browser.tab()
            tab.size(1440, 1000)
            tab.go(address)
            times = measure(tab, args)
    except PageError as error:
        raise UserError(str(error)) from error
    print(f"{'edit':10} {'count':>5} {'median ms':>10} {'90 % ms':>8} {'worst ms':>9}")
    for kind, all_ in [*sorted(times.items()), ("all", [each for several in times.values() for each in several])]:
        print(f"{kind:10} {len(all_):5} {np.median(all_):10.0f} {np.percentile(all_, 90):8.0f} {max(all_):9.0f}")
    if tab.errors:
        print(f"the page had errors: {tab.errors}")
    return 1 if tab.errors else 0


if __name__ == "__main__":
    run_main(main)
