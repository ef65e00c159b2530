"""A run directory: config.json, metrics.jsonl (one object a row), summary.json, figures/.

Files are written whole under another name and then renamed, so that what is there is complete; the
metrics file grows by whole lines. Numbers that are not finite are written as null, which every JSON
reader accepts.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunDirectory:
    """One run's files.

    Args:
      path: The directory; made by `create`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    @property
    def figures(self) -> Path:
        """Where figures go; made when first asked for."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def check_free(self) -> None:
        """Makes sure that a run can start here.

        Raises:
          ValueError: The directory already holds a run, is no directory, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; a run needs a directory of its own")
        if (self.path / "config.json").exists():
            raise ValueError(
                f"{self.path} already holds a run (config.json is there); choose another work "
                "directory or remove that one"
            )
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise ValueError(f"{parent} cannot be written to; choose another work directory")

    def create(self, config: Mapping[str, Any]) -> None:
        """Makes the directory and writes config.json.

        Raises:
          ValueError: As `check_free`.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json("config.json", config)
        (self.path / "metrics.jsonl").write_text("")

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends one row to metrics.jsonl and flushes it to the system."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(plain(row)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl so far."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").open()]

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file, whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(plain(value), indent=2) + "\n")
        partial.replace(self.path / name)


def plain(value: Any) -> Any:
    """Turns NumPy and JAX values into what JSON knows; not-finite floats become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
