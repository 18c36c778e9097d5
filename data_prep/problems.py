"""Everything that is wrong with a source of data, reported at once."""

from collections.abc import Sequence

_SHOWN = 20


class DataError(ValueError):
    """Source files that are missing, damaged or contradict each other."""


def listed(title: str, problems: Sequence[str]) -> str:
    """One message of a title and a line for each problem; a single problem needs no list."""
    if len(problems) == 1:
        return f"{title}: {problems[0]}"
    lines = [f"  - {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  - and {len(problems) - _SHOWN:,} more")
    return "\n".join([f"{title}: {len(problems):,} problems", *lines])


def some(things: Sequence[object], *, shown: int = 5) -> str:
    """The first few of many, for a sentence: "a, b, c and 17 more"."""
    text = ", ".join(map(str, things[:shown]))
    return text if len(things) <= shown else f"{text} and {len(things) - shown:,} more"
