"""Prints pyproject's lower bounds as pip constraints: what `make test-oldest` installs."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = ("experiments", "pretrained", "explore", "test", "bench", "canary", "docs")

for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra])]:
    name, version = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", line).groups()
    print(f"{name}=={version}" + ("" if version.count(".") == 2 else ".*"))
