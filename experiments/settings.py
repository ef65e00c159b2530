"""The table of hyper-parameters in settings.toml: for every method what was published or chosen here."""

import dataclasses
import functools
import tomllib
from importlib import resources
from typing import Any, NamedTuple

from ccl_jax import algorithms
from ccl_jax.runs.config import Config


class Setting(NamedTuple):
    """A published setting of a method.

    Attributes:
      name: What it is called in the table.
      status: "published" or "chosen here".
      source: Where the values come from.
      values: Hyper-parameters of the method, and flags of the mains.
    """

    name: str
    status: str
    source: str
    values: dict[str, Any]


@functools.cache
def table() -> dict[str, tuple[Setting, ...]]:
    """All settings, by method.

    Raises:
      ValueError: The table names a method, status or value that there is not.
    """
    text = resources.files("experiments").joinpath("settings.toml").read_text()
    return {
        method: tuple(_setting(method, name, dict(entry)) for name, entry in entries.items())
        for method, entries in tomllib.loads(text).items()
    }


def _setting(method: str, name: str, entry: dict[str, Any]) -> Setting:
    status, source = entry.pop("status", None), entry.pop("source", "")
    if status not in ("published", "chosen here") or not source:
        raise ValueError(
            f"settings.toml: {method}.{name} has status {status!r}; it must be 'published' or "
            "'chosen here', with a source"
        )
    known = set(algorithms.get(method).hyperparameters)
    known |= {field.name for field in dataclasses.fields(Config)}
    for value in entry:
        if value not in known:
            raise ValueError(
                f"settings.toml: {method}.{name} sets {value}, which is neither a hyper-parameter "
                "of the method nor a flag"
            )
    return Setting(name, status, source, entry)
