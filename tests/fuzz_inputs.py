"""A fuzzer of everything that is read from a disk: damages small data sets, array files and run folders, and runs the
real commands on them, in this process.

    PYTHONPATH=. python tests/fuzz_inputs.py --seed 0 --mutants 1000

Each mutant must end as the commands promise: with what was asked for (exit code 0), or refused in one message (2).
Anything else, an exception or a wait of more than a minute, is printed with the number of the mutant, which
--first NUMBER --mutants 1 repeats alone.
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before jax initialises: the sweep's command would ask for one device per core, which one process can do only once.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import numpy as np
import tyro
from cub_folder import write_archive, write_cub_folder
from safetensors.numpy import save_file

from data_prep import cub200
from data_prep.commands import ended
from experiments.cli.command import UserError
from experiments.invert import __main__ as invert
from experiments.saliency import __main__ as saliency
from experiments.sweep_attackability import __main__ as sweep_attackability
from experiments.train import __main__ as train

SECONDS = 60
WORDS = [b"", b"nan", b"-1", b"1e999", b"9" * 25, b"0", b"1.5", b"null", b"true", b'"x"', b"[]", b"{}", b"//etc/passwd",
         b"../../x", b"\xff\xfe", b"\x00", b"\r\n", b"\xc3\xa9", b" ", b"[" * 3000]  # fmt: skip
VALUES = [None, True, -1, 0, 1.5, 2**70, float("nan"), float("inf"), "", "x", "../..", "/", [], {}, [[[]]], {"a": 1}]
HEADERS = [(b"False", b"True "), (b"(", b"(-"), (b"(", b"(True,"), (b"<f4", b"<f8"), (b"<f4", b"|O "), (b"(", b"(("),
           (b"shape", b"shapy"), (b"\x01\x00", b"\x03\x00"), (b"(", b"(0,"), (b",", b"9,")]  # fmt: skip
Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one mutant ended.

    Attributes:
        number: of the mutant.
        what: its command and its damage.
        code: exit code, None after an exception.
        text: the message, or the traceback.
    """

    number: int
    what: str
    code: int | None
    text: str

    @property
    def ended_well(self) -> bool:
        """Done, or refused in one message."""
        refused = self.code == 2 and any(line.startswith("error: ") for line in self.text.splitlines())
        return self.code == 0 or refused


# Damages of any file.


def truncated(rng: Rng, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(0, max(len(data), 1)))])


def flipped(rng: Rng, path: Path) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    for place in rng.integers(0, len(data), int(rng.choice([1, 4, 30]))):
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def inserted(rng: Rng, path: Path) -> None:
    data = path.read_bytes()
    place = int(rng.integers(0, len(data) + 1))
    path.write_bytes(data[:place] + rng.bytes(int(rng.integers(1, 40))) + data[place + int(rng.integers(0, 40)) :])


def replaced(rng: Rng, path: Path) -> None:
    """By what is no file of that kind, or no file at all."""
    content = path.read_bytes()
    path.unlink()
    match int(rng.integers(7)):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to(path.parent)
        case 5:
            path.with_name("ü \udcff" + path.name).write_bytes(content)


# Damages of text and JSON.


def reworded(rng: Rng, path: Path) -> None:
    """One field becomes another word."""
    lines = path.read_bytes().split(b"\n")
    row = int(rng.integers(len(lines)))
    fields = lines[row].split(b" ")
    fields[int(rng.integers(len(fields)))] = WORDS[int(rng.integers(len(WORDS)))]
    lines[row] = b" ".join(fields)
    path.write_bytes(b"\n".join(lines))


def reordered(rng: Rng, path: Path) -> None:
    """Lines are lost, doubled or exchanged."""
    lines = path.read_bytes().splitlines(keepends=True) or [b"\n"]
    i, j = rng.integers(0, len(lines), 2)
    choices = [[*lines[:i], *lines[i + 1 :]], [*lines[:i], lines[j], *lines[i:]], [*lines[i:], *lines[:i]]]
    lines = choices[rng.integers(3)]
    path.write_bytes(b"".join(lines))


