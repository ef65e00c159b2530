"""What a method must keep to: what its functions return, and what its hyper-parameters may be.

What functions return is checked while a step is traced, at no cost to what runs.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ccl_jax import ranges


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


def check_form(what: str, now: Any, before: Any) -> None:
    """Makes sure that a step leaves what the next one can begin with.

    Args:
      what: "params" or "state", for the message.
      now: What `update` has returned.
      before: What the step began with.

    Raises:
      ValueError: A leaf has another shape or dtype, or there are other leaves.
    """
    forms = jax.tree.structure(now), jax.tree.structure(before)
    if forms[0] != forms[1]:
        raise ValueError(f"update of the method returns the {what} {forms[0]}; it was {forms[1]}")
    show = lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}"
    leaves = jax.tree_util.tree_leaves_with_path(now)
    for (path, x), y in zip(leaves, jax.tree.leaves(before), strict=True):
        if show(x) != show(y):
            raise ValueError(
                f"update of the method returns {what}{jax.tree_util.keystr(path)} as {show(x)}; it was "
                f"{show(y)} and must stay so"
            )


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
        good, allowed = default is None or isinstance(value, type(default)), "a name"
    if not good:
        raise ValueError(f"{name} of {method} is {value!r}; it must be {allowed}")
