"""The table of settings.toml: for every method and feature loss what was published or chosen here."""

import dataclasses
import functools
import tomllib
from importlib import resources
from typing import Any, NamedTuple

from ccl_jax import algorithms, losses
from ccl_jax.runs.config import Config


class Setting(NamedTuple):
    """A published setting of a method or a feature loss.

    Attributes:
      name: What it is called in the table.
      status: "published" or "chosen here".
      source: Where the values come from.
      values: Hyper-parameters of the method and flags of the mains; or options of the loss and its
        `weight`.
    """

    name: str
    status: str
    source: str
    values: dict[str, Any]


_LOSSES = "feature_loss"


@functools.cache
def table() -> dict[str, tuple[Setting, ...]]:
    """All settings of methods, by method.

    Raises:
      ValueError: The table names a method, status or value that there is not.
    """
    return {
        method: tuple(_setting(method, name, dict(entry)) for name, entry in entries.items())
        for method, entries in _read().items()
        if method != _LOSSES
    }


@functools.cache
def table_of_losses() -> dict[str, tuple[Setting, ...]]:
    """All settings of feature losses, by loss; otherwise as `table`."""
    return {
        loss: tuple(_setting_of_loss(loss, name, dict(entry)) for name, entry in entries.items())
        for loss, entries in _read()[_LOSSES].items()
    }


def _read() -> dict[str, Any]:
    return tomllib.loads(resources.files("experiments").joinpath("settings.toml").read_text())


def _setting(method: str, name: str, entry: dict[str, Any]) -> Setting:
    known = set(algorithms.get(method).hyperparameters)
    known |= {field.name for field in dataclasses.fields(Config)}
    return _checked(f"{method}.{name}", entry, known, "a hyper-parameter of the method nor a flag")


def _setting_of_loss(loss: str, name: str, entry: dict[str, Any]) -> Setting:
    known = {"weight", *losses.get(loss).options}
    where = f"{_LOSSES}.{loss}.{name}"
    return _checked(where, entry, known, "the weight nor an option of the loss")


def _checked(where: str, entry: dict[str, Any], known: set[str], kinds: str) -> Setting:
    status, source = entry.pop("status", None), entry.pop("source", "")
    if status not in ("published", "chosen here") or not source:
        raise ValueError(
            f"settings.toml: {where} has status {status!r}; it must be 'published' or "
            "'chosen here', with a source"
        )
    for value in entry:
        if value not in known:
            raise ValueError(f"settings.toml: {where} sets {value}, which is neither {kinds}")
    return Setting(where.rpartition(".")[2], status, source, entry)
