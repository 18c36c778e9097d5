"""Lists the commands."""

import argparse
import ast
from pathlib import Path


def _first_line(path: Path) -> str:
    """Of the file's docstring; nothing is imported for it."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main() -> None:
    """Prints a line for each command."""
    lines = {path.parent.name: _first_line(path) for path in sorted(Path(__file__).parent.glob("*/__main__.py"))}
    width = max(map(len, lines))
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        usage="python -m experiments.COMMAND [options]; python -m experiments.COMMAND --help lists the options",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(f"  {name:{width}}  {line}" for name, line in lines.items()),
        epilog="README.md has a table of what each is for.",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help=argparse.SUPPRESS)
    parser.parse_args()
    parser.print_help()


if __name__ == "__main__":
    main()