def edited(rng: Rng, path: Path) -> None:
    """One value of a JSON file, or one key, is another; of a file of JSON lines, one in one line."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    row = int(rng.integers(len(lines)))
    document = json.loads(lines[row])
    places = list(_places(document))
    holder, key = places[int(rng.integers(len(places)))]
    if rng.random() < 0.25:
        del holder[key]
    else:
        holder[key] = VALUES[int(rng.integers(len(VALUES)))]
    lines[row] = json.dumps(document)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


# Damages of arrays.


def rearranged(rng: Rng, path: Path) -> None:
    """One array gets another shape, type, name or values, or is lost or doubled under another name."""
    with np.load(path) as stored:
        arrays = dict(stored)
    name = str(rng.choice(list(arrays)))
    array = arrays.pop(name)
    wide = array.astype(np.float64)
    changes: list[Callable[[], Any]] = [
        lambda: array[:-1], lambda: array[..., :-1], lambda: array[:0], lambda: array.T, lambda: array[None],
        lambda: array[..., None], lambda: array.ravel(), lambda: np.asfortranarray(array), lambda: array[:1],
        lambda: wide * np.nan, lambda: np.where(rng.random(array.shape) < 0.1, np.inf, wide), lambda: wide * 1e300,
        lambda: wide.astype(np.float16), lambda: (wide * 100).astype(np.int8), lambda: array > 0,
        lambda: wide.astype(complex), lambda: array.astype(str), lambda: array.astype(object), lambda: wide * 0,
        lambda: -wide, lambda: array.astype(">f4"), lambda: wide.astype("M8[s]"), lambda: np.float32(3),
    ]  # fmt: skip
    if (draw := rng.random()) < 0.6:
        with np.errstate(all="ignore"):
            arrays[name] = changes[int(rng.integers(len(changes)))]()
    elif draw < 0.9:
        arrays[str(rng.choice(["W", "b", "y", "x/y", "kernel", "labels", "../up", "ü"]))] = array
        if draw < 0.7:
            arrays[name] = array
    save = np.savez if rng.random() < 0.5 else np.savez_compressed
    with open(path, "wb") as file:
        save(file, **arrays)


def reheaded(rng: Rng, path: Path) -> None:
    """The header of one member says something else."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = str(rng.choice(list(members)))
    old, new = HEADERS[rng.integers(len(HEADERS))]
    members[name] = members[name].replace(old, new, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.5 else zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)


ANY = (truncated, flipped, inserted, replaced)
DAMAGES = {
    ".txt": (*ANY, reworded, reworded, reordered),
    ".json": (*ANY, edited, edited, edited, reworded),
    ".jsonl": (*ANY, edited, reworded, reordered),
    ".npz": (*ANY, rearranged, rearranged, rearranged, reheaded),
}


def damage(rng: Rng, files: list[Path]) -> str:
    """Damages one of the files; says how."""
    kinds = sorted({path.suffix for path in files})  # as often one of many photographs as the only config.json
    kind = kinds[int(rng.integers(len(kinds)))]
    fitting = sorted(path for path in files if path.suffix == kind)
    path = fitting[int(rng.integers(len(fitting)))]
    change = rng.choice(np.array(DAMAGES.get(kind, ANY), object))
    change(rng, path)
    return f"{path.name} {change.__name__}"


