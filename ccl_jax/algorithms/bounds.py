"""Bounds to compare with: all-reduce SGD, agents that never talk, and federated averaging.

The first sees the gradient of all data in every step, the second only its own; a decentralized method
should land between them. Federated averaging (McMahan et al., AISTATS 2017, arXiv:1602.05629) has a
server in the middle of a star average the models; with several local steps between rounds it is the
published method.
"""

from typing import NamedTuple

import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, dsgd, graph_checks

EXACT = "takes exact averages over all agents, which no lost message can reach"


class LocalState(NamedTuple):
    """What an agent keeps of its own optimizer.

    Attributes:
      local: State of the local momentum.
    """

    local: optax.OptState


@base.register(
    "all-reduce",
    summary="upper bound: centralized SGD, exact mean of all gradients",
    reference="e.g. Goyal et al., arXiv:1706.02677",
    capabilities=base.Capabilities("average", rarely=False, lossless=EXACT),
    graph="not used: exact averages",
)
def all_reduce(
    *, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 1e-4
) -> base.Algorithm:
    """Centralized SGD over the data of all agents, who stay equal and weigh alike.

    An agent that has run out of samples in an epoch counts with a gradient of 0.

    Args:
      momentum: beta.
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the gradient.
    """
    direction = base.sgd_direction(momentum, nesterov, weight_decay)

    def communicate(params, state, talk, lr):
        return params, state, None

    def update(grads, eval_params, state, talk, lr):
        d, local = direction.update(talk.average(grads), state.local, eval_params)
        return trees.axpy(-lr, d, eval_params), LocalState(local)

    init = lambda params, talk: LocalState(direction.init(params))
    return base.Algorithm(init, communicate, update)


@base.register(
    "isolated",
    summary="lower bound: agents that never talk",
    reference="local SGD without communication",
    capabilities=base.Capabilities("none"),
    graph="not used",
)
def isolated(
    *, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 1e-4
) -> base.Algorithm:
    """SGD of each agent on its own data; arguments as `all_reduce`."""
    alone = dsgd.local_steps(base.sgd_direction(momentum, nesterov, weight_decay))
    return alone._replace(communicate=lambda params, state, talk, lr: (params, state, None))


@base.register(
    "fedavg",
    summary="federated averaging: the hub of a star averages all models",
    reference="McMahan et al., AISTATS 2017, arXiv:1602.05629",
    capabilities=base.Capabilities("average", lossless=EXACT),
    graph="star",
    check=(graph_checks.static, graph_checks.star),
)
def federated_averaging(
    *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 1e-4
) -> base.Algorithm:
    """Federated averaging with full participation; the agents weigh alike.

    Use several local steps a round (the network's `local_steps`) for the published method.

    Args:
      momentum: beta of the clients' local momentum.
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the gradient.
    """
    clients = dsgd.local_steps(base.sgd_direction(momentum, nesterov, weight_decay))

    def communicate(params, state, talk, lr):
        return talk.average(params, over_hub=True), state, None

    return clients._replace(communicate=communicate)
