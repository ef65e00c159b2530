"""Decentralized Adam, AdamW and any other optax optimizer as the local step.

    d_i = optimizer(g_i(xt_i));   x_i <- xt_i - eta d_i

around the gossip of `dsgd`. Decentralized Adam is the baseline of Lin et al., ICML 2021,
arXiv:2102.04761; AdamW decouples the weight decay (Loshchilov & Hutter, arXiv:1711.05101).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ccl_jax.algorithms import base, dsgd


@base.register(
    "adam",
    summary="decentralized Adam, weight decay in the gradient",
    reference="Kingma & Ba, arXiv:1412.6980; decentralized: Lin et al., arXiv:2102.04761",
    capabilities=base.GOSSIP,
    decoupled=False,
)
@base.register(
    "adamw",
    summary="decentralized AdamW, decoupled weight decay",
    reference="Loshchilov & Hutter, arXiv:1711.05101",
    capabilities=base.GOSSIP,
    decoupled=True,
)
def adam(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    decoupled: bool = False,
) -> base.Algorithm:
    """Adam with local moments.

    Args:
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: lam.
      gossip_rate: gamma in (0, 1].
      decoupled: Weight decay beside the moments (AdamW) and not inside the gradient.
    """
    moments = optax.scale_by_adam(b1, b2, eps)
    decay = optax.add_decayed_weights(weight_decay)
    steps = (moments, decay) if decoupled else (decay, moments)
    return dsgd.local_steps(_per_agent(optax.chain(*steps)), gossip_rate)


@base.register(
    "optax",
    summary="any optax optimizer as the local step: hyper-parameter optimizer=NAME",
    reference="DeepMind, optax",
    capabilities=base.GOSSIP,
)
def from_optax(
    *, optimizer: str = "lion", gossip_rate: base.GossipRate = 1.0, **options: Any
) -> base.Algorithm:
    """Any optimizer of optax, by its name.

    Args:
      optimizer: Name of a function of optax that takes a learning rate: "lion", "adagrad" ...
      gossip_rate: gamma in (0, 1].
      **options: Its other arguments.

    Raises:
      ValueError: optax has no such optimizer, it does not take the options, needs more than
        gradients, or its step is not proportional to the learning rate (fromage).
    """
    build = getattr(optax, optimizer, None)
    parameters = inspect.signature(build).parameters if inspect.isfunction(build) else {}
    if "learning_rate" not in parameters:
        raise ValueError(f"optax has no optimizer {optimizer!r}; try lion, adagrad, lamb, rmsprop")
    if "learning_rate" in options:
        raise ValueError(f"the learning rate of optax.{optimizer} is that of the run: set lr")
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(f"optax.{optimizer} does not take {', '.join(unknown)}")
    for name, value in options.items():
        plain = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        if plain and isinstance(parameters[name].default, bool):
            raise ValueError(f"{name} of optax.{optimizer} is {value!r}; it must be true or false")
    _check_linear(optimizer, functools.partial(build, **options))
    # With a rate of 1 its updates are the negative directions.
    updates = _per_agent(build(learning_rate=1.0, **options))

    def direction(grads, state, params):
        step, state = updates.update(grads, state, params)
        return jax.tree.map(lambda x: -x, step), state

    return dsgd.local_steps(optax.GradientTransformation(updates.init, direction), gossip_rate)


def _check_linear(name: str, build: Callable[..., optax.GradientTransformation]) -> None:
    """Tries an optimizer on two parameters; half the learning rate must give half the step."""
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, 0.1])}
    try:
        with jax.numpy_dtype_promotion("standard"):
            transforms = [build(learning_rate=rate) for rate in (1.0, 0.5)]
            whole, half = (t.update(grads, t.init(params), params)[0]["w"] for t in transforms)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"optax.{name} cannot be the local step ({error})") from error
    if not np.allclose(0.5 * whole, half, rtol=1e-4):
        raise ValueError(
            f"the step of optax.{name} is not proportional to the learning rate, which schedules "
            "need; try lion, adagrad, lamb, rmsprop"
        )


def _per_agent(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """As `base.each_agent`; optax raises floats to integer counts, which strict promotion forbids."""

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return stacked.update(grads, state, params)

    stacked = base.each_agent(transform)
    return optax.GradientTransformation(stacked.init, update)
