"""The algorithm contract, and the registry that gives every method a name.

An algorithm is a record of pure functions, built by a function that closes over hyper-parameters
(as an optax transform is). The functions act on whole stacks: every leaf of `params` leads with the
agents axis. One training step calls them in this order:

    eval_params, state = algorithm.communicate(params, state, network, lr)
    grads = ...                                   # of each agent's loss, at eval_params
    params, state = algorithm.update(grads, eval_params, state, network, lr)

`params` is what agents send to each other. For most methods it is the model after the local step, to
be mixed when the next step begins; "adapt, then combine" is the same recursion seen half a step
earlier. All talking goes through `network` (`ccl_jax.network.Round`), which counts the bytes.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax.names import look_up

PyTree = Any


class Algorithm(NamedTuple):
    """A decentralized optimization method.

    Attributes:
      init: `init(params) -> state`; state is a pytree of arrays.
      communicate: `communicate(params, state, network, lr) -> (eval_params, state)`: the exchange
        before the gradient. `eval_params` is where the gradient is taken.
      update: `update(grads, eval_params, state, network, lr) -> (params, state)`: the local step.
      combine: For cross-gradient methods, else None. `combine(grads, cross, state, network) ->
        (grads, state)`, called between gradient and update; `cross` has leaves
        `[agents, degree, ...]`: the gradient of neighbour d's model on the agent's own data.
      models: `models(params, state) -> params`: the models in use, where they differ from what is
        sent (push-sum divides by its weight).
    """

    init: Callable[..., PyTree]
    communicate: Callable[..., tuple[PyTree, PyTree]]
    update: Callable[..., tuple[PyTree, PyTree]]
    combine: Callable[..., tuple[PyTree, PyTree]] | None = None
    models: Callable[[PyTree, PyTree], PyTree] = lambda params, state: params


@dataclasses.dataclass(frozen=True)
class Method:
    """A named entry of the registry.

    Attributes:
      name: What users call it.
      build: Builder; its keyword arguments are the hyper-parameters.
      fixed: Hyper-parameters that the name stands for and that cannot be changed.
      summary: One line.
      reference: Where it was published.
      graph: What it needs of the graph: "any", "doubly stochastic", "tree" ...
    """

    name: str
    build: Callable[..., Algorithm]
    fixed: dict[str, Any]
    summary: str
    reference: str
    graph: str

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyper-parameters a user may set, with their defaults."""
        parameters = inspect.signature(self.build).parameters
        return {k: p.default for k, p in parameters.items() if k not in self.fixed}


REGISTRY: dict[str, Method] = {}


def register(
    name: str, *, summary: str, reference: str, graph: str = "any", **fixed: Any
) -> Callable[[Callable[..., Algorithm]], Callable[..., Algorithm]]:
    """Decorator that enters a builder into the registry, possibly under several names.

    Args:
      name: The method's name in tables and on the command line.
      summary: One line that says what it does.
      reference: Citation.
      graph: What it needs of the graph.
      **fixed: Hyper-parameters that this name fixes.
    """

    def enter(build: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
        REGISTRY[name] = Method(name, build, fixed, summary, reference, graph)
        return build

    return enter


def make(name: str, **hyperparameters: Any) -> Algorithm:
    """Builds a method by name.

    Args:
      name: A key of `REGISTRY`.
      **hyperparameters: Overrides of `REGISTRY[name].hyperparameters`.

    Raises:
      ValueError: Unknown name or hyper-parameter.
    """
    method = lookup(name)
    unknown = sorted(set(hyperparameters) - set(method.hyperparameters))
    if unknown:
        raise ValueError(
            f"{name} has no hyper-parameter {', '.join(unknown)}; it takes "
            f"{', '.join(method.hyperparameters) or 'none'}"
        )
    return method.build(**method.fixed, **hyperparameters)


def lookup(name: str) -> Method:
    """The registry's entry of that name.

    Raises:
      ValueError: Unknown name; the message has the nearest right one.
    """
    if name.lower() == "ccl":
        raise ValueError(
            "ccl is no algorithm but a loss on top of any of them: name the algorithm (the "
            "published one is qg-dsgdm-n) and set lambda_m and lambda_d"
        )
    return look_up("algorithm", name, REGISTRY)


# Arithmetic that many methods share. Trees are stacked; `a` and `lr` are scalars.


def axpy(a: jax.Array | float, x: PyTree, y: PyTree) -> PyTree:
    """a * x + y, leaf by leaf, in the dtype of y."""
    return jax.tree.map(lambda u, v: jnp.asarray(a, v.dtype) * u + v, x, y)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """x - y, leaf by leaf."""
    return jax.tree.map(jnp.subtract, x, y)


def gossip(network: Any, params: PyTree, gossip_rate: float) -> tuple[PyTree, PyTree]:
    """x + r with r = gamma * (W - I) x.

    Returns:
      The mixed parameters and the displacement r.
    """
    mixed = network.mix(params)
    displacement = jax.tree.map(
        lambda m, x: jnp.asarray(gossip_rate, x.dtype) * (m - x), mixed, params
    )
    return jax.tree.map(jnp.add, params, displacement), displacement


def per_agent(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optax transform that treats each agent of a stack on its own."""
    return optax.GradientTransformation(jax.vmap(transform.init), jax.vmap(transform.update))


def sgd_direction(
    momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """PyTorch's SGD without the learning rate: u = g + lam x; m <- beta m + u; d = u + beta m or m."""
    steps = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    steps += [optax.trace(momentum, nesterov)] if momentum else []
    return per_agent(optax.chain(*steps))


def safe_previous(lr_previous: jax.Array, lr: jax.Array) -> jax.Array:
    """The learning rate to divide by: the previous step's, or this one's before there was any.

    Warm-up schedules start at 0, where a displacement divided by the rate would be infinite; the
    floor of 1e-8 is that of the RelaySGD code.
    """
    return jnp.maximum(jnp.where(lr_previous > 0, lr_previous, lr), 1e-8)
