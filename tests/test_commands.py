"""How commands end: one line for a mistake, for a reader that goes away, for a library or a home that is not there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from cub_folder import write_cub_folder

from data_prep.commands import ended
from experiments.cli.command import UserError
from experiments.invert import __main__ as invert
from experiments.reconstruct import __main__ as reconstruct
from experiments.saliency import __main__ as saliency
from experiments.train import __main__ as train

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("wrong"), 2, "error: wrong\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "error: /x: No space left on device\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2, "error: x: No such file or directory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)  # fmt: skip
def test_mistakes_and_the_system_s_errors_are_one_line(capsys, error, code, message):
    def main():
        raise error

    assert ended(main, ValueError) == code
    assert capsys.readouterr().err == message


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        ended(lambda: 1 // 0, ValueError)


def test_a_name_that_is_not_utf8_is_said_before_any_work(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--run-dir", "runs/gr\udcf6\udcdfe"])
    assert ended(lambda: pytest.fail("it ran")) == 2
    assert capsys.readouterr().err.startswith("error: 'runs/gr\\udcf6\\udcdfe' is not UTF-8: rename it")


@pytest.mark.parametrize("module", ["data_prep.cub200", "experiments.benchmarks"])
def test_help_may_be_cut_short_by_its_reader(module):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has seen enough
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, stdout=closed, stderr=subprocess.PIPE)
    assert done.stderr == b"" and done.returncode == 141


def test_without_foolbox_a_script_that_needs_it_says_so_in_one_line(tmp_path):
    (tmp_path / "foolbox.py").write_text("raise ModuleNotFoundError('No module named foolbox', name='foolbox')")
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    (tmp_path / "config.json").write_text("{}")  # enough of a run for the arguments to be right
    script = [sys.executable, "-m", "experiments.robustness", "--run-dirs", str(tmp_path), "--out", str(tmp_path / "o")]
    done = subprocess.run(script, cwd=ROOT, env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: foolbox is not installed: ")
    assert done.stderr.count("\n") == 1


def test_a_home_that_cannot_be_made_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")  # nobody, not even root, can make a folder below a file
    monkeypatch.delenv("SPECTRA_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    birds = write_cub_folder(tmp_path / "birds", per_class=2)
    for arguments in ([], ["--data-dir", str(birds)]):
        with pytest.raises(UserError, match=r"file.* cannot be written \(Not a directory\): .*set SPECTRA_JAX_CACHE"):
            train.main(["--model", "linear", "--run-dir", str(tmp_path / "run"), "--quiet", *arguments])
    monkeypatch.setenv("SPECTRA_JAX_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UserError, match=r"There is no home folder .*: set SPECTRA_JAX_CACHE to a folder"):
        train.main(["--model", "linear", "--run-dir", str(tmp_path / "run"), "--quiet"])


@pytest.mark.parametrize("script", [invert, saliency, reconstruct])
@pytest.mark.parametrize("seed", ["18446744073709551616", "4294967296", "-1"])
def test_seeds_that_no_generator_takes_are_refused(script, seed, capsys):
    with pytest.raises(SystemExit) as ending:
        script.main(["--run-dir", "run", "--out", "out", "--seed", seed])
    assert ending.value.code == 2 and f"{seed} is not a seed" in capsys.readouterr().err


def test_the_largest_seed_is_taken(capsys):
    assert tyro.cli(invert.Args, args=["--run-dir", "r", "--out", "o", "--seed", "4294967295"]).seed == 2**32 - 1
    with pytest.raises(SystemExit):
        train.main(["--model", "linear", "--seed", "18446744073709551616"])
    assert "seed is 18446744073709551616" in capsys.readouterr().err


def test_every_command_is_listed_by_its_name():
    listing = subprocess.run(
        [sys.executable, "-m", "experiments", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = [path.parent.name for path in ROOT.glob("experiments/*/__main__.py")]
    assert len(commands) > 10 and all(f"  {name} " in listing for name in commands)
