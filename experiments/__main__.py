"""Lists the commands."""

import ast
from pathlib import Path


def _first_line(path: Path) -> str:
    """Of the file's docstring; nothing is imported for it."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main() -> None:
    """Prints a line for each command."""
    folder = Path(__file__).parent
    lines = {path.parent.name: _first_line(path) for path in sorted(folder.glob("*/__main__.py"))}
    width = max(map(len, lines))
    print("python -m experiments.NAME runs one of these; --help after it lists its options.\n")
    for name, line in lines.items():
        print(f"  {name:{width}}  {line}")
    print("\nREADME.md says what each is for.")


if __name__ == "__main__":
    main()
