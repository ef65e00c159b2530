"""What a method must keep to: how its functions are called, what they return, its hyper-parameters.

What functions return is checked while a step is traced, at no cost to what runs.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ccl_jax import ranges, signatures, trees
from ccl_jax.network import Message

PyTree = Any

# By what an `Algorithm` calls a function, what it is given.
ARGUMENTS = {
    "init": ("params", "talk"),
    "communicate": ("params", "state", "talk", "lr"),
    "update": ("grads", "eval_params", "state", "talk", "lr"),
    "combine": ("grads", "cross", "state", "talk"),
    "models": ("params", "state"),
}


def check_functions(method: str, algorithm: Any) -> None:
    """Makes sure that the functions of an `Algorithm` can be called as a step calls them.

    Raises:
      ValueError: One cannot.
    """
    for field, arguments in ARGUMENTS.items():
        if (function := getattr(algorithm, field)) is not None or field != "combine":
            signatures.check(f"{field} of {method}", function, *arguments)


def parts(function: str, found: Any, form: str) -> Any:
    """What a method's function has returned, if it is of so many parts.

    Args:
      function: Its name, for the message.
      found: What it has returned.
      form: What it must return, as "(params, state)".

    Raises:
      ValueError: It is something else.
    """
    several = isinstance(found, (tuple, list))
    if not several or len(found) != len(form.split(",")):
        is_ = f"{len(found)} values" if several else type(found).__name__
        raise ValueError(f"{function} of the method returns {is_}; it must return {form}")
    return found


def check_exchange(eval_params: PyTree, models: Any, params: PyTree) -> None:
    """Makes sure that gradients can be taken where `communicate` says, and of what it says was sent.

    Raises:
      ValueError: `models` is no message, or either has another form than the parameters.
    """
    if not (models is None or isinstance(models, Message)):
        raise ValueError(
            f"communicate of the method returns {type(models).__name__} as models; it must be what "
            "talk.send has returned for them, or None"
        )
    of = {"eval_params": eval_params} | ({} if models is None else {"models": models.own})
    for what, values in of.items():
        if found := trees.difference(values, params):
            at, now, due = found
            is_ = f"{at} as {now or 'nothing'}, which in params is {due or 'nothing'}"
            raise ValueError(
                f"communicate of the method returns {what}"
                f"{is_ if now or due else ' in other containers than params'}; they must be of one form"
            )


def check_start(state: PyTree, agents: int) -> None:
    """Makes sure that a step can begin with what `init` has returned.

    Raises:
      ValueError: A leaf is not of numbers, or neither a scalar nor something of each agent.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if not trees.is_number(x) or jnp.shape(x)[:1] not in ((), (agents,)):
            raise ValueError(
                f"init of the method returns state{jax.tree_util.keystr(path)} as {trees.form(x)}; it "
                f"must be of numbers, one alone or [{agents}, ...], something of each agent"
            )


def check_step(now: tuple[PyTree, PyTree], before: tuple[PyTree, PyTree]) -> None:
    """Makes sure that a step leaves what the next one can begin with.

    Args:
      now: The (params, state) that `update` has returned.
      before: Those that the step began with.

    Raises:
      ValueError: A leaf has another shape or dtype, or there are other leaves.
    """
    for what, new, old in zip(("params", "state"), now, before, strict=True):
        if found := trees.difference(new, old):
            swapped = trees.difference(now[::-1], before) is None
            is_ = "(state, params), and not (params, state)" if swapped else _differs(what, found)
            raise ValueError(f"update of the method returns {is_}")


def _differs(what: str, found: trees.Difference) -> str:
    at, now, before = found
    if now and before:
        return f"{what}{at} as {now}; it was {before} and must stay so"
    if now:
        return f"the {what} with {now} at {at}, where nothing was; it must stay of one form"
    if before:
        return f"the {what} without {at}, which was {before}; it must stay of one form"
    return f"the {what} in other containers than before, such as a list for a tuple"


def check_value(method: str, name: str, value: Any, default: Any) -> None:
    """A hyper-parameter is of the kind of its default, and a number is in its range."""
    if name == "gossip_rate" and callable(value):
        return  # a schedule, which has checked its numbers
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        good, allowed = isinstance(value, bool), "true or false"
    elif name in ranges.SHARED:
        shared = ranges.SHARED[name]
        good, allowed = number and shared.holds(value), shared.allowed
        if name == "gossip_rate":
            allowed = f"{ranges.UP_TO_1.allowed}, or a schedule by step"
    elif isinstance(default, (int, float)):
        good, allowed = number and 0 <= value < float("inf"), "a number >= 0"
    else:
        good = default is None or isinstance(value, type(default))
        allowed = (
            "a name" if isinstance(default, str) else f"of the kind of its default, {default!r}"
        )
    if not good:
        raise ValueError(f"{name} of {method} is {value!r}; it must be {allowed}")
