"""The contract of feature losses, and the registry that gives each a name.

A feature loss is a term beside the cross-entropy that looks at features. It is written for one agent,
`loss(own, heard, distance) -> scalar`, and says what it needs to hear by name; the names are the keys of
`ccl_jax.losses.needs.NEEDS`. The step hears what the chosen losses need, once, and nothing else. What is
heard is constant: gradients flow through the agent's own features and logits only. Further
arguments of the function are the loss's options, such as a temperature, which users may set. A loss may
remember something from step to step: it then says what it begins with, and returns what comes next.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ccl_jax import ranges, signatures, trees
from ccl_jax.names import check_free, look_up

PyTree = Any

# distance(features, target), both [..., F], -> [...]: one number a sample, a mean over features.
Distance = Callable[[jax.Array, jax.Array], jax.Array]

DISTANCES: dict[str, Distance] = {
    "mse": lambda a, b: jnp.square(a - b).mean(axis=-1),
    "l1": lambda a, b: jnp.abs(a - b).mean(axis=-1),
    "huber": lambda a, b: optax.losses.huber_loss(a, b, delta=1.0).mean(axis=-1),
    "cosine": lambda a, b: optax.losses.cosine_distance(a, b, epsilon=1e-6),
}


class Own(NamedTuple):
    """An agent's forward pass on its own batch.

    Attributes:
      features: `[batch, F]` float32.
      logits: `[batch, classes]` float32.
      labels: `[batch]` int32.
      mask: `[batch]` bool, False for padding.
    """

    features: jax.Array
    logits: jax.Array
    labels: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True)
class FeatureLoss:
    """A named entry of the registry.

    Attributes:
      name: What users, metrics and reports call it.
      loss: `loss(own, heard, distance, **options) -> scalar` for one agent; `heard` has an entry for
        each need, and no other but `memory`.
      needs: Keys of `ccl_jax.losses.needs.NEEDS`; () for a loss of the own features and logits alone.
      summary: One line.
      reference: Where it was published.
      apart: Its needs where agents work alone for some steps between exchanges; None for the same.
      memory: `memory(own) -> arrays`: what one agent remembers before its first step; of `own` there
        are shapes and dtypes alone, for a batch of one. `heard["memory"]` then has what is remembered,
        and `loss` returns `(scalar, arrays)`. None for a loss without memory.
    """

    name: str
    loss: Callable[..., Any]
    needs: tuple[str, ...]
    summary: str
    reference: str
    apart: tuple[str, ...] | None = None
    memory: Callable[[Own], PyTree] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What a user may set, with its default."""
        return signatures.options(f"feature loss {self.name}", self.loss, after=3)

    def needs_with(self, local_steps: int) -> tuple[str, ...]:
        """What it needs where agents talk in every so many-th step."""
        return self.needs if local_steps == 1 or self.apart is None else self.apart

    def start(self, own: Own) -> PyTree:
        """What one agent remembers before its first step; `own` as for `memory`.

        Raises:
          ValueError: It is not of numbers.
        """
        begun = self.memory(own)
        for x in jax.tree.leaves(begun):
            if not trees.is_number(x):
                raise ValueError(
                    f"memory of feature loss {self.name} begins with {trees.form(x)}; it must be arrays"
                )
        return jax.tree.map(jnp.asarray, begun)

    def value_and_memory(
        self, own: Own, heard: Mapping[str, Any], distance: Distance, **options: Any
    ) -> tuple[jax.Array, PyTree]:
        """The loss of one agent, and what it remembers next, detached; None without memory.

        Raises:
          ValueError: It is no scalar, or what it remembers next is of another form.
        """
        found = self.loss(own, heard, distance, **options)
        if self.memory is None:
            return self._scalar(found), None
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(
                f"feature loss {self.name} has a memory; it must return (scalar, memory), and returns "
                f"{type(found).__name__}"
            )
        value, memory = self._scalar(found[0]), found[1]
        if found := trees.difference(memory, heard["memory"]):
            now, before = found.now or "in other parts", found.before or "nothing"
            raise ValueError(
                f"feature loss {self.name} returns the memory{found.at} {now}; it must stay of the form "
                f"that it began with, {before}"
            )
        return value, jax.lax.stop_gradient(memory)

    def _scalar(self, value: Any) -> jax.Array:
        """A loss's value, if it is one number of floating point."""
        if isinstance(value, (float, np.floating)):  # Nothing was heard, as some losses say.
            value = jnp.float32(value)
        array = isinstance(value, jax.Array)
        if not array or value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            is_ = f"{value.dtype}{list(value.shape)}" if array else f"{value!r:.40}"
            raise ValueError(
                f"feature loss {self.name} returns {is_}; it must return a scalar of floating point"
            )
        return value

    def check_options(self, given: Mapping[str, Any]) -> None:
        """Makes sure that options are the loss's own, and numbers in their range.

        Raises:
          ValueError: One is not; the message says which there are, or what it may be.
        """
        for name, value in given.items():
            if name not in self.options:
                takes = ", ".join(self.options) or "none"
                raise ValueError(f"feature loss {self.name} has no option {name}; it takes {takes}")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            allowed = ranges.SHARED.get(name, ranges.NOT_NEGATIVE)
            if not (number and allowed.holds(value)):
                raise ValueError(
                    f"{name} of feature loss {self.name} is {value!r}; it must be {allowed.allowed}"
                )


REGISTRY: dict[str, FeatureLoss] = {}


def register(
    name: str,
    *,
    needs: tuple[str, ...] = (),
    summary: str,
    reference: str,
    apart: tuple[str, ...] | None = None,
    memory: Callable[[Own], PyTree] | None = None,
) -> Callable[..., Any]:
    """Decorator that enters a loss into the registry; arguments as the fields of `FeatureLoss`.

    Raises:
      ValueError: Another module has a loss of that name, needs are a text, or a function cannot be
        called as `FeatureLoss` says.
    """
    if isinstance(needs, str):
        raise ValueError(f"needs of feature loss {name} are a text, {needs!r}; write ({needs!r},)")

    def enter(loss: Callable[..., Any]) -> Callable[..., Any]:
        there = {key: entry.loss for key, entry in REGISTRY.items()}
        check_free("feature loss", name, loss.__module__, there)
        signatures.options(f"feature loss {name}", loss, after=3)
        signatures.check(f"feature loss {name}", loss, "own", "heard", "distance")
        if memory is not None:
            signatures.check(f"memory of feature loss {name}", memory, "own")
        REGISTRY[name] = FeatureLoss(name, loss, needs, summary, reference, apart, memory)
        return loss

    return enter


def get(name: str) -> FeatureLoss:
    """The registry's entry of that name.

    Raises:
      ValueError: Unknown name; the message has the nearest right one.
    """
    return look_up("feature loss", name, REGISTRY)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values [batch]` where `mask [batch]`; 0 when nothing is left."""
    count = jnp.maximum(mask.sum(dtype=values.dtype), 1.0)
    return jnp.where(mask, values, 0.0).sum() / count
