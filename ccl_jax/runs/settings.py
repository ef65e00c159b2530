"""What a setting of a run is: a dataclass field that knows its help text and its range."""

import dataclasses
import functools
import numbers
import types
import typing
from collections.abc import Iterable
from typing import Any

from ccl_jax import losses, ranges
from ccl_jax.training import schedules


def setting(
    default: Any,
    group: str,
    text: str,
    allowed: ranges.Range | None = None,
    may_differ: bool | None = None,
) -> Any:
    """A Config field.

    Args:
      default: Its value where nothing is given.
      group: Under which `--help` shows it.
      text: What `--help` says of it.
      allowed: Which values it may have; default: its entry of `ranges.SHARED`, if there is one.
      may_differ: Whether it changes nothing that a healthy run computes, but for rounding, so that a
        run that is resumed may be given another; default: where it is about devices or output.
    """
    if may_differ is None:
        may_differ = group in (DEVICES, OUTPUT)
    about = {"group": group, "help": text, "allowed": allowed, "may_differ": may_differ}
    return dataclasses.field(default=default, metadata=about)


DATA, NETWORK, METHOD, TRAINING, DEVICES, OUTPUT = (
    "Data and who holds them",
    "Network of agents",
    "Method",
    "Model and training",
    "Devices and hosts",
    "Output",
)

AUTO = "auto"


def names(known: Iterable[str]) -> str:
    """A registry's names, for a help text."""
    return ", ".join(known)


# What a value of a setting may be, by the type that its field is declared with, and how to say it. The
# numbers of NumPy are numbers, too; a truth value is none.
_KINDS: dict[object, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    tuple[str, ...]: (tuple, "texts"),
    types.NoneType: (types.NoneType, "None"),
}


@functools.cache
def _declared(kind: type) -> dict[str, tuple[object, ...]]:
    """The types that each field of a dataclass may have."""
    hints = typing.get_type_hints(kind)
    union = lambda hint: typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return {field.name: union(hints[field.name]) for field in dataclasses.fields(kind)}


def check_types(config: Any) -> None:
    """Makes sure that every setting of a dataclass is of the type that it is declared with.

    Raises:
      ValueError: One is not; the message names it and says what is allowed.
    """
    for name, declared in _declared(type(config)).items():
        value = getattr(config, name)
        if not any(_is(value, kind) for kind in declared):
            allowed = " or ".join(_KINDS[kind][1] for kind in declared)
            raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def _is(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, tuple) and not all(isinstance(part, str) for part in value):
        return False
    return isinstance(value, _KINDS[kind][0])


def check_ranges(config: Any) -> None:
    """Makes sure that every setting of a dataclass has a value that it may have.

    Raises:
      ValueError: One has not; the message names it and says what is allowed.
    """
    for field in dataclasses.fields(config):
        allowed = field.metadata["allowed"] or ranges.SHARED.get(field.name)
        if allowed is not None:
            ranges.check(field.name, getattr(config, field.name), allowed)


def feature_loss(text: str) -> tuple[str, float, dict[str, Any]]:
    """Reads a feature loss, NAME:WEIGHT or with options of it NAME:WEIGHT:OPTION=VALUE.

    Raises:
      ValueError: It is not of this form, there is no such loss or option, or a number is out of range.
    """
    name, *rest = text.split(":")
    entry = losses.get(name)
    example = "moon:1:temperature=0.2" if len(rest) > 1 else "prototype:0.1"
    form = "NAME:WEIGHT:OPTION=VALUE" if len(rest) > 1 else "NAME:WEIGHT"
    wrong = ValueError(f"feature_loss {text!r} is not of the form {form}, as {example}")
    try:
        weight = float("".join(rest[:1]))
    except ValueError:
        raise wrong from None
    ranges.check(f"the weight of feature loss {name}", weight, ranges.NOT_NEGATIVE)
    options: dict[str, Any] = {}
    for option, equals, value in (part.partition("=") for part in rest[1:]):
        if not equals or option in options:
            raise wrong
        options[option] = _literal(value)
    entry.check_options(options)
    return name, weight, options


def count_or_auto(name: str, value: int | str) -> int | str:
    """A number of at least 1, read where it is a text, or "auto".

    Raises:
      ValueError: It is neither.
    """
    if value == AUTO:
        return value
    count = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name} is {value}; it must be {AUTO} or a whole number, at least 1")
    return count


def number_or_schedule(rate: str | float | None) -> str | float | None:
    """A gossip rate with numbers read; a schedule stays a text, and None is the method's own.

    Raises:
      ValueError: It is neither a number nor a schedule.
    """
    if not isinstance(rate, str):
        return rate
    found = schedules.gossip_rate(rate, epoch_steps=1)
    return found if isinstance(found, float) else rate


def named_values(texts: Iterable[str], flags: Iterable[str]) -> dict[str, Any]:
    """Reads hyper-parameters, NAME=VALUE each.

    Args:
      texts: As they were given.
      flags: Those that have a flag of their own.

    Raises:
      ValueError: One is not of this form, has a flag, or is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"hparam {text!r} is not of the form NAME=VALUE, as ema_factor=0.1")
        if name in flags:
            raise ValueError(f"hparam {text!r}: {name} has a flag of its own; write --{text}")
        if name in found:
            raise ValueError(f"hparam {text!r}: {name} is given twice; give it once")
        found[name] = _literal(value)
    return found


def _literal(text: str) -> Any:
    """A number or truth value where the text is one, else the text."""
    known = {"true": True, "false": False, "none": None}
    if text.lower() in known:
        return known[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
