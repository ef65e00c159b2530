"""How functions of a user's own are called, and what of theirs can be set."""

import inspect
from collections.abc import Callable, Container
from typing import Any


def check(what: str, function: Callable[..., Any], *arguments: str) -> None:
    """Makes sure that a function can be called with so many arguments.

    Args:
      what: It, for the message.
      function: Any object.
      *arguments: What it is given, by position; the names are for the message.

    Raises:
      ValueError: It cannot.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # Of some functions that are written in C, nobody knows.
        return
    except TypeError:
        raise ValueError(f"{what} is {function!r:.40}; it must be a function") from None
    try:
        signature.bind(*arguments)
    except TypeError as error:
        given = ", ".join(arguments)
        raise ValueError(f"{what} is called with ({given}) and does not fit: {error}") from None


def options(
    what: str, function: Callable[..., Any], *, after: int = 0, given: Container[str] = ()
) -> dict[str, Any]:
    """What a user may set of a function by name, with its defaults.

    Args:
      what: The function, for the message.
      function: It.
      after: Arguments at its beginning that are no options.
      given: Names of others that are none.

    Raises:
      ValueError: An option has no default.
    """
    parameters = list(inspect.signature(function).parameters.values())[after:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    found = {p.name: p.default for p in named if p.name not in given}
    for name, default in found.items():
        if default is inspect.Parameter.empty:
            raise ValueError(
                f"{name} of {what} has no default; write {name}=VALUE where it is defined"
            )
    return found


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function takes arguments of any name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
