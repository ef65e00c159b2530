"""Tables as text."""

from collections.abc import Mapping, Sequence
from typing import Any


def cells(fields: Mapping[str, Any], columns: Sequence[tuple]) -> list[str]:
    """A line of a table; what was not measured is left empty."""
    return [
        "" if fields.get(field) is None else format(scale * fields[field], form)
        for _, field, scale, form in columns
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of a table; columns that are empty are left out."""
    columns = [(name, *cells) for name, *cells in zip(head, *rows, strict=True) if any(cells)]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            cell.rjust(w) if k else cell.ljust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip(*columns, strict=True)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
