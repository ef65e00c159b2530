"""RelaySGD: sums of models relayed along a tree, so that every agent hears of every other.

Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous Data", NeurIPS 2021,
arXiv:2110.04175; "relaysum-model" in its code.

With z_i the model after the local step (local momentum), every edge carries a running sum and a count:

    S_{i->j} = z_i + sum over neighbours k != j of S^prev_{k->i};   C_{i->j} = 1 + sum of C^prev_{k->i}
    s_i = z_i + sum_j S_{j->i};   n_i = 1 + sum_j C_{j->i}
    x_i = (s_i + (N - n_i) x_0) / N  (fill "start")   or   s_i / n_i  (fill "counts")

A model at distance D arrives D - 1 steps late; until then it is missing, and either the common start
x_0 stands in for it or the average is over what has arrived.

With overlap, s_i and n_i are made of the messages of the step before (S^prev and C^prev; at first there
are none and n_i is 1), so that this step's can travel while the gradient is computed; a model at
distance D then is D steps late.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks


class RelayState(NamedTuple):
    """State of RelaySGD.

    Attributes:
      sums: S_{j->i} as received, leaves `[agents, degree, ...]`.
      counts: C_{j->i} as received, `[agents, degree]`.
      start: x_0, like params.
      local: State of the local momentum.
    """

    sums: base.PyTree
    counts: jax.Array
    start: base.PyTree
    local: optax.OptState


def _lossless(hyperparameters: dict[str, Any]) -> str:
    # It divides by the number of models that did arrive, whatever the graph.
    if hyperparameters["fill"] == "counts":
        return ""
    return "counts what has not arrived as the start; give --hparam fill=counts"


@base.register(
    "relaysgd",
    summary="models relayed along a tree and averaged over all agents",
    reference="Vogels et al., NeurIPS 2021, arXiv:2110.04175",
    # Sums grow along paths and not over steps, so noise does not add up: a path of a tree ends.
    capabilities=base.Capabilities("relay", lossless=_lossless, keeps_sums=True),
    graph="tree (chain, star ...), static",
    check=(graph_checks.static, graph_checks.tree),
)
def relaysgd(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    fill: str = "start",
    overlap: bool = False,
) -> base.Algorithm:
    """RelaySGD in its model form.

    Args:
      momentum: beta of the local momentum.
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the gradient.
      fill: What stands in for models that have not arrived: "start" or "counts".
      overlap: Whether messages arrive a step later, and overlap with the gradient.

    Raises:
      ValueError: Another `fill`.
    """
    by_count = base.choice("fill", fill, ("start", "counts")) == "counts"
    direction = base.sgd_direction(momentum, nesterov, weight_decay)

    def init(params, talk):
        return RelayState(
            trees.per_edge(params, talk.mask.shape[1]),
            jnp.zeros(talk.mask.shape, jnp.float32),
            trees.copy(params),
            direction.init(params),
        )

    def communicate(params, state, talk, lr):
        own = jnp.ones(talk.mask.shape[0], jnp.float32)
        before = (state.sums, state.counts)
        everything = _add_neighbors((params, own), before)
        all_but_one = jax.tree.map(lambda total, s: total[:, None] - s, everything, before)
        heard = trees.where(
            talk.active,
            talk.reply("sums and counts", all_but_one, compress=False, unasked=True),
            before,
        )

        s, n = everything if overlap else _add_neighbors((params, own), heard)

        def average(s, x0):
            count = trees.per_agent(n.astype(s.dtype), s)
            if by_count:
                return s / count
            return (s + (talk.agents - count) * x0) / talk.agents

        x = trees.where(talk.active, jax.tree.map(average, s, state.start), params)
        return x, state._replace(sums=heard[0], counts=heard[1]), None

    def update(grads, eval_params, state, talk, lr):
        d, local = direction.update(grads, state.local, eval_params)
        return trees.axpy(-lr, d, eval_params), state._replace(local=local)

    return base.Algorithm(init, communicate, update)


def _add_neighbors(own: base.PyTree, heard: base.PyTree) -> base.PyTree:
    return jax.tree.map(lambda z, s: z + s.sum(axis=1), own, heard)
