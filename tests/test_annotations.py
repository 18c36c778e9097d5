"""The jaxtyping annotations of the public functions are true: shapes and types are enforced by beartype."""

import subprocess
import sys
from pathlib import Path


def test_public_annotations_hold():
    script = Path(__file__).with_name("typed_calls.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=script.parents[1], check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "all annotations hold" in result.stdout
