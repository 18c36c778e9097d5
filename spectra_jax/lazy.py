"""Packages whose names are imported on first use, so that nothing unused is waited for or required.

The names stand in the package's `__init__.py` as imports under `if TYPE_CHECKING:`, where type checkers and editors
read them, and so does `import_on_use`.
"""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    _homes: dict[str, str]
    _modules: frozenset[str]

    def __getattr__(self, name: str) -> Any:
        if name in self._homes:
            value = getattr(importlib.import_module(self._homes[name]), name)
        elif f"{self.__name__}.{name}" in self._modules:
            return importlib.import_module(f"{self.__name__}.{name}")
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule binds it to its package: that must not hide the function of the same name.
        if not (isinstance(value, ModuleType) and name in self._homes):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._homes})


def import_on_use(package: str) -> None:
    """Makes a package import the names listed under `if TYPE_CHECKING:` in its file when they are first asked for.

    Args:
        package: its name, `__name__` where it is called.
    """
    module = sys.modules[package]
    assert module.__file__ is not None
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    listed = [node for branch in body if isinstance(branch, ast.If) for node in branch.body]
    imports = [node for node in listed if isinstance(node, ast.ImportFrom) and node.module]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    parts = [home.split(".") for home in homes.values()]
    modules = frozenset(".".join(part[:end]) for part in parts for end in range(2, len(part) + 1))
    module.__dict__.update(_homes=homes, _modules=modules, __all__=list(homes))
    module.__class__ = _Package
