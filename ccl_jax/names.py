"""Looking up a name in a table of builders, with a useful answer when it is not there."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


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
    nearest = difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown {kind} {name!r}: did you mean {nearest!r}? Known: {', '.join(table)}."
    )
