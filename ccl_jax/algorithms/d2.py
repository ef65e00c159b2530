"""D2 and exact diffusion: gossip SGD without the bias that differing data cause.

D2: Tang et al., "D2: Decentralized Training over Decentralized Data", ICML 2018, arXiv:1803.07068.
Exact diffusion: Yuan et al., IEEE TSP 2019, arXiv:1702.05122.

With u_t = g(x_t) + lam x_t and the convention x_{-1} = x_0, u_{-1} = 0:

  published:   x_{t+1} = W [ 2 x_t - x_{t-1} - eta_t (u_t - u_{t-1}) ]
  lr-safe:     x_{t+1} = W [ x_t - eta_t ( (x_{t-1} - x_t) / eta_{t-1} + u_t - u_{t-1} ) ]
  correction:  r_t = -eta_t d_t with any local momentum;  x_{t+1} = W (x_t + r_t + k_t);
               k_{t+1} = x_{t+1} - x_t - r_t;  k_0 = 0

The published form assumes a constant learning rate: at a drop it keeps the old rate's correction.
All three agree when the rate is constant and there is no momentum. Exact diffusion puts (I + W) / 2 in
place of W, which is a gossip rate of 1/2.

The lr-safe form is run as what it is in c_t = (x_t - x_{t-1}) / eta_{t-1} + u_{t-1}, with y_t for what
the agents send:

  y_t = x_t - eta_t (u_t - c_t);  x_{t+1} = W y_t;  c_{t+1} = c_t + (x_{t+1} - y_t) / eta_t;  c_0 = 0

c comes to rest at the agent's own gradient. Extrapolating x itself, as the published form does, rounds
it in every step and never forgets that. No form forgets the roundoff of mixing: three times float32's
1/3 is 1 + 3e-8, which after T steps is a gradient of 3e-8 T x / eta, as if weight decay were smaller.

The recursion is stable only while every eigenvalue of the matrix in use is above -1/3. An even ring
with uniform weights has exactly -1/3; tori and the Dyck graph are below.

Around other local steps, with local steps between exchanges and with a rate rho of its own, this is a
family: see `corrected`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks
from ccl_jax.graphs.topology import Topology


class SafeState(NamedTuple):
    """State of D2's lr-safe form.

    Attributes:
      correction: c, like params.
      local: State of the local direction.
      lr: eta_{t-1}, scalar; 0 before the first step.
    """

    correction: base.PyTree
    local: optax.OptState
    lr: jax.Array


class PublishedState(NamedTuple):
    """State of D2's published form.

    Attributes:
      previous: x_{t-1}, like params.
      gradient: u_{t-1}, like params.
    """

    previous: base.PyTree
    gradient: base.PyTree


class CorrectionState(NamedTuple):
    """State of the correction form.

    Attributes:
      correction: k, like params.
      local: State of the local optimizer.
    """

    correction: base.PyTree
    local: optax.OptState


def check_stable(topology: Topology, hyperparameters: dict[str, Any]) -> None:
    """Refuses graphs on which the recursion does not converge.

    An eigenvalue l of the matrix in use and a correction rate rho (1 in D2) make z^2 - (1 + l - rho
    (1 - l)) z + l, whose roots are inside the unit circle for l > (rho - 2) / (rho + 2). The matrix of
    several gossip steps is a power of W; an even one has no eigenvalue below 0.

    Raises:
      ValueError: The smallest eigenvalue is not above that.
    """
    gamma, rho = hyperparameters["gossip_rate"], hyperparameters.get("correction_rate")
    if callable(gamma):
        gamma = 1.0  # where a schedule goes
    smallest, gossip_steps = topology.smallest_eigenvalue, hyperparameters.get("gossip_steps", 1)
    smallest = smallest**gossip_steps if smallest > 0 or gossip_steps % 2 else 0.0
    smallest = 1 - gamma + gamma * smallest
    lowest = -1 / 3 if rho is None else (rho - 2) / (rho + 2)
    if smallest <= lowest + 1e-6:
        instead = "exact-diffusion" if rho is None else "a smaller correction_rate"
        raise ValueError(
            f"correcting the bias does not converge on {topology.name} with {topology.agents} agents: "
            f"the smallest eigenvalue of its mixing matrix is {smallest:.3f} and must be above "
            f"{lowest:.3g}; take {instead}, lazy weights, gossip_rate 0.5 "
            "or gossip_steps 2"
        )


# What the recursions need that mix with W itself.
STABLE = {
    "graph": graph_checks.ONE_GRAPH["graph"] + ", smallest eigenvalue > -1/3",
    "check": (*graph_checks.ONE_GRAPH["check"], check_stable),
}


def inverse_rate(lr: jax.Array) -> jax.Array:
    """1 / eta for what a step has moved; 0 after a step at rate 0, which moves nothing but roundoff."""
    return jnp.where(lr > 0, 1 / jnp.maximum(lr, 1e-8), 0.0)


def corrected(
    direction: optax.GradientTransformation,
    gossip_rate: base.GossipRate = 1.0,
    correction_rate: float = 1.0,
) -> base.Algorithm:
    """The lr-safe form around any local direction d, with K local steps from exchange to exchange.

        y = x - eta (d - c) in every step;   at an exchange  x = y + gamma (W - I) y,
        c <- c + rho / K (x - y) / eta;   between exchanges  x = y

    D2 has rho = K = gamma = 1 and d = u.

    Args:
      direction: Transform of stacked gradients to stacked directions d, without learning rate.
      gossip_rate: gamma in (0, 1].
      correction_rate: rho > 0.
    """

    def init(params, talk):
        zeros = optax.tree.zeros_like(params)
        return SafeState(zeros, direction.init(params), base.no_rate(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, moved = base.gossip(talk, message, gossip_rate)
        scale = correction_rate / talk.local_steps * inverse_rate(state.lr)
        correction = trees.axpy(scale, moved, state.correction)
        return mixed, state._replace(correction=correction), message

    def update(grads, eval_params, state, talk, lr):
        d, local = direction.update(grads, state.local, eval_params)
        params = trees.axpy(-lr, optax.tree.sub(d, state.correction), eval_params)
        return params, SafeState(state.correction, local, lr)

    return base.Algorithm(init, communicate, update)


@base.register(
    "ed",
    summary="exact diffusion in D2's lr-safe form, for any undirected graph",
    reference="Yuan et al., IEEE TSP 2019, arXiv:1702.05122",
    capabilities=base.EVERY_STEP,
    form="lr-safe",
    momentum=0.0,
    nesterov=False,
    gossip_rate=0.5,
    **graph_checks.ONE_GRAPH,
)
@base.register(
    "d2",
    summary="variance reduction over agents, safe when the learning rate changes",
    reference="Tang et al., ICML 2018, arXiv:1803.07068",
    capabilities=base.EVERY_STEP,
    **STABLE,
)
def d2(
    *,
    form: str = "lr-safe",
    momentum: float = 0.0,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
) -> base.Algorithm:
    """D2.

    Args:
      form: "lr-safe", "published" or "correction".
      momentum: beta of the local momentum; only the correction form has one.
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1].

    Raises:
      ValueError: An unknown form, or momentum in a form that has none.
    """
    if base.choice("form", form, ("lr-safe", "published", "correction")) == "correction":
        return _corrected(momentum, nesterov, weight_decay, gossip_rate)
    if momentum:
        raise ValueError(f"D2 in its {form} form has no momentum; take form=correction for one")

    if form == "published":
        return _published(weight_decay, gossip_rate)
    return corrected(base.sgd_direction(weight_decay=weight_decay), gossip_rate)


@base.register(
    "exact-diffusion",
    summary="D2 with (I + W) / 2 and local momentum, for any undirected graph",
    reference="Yuan et al., IEEE TSP 2019, arXiv:1702.05122",
    capabilities=base.EVERY_STEP,
    **graph_checks.ONE_GRAPH,
)
def exact_diffusion(
    *, momentum: float = 0.0, nesterov: bool = True, weight_decay: float = 1e-4
) -> base.Algorithm:
    """Exact diffusion, in the correction form.

    Args:
      momentum: beta of the local momentum.
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the gradient.
    """
    return _corrected(momentum, nesterov, weight_decay, gossip_rate=0.5)


def _published(weight_decay: float, gossip_rate: base.GossipRate) -> base.Algorithm:
    def init(params, talk):
        return PublishedState(trees.copy(params), optax.tree.zeros_like(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, _ = base.gossip(talk, message, gossip_rate)
        return mixed, state, message

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        ahead = optax.tree.add(eval_params, optax.tree.sub(eval_params, state.previous))
        params = trees.axpy(-lr, optax.tree.sub(u, state.gradient), ahead)
        return params, PublishedState(eval_params, u)

    return base.Algorithm(init, communicate, update)


def _corrected(
    momentum: float, nesterov: bool, weight_decay: float, gossip_rate: base.GossipRate
) -> base.Algorithm:
    direction = base.sgd_direction(momentum, nesterov, weight_decay)

    def init(params, talk):
        return CorrectionState(optax.tree.zeros_like(params), direction.init(params))

    def communicate(params, state, talk, lr):
        # params = x_t + r_t + k_t, so k_{t+1} = x_{t+1} - x_t - r_t = k_t + (x_{t+1} - params).
        message = talk.send("params", params)
        mixed, moved = base.gossip(talk, message, gossip_rate)
        correction = optax.tree.add(state.correction, moved)
        return mixed, state._replace(correction=correction), message

    def update(grads, eval_params, state, talk, lr):
        d, local = direction.update(grads, state.local, eval_params)
        corrected = optax.tree.add(eval_params, state.correction)
        return trees.axpy(-lr, d, corrected), CorrectionState(state.correction, local)

    return base.Algorithm(init, communicate, update)