class Originals:
    """What is damaged: a CUB folder, features and a head, and a finished run, each made once.

    Args:
        folder: where; also the cache of the commands.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.cub = write_cub_folder(folder / "cub", num_classes=3, per_class=4)
        rng = np.random.default_rng(0)
        self.arrays = folder / "arrays"
        self.arrays.mkdir()
        weights, rows = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(12, 4)).astype(np.float32)
        np.savez(self.arrays / "features.npz", attributes=rows, labels=np.arange(12) % 5)
        np.savez(self.arrays / "head.npz", weights=weights, bias=weights[:, 0].copy())
        self.training = ["--model", "linear", "--epochs", "1", "--image-size", "12", "--quiet",
                         "--data-dir", str(self.cub)]  # fmt: skip
        self.run = folder / "run"
        with contextlib.redirect_stdout(io.StringIO()):
            assert train.main([*self.training, "--run-dir", str(self.run)]) == 0

    def mutant(self, rng: Rng, place: Path) -> tuple[str, Callable[[], int | None], type[Exception]]:
        """A damaged copy in `place`: what it is, the command to run on it, and how that reports mistakes."""
        kind, out = ("cub", "archive", "arrays", "arrays", "run", "run")[int(rng.integers(6))], str(place / "out")
        source = place / "source"
        if kind in ("cub", "archive"):
            shutil.copytree(self.cub, source)
            what = damage(rng, [path for path in source.rglob("*") if path.is_file()])
            if kind == "archive":
                with contextlib.suppress(OSError):  # a damage that tar cannot pack is prepared as the folder
                    source = write_archive(source, place / "birds.tgz")
                    if rng.random() < 0.5:
                        what = damage(rng, [source])
            command = ["--source", str(source), "--out", out, "--crop", str(rng.choice(["box", "full"]))]
            return f"cub200: {what}", lambda: cub200.main(tyro.cli(cub200.Arguments, args=command)), ValueError
        if kind == "arrays":
            shutil.copytree(self.arrays, source)
            files = [source / "features.npz", source / "head.npz"]
            if rng.random() < 0.2:
                files = [_as_safetensors(path) for path in files]
            what = damage(rng, files)
            command = ["--features", str(files[0]), "--head", str(files[1]), "--out", out, "--methods", "boundary"]
            return f"sweep: {what}", lambda: sweep_attackability.main([*command, "--quiet"]), UserError
        shutil.copytree(self.run, source)
        what = damage(rng, [path for path in source.rglob("*") if path.is_file() and path.name != ".lock"])
        run, to = ["--run-dir", str(source)], ["--out", out, "--quiet"]
        commands: dict[str, Callable[[], int]] = {
            "train": lambda: train.main([*self.training, *run]),
            "saliency": lambda: saliency.main([*run, *to, "--image", "0", "--num-attributes", "1"]),
            "sweep": lambda: sweep_attackability.main([*run, *to, "--methods", "boundary"]),
            "invert": lambda: invert.main([*run, *to, "--num-pairs", "1", "--inversion.max-steps", "2"]),
        }
        # They read the same files; compiling the last one takes longest.
        name = str(rng.choice(list(commands), p=[0.3, 0.34, 0.33, 0.03]))
        return f"{name}: {what}", commands[name], UserError


def _as_safetensors(path: Path) -> Path:
    with np.load(path) as stored:
        save_file(dict(stored), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def outcome(number: int, what: str, command: Callable[[], int | None], mistake: type[Exception]) -> Outcome:
    """Runs a command as its script does."""

    def late(signum: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    shown = io.StringIO()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(shown):
            code = ended(command, mistake)
    except BaseException:  # also the SystemExit of options that do not exist
        return Outcome(number, what, None, traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    # `ended` may have reported the TimeoutError as an error of a file.
    waited = time.monotonic() - began
    return Outcome(number, what, code if waited < SECONDS else None, shown.getvalue() or "done")


def fuzz(seed: int, first: int, mutants: int, folder: Path, *, tell: Callable[[Outcome], None]) -> list[Outcome]:
    """Runs some mutants and returns their outcomes; a mutant depends on the seed and its own number alone."""
    originals, outcomes = Originals(folder), []
    for number in range(first, first + mutants):
        place = folder / "mutant"
        place.mkdir()
        what, command, mistake = originals.mutant(np.random.default_rng([seed, number]), place)
        outcomes.append(outcome(number, what, command, mistake))
        tell(outcomes[-1])
        shutil.rmtree(place)
    return outcomes


def main(seed: int = 0, mutants: int = 1000, first: int = 0, verbose: bool = False) -> int:
    """Damages files and runs the commands on them; exit code 1 if one ended badly.

    Args:
        seed: of all damages.
        mutants: how many.
        first: number of the first.
        verbose: print every outcome.
    """

    def tell(result: Outcome) -> None:
        if verbose or not result.ended_well:
            print(f"{result.number} {result.what}: {result.code}: {result.text[-3000:].strip()}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPECTRA_JAX_CACHE"] = os.path.join(folder, "cache")
        outcomes = fuzz(seed, first, mutants, Path(folder), tell=tell)
    bad = sum(not result.ended_well for result in outcomes)
    done = sum(result.code == 0 for result in outcomes)
    print(f"{len(outcomes)} mutants: {done} done, {len(outcomes) - done - bad} refused in a message, {bad} ended badly")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
