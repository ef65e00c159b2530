"""Names: looked up in tables of builders, unique in lists, and short ones for files."""

import difflib
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Characters of a name that is looked for in the words that others stand for.
_SHORTEST = 4


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`.

    Args:
      kind: What the names stand for, e.g. "dataset"; used in the error.
      name: The name asked for.
      table: All known names, not empty.

    Raises:
      ValueError: The name is not in the table; the error gives the nearest one and all of them.
    """
    if name in table:
        return table[name]
    meant = difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown {kind} {name!r}: did you mean {meant!r}? Known: {', '.join(table)}.")


def nearest(name: str, known: Mapping[str, str]) -> str | None:
    """The name that was likely meant, if there is one.

    Args:
      name: The name asked for.
      known: What each name stands for, in words: `learning_rate` is found by "learning rate at ...".
    """
    if close := difflib.get_close_matches(name.lower(), known, n=1):
        return close[0]
    words = name.lower().replace("_", " ").replace("-", " ")
    begins = re.compile(rf"{re.escape(words)}\b", re.IGNORECASE)
    long = len(words) >= _SHORTEST
    return next((each for each, text in known.items() if long and begins.match(text)), None)


def check_distinct(kind: str, values: Iterable[Hashable]) -> None:
    """Makes sure that nothing is given twice, where it would count twice.

    Args:
      kind: What is listed, e.g. "seeds"; used in the error.
      values: What is given.

    Raises:
      ValueError: A value is there twice; the error gives it.
    """
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{kind}: {value} is given {count} times; give it once")


def check_free(kind: str, name: str, module: str, table: Mapping[str, object]) -> None:
    """Makes sure that a new entry of a registry replaces no other; a cell or file may run again.

    Args:
      kind: What the names stand for, e.g. "algorithm"; used in the error.
      name: Of the new entry.
      module: Where it is written.
      table: By name, what is there, functions.

    Raises:
      ValueError: Another module has an entry of that name.
    """
    there = getattr(table.get(name), "__module__", module)
    if there != module:
        raise ValueError(f"{kind} {name!r} is there already, in {there}; take another name")


def shortest_ends(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of different paths that differ from each other, of equally many parts."""
    for parts in range(1, 1 + max((len(path.parts) for path in paths), default=0)):
        ends = [str(Path(*path.parts[-parts:])) for path in paths]
        if len(set(ends)) == len(ends):
            return ends
    return list(map(str, paths))
