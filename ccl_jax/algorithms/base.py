"""The algorithm contract, and the registry that gives every method a name.

An algorithm is a record of pure functions, built by a function that closes over hyper-parameters
(as an optax transform is). The functions act on whole stacks: every leaf of `params` leads with the
agents axis. One step calls them in the order of `advance`:

    eval_params, state, models = algorithm.communicate(params, state, talk, lr)
    grads = ...                                   # of each agent's loss, at eval_params
    params, state = algorithm.update(grads, eval_params, state, talk, lr)

`params` is what agents send to each other. For most methods it is the model after the local step, to
be mixed when the next step begins; "adapt, then combine" is the same recursion seen half a step
earlier. So the first exchange of a run is of equal models, and a method published as "mix in step t
with W_t" mixes that result here at the start of step t + 1. Evaluation sees `params`, the models before
they are mixed.

Every leaf of the state is a scalar or leads with the agents axis. All talking goes through `talk`, the
`ccl_jax.network.Round` of the step, which counts the bytes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import signatures, trees
from ccl_jax.algorithms import contracts
from ccl_jax.graphs.topology import Stochastic, Topology
from ccl_jax.names import check_free, look_up
from ccl_jax.network import Message, Round

PyTree = Any

# gamma in (0, 1]: a number, or by step.
GossipRate = optax.ScalarOrSchedule


class Algorithm(NamedTuple):
    """A decentralized optimization method.

    Attributes:
      init: `init(params, talk) -> state`; state is a pytree of arrays. `talk` is any round and tells
        the degree, for states that keep something for every neighbour.
      communicate: `communicate(params, state, talk, lr) -> (eval_params, state, models)`: the exchange
        before the gradient. `eval_params` is where the gradient is taken; `models` is the `Message`
        by which neighbours know each other's models, or None if the method sends no models.
      update: `update(grads, eval_params, state, talk, lr) -> (params, state)`: the local step.
      combine: For cross-gradient methods, else None. `combine(grads, cross, state, talk) ->
        (grads, state)`, called between gradient and update; `cross` has leaves
        `[agents, degree, ...]`: the gradient of neighbour d's model on the agent's own data.
      models: `models(params, state) -> params`: the models in use, where they differ from what is
        sent (push-sum divides by its weight).
    """

    init: Callable[..., PyTree]
    communicate: Callable[..., tuple[PyTree, PyTree, Message | None]]
    update: Callable[..., tuple[PyTree, PyTree]]
    combine: Callable[..., tuple[PyTree, PyTree]] | None = None
    models: Callable[[PyTree, PyTree], PyTree] = lambda params, state: params


class Advance(NamedTuple):
    """What one step of a method gives.

    Attributes:
      params: What agents send next, leaves `[agents, ...]`.
      state: Of the method.
      grads: The gradients that the local step used.
      aux: What `gradient` returned beside them.
    """

    params: PyTree
    state: PyTree
    grads: PyTree
    aux: Any


def advance(
    algorithm: Algorithm,
    params: PyTree,
    state: PyTree,
    talk: Round,
    lr: jax.Array,
    gradient: Callable[[PyTree, Message | None], tuple[PyTree, Any]],
    cross_gradient: Callable[[Message], PyTree] | None = None,
) -> Advance:
    """One step of a method: exchange, gradient, local step.

    Args:
      algorithm: The method.
      params: What agents send, leaves `[agents, ...]`.
      state: Of the method.
      talk: The round of the step.
      lr: Scalar learning rate.
      gradient: `gradient(eval_params, models) -> (grads, aux)`: every agent's gradient on its own
        data, with the models as neighbours know them (None if the method sends none).
      cross_gradient: `cross_gradient(models) -> grads [agents, degree, ...]`: gradients of the
        neighbours' models on the own data; called for methods that combine them.
    """
    before = params, state
    sent = algorithm.communicate(params, state, talk, lr)
    eval_params, state, models = contracts.parts(
        "communicate", sent, "(eval_params, state, models)"
    )
    contracts.check_exchange(eval_params, models, params)
    grads, aux = gradient(eval_params, models)
    if algorithm.combine is not None:
        combined = algorithm.combine(grads, cross_gradient(models), state, talk)
        grads, state = contracts.parts("combine", combined, "(grads, state)")
    updated = algorithm.update(grads, eval_params, state, talk, lr)
    params, state = contracts.parts("update", updated, "(params, state)")
    contracts.check_step((params, state), before)
    return Advance(params, state, grads, aux)


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """How a method talks, and what it bears: declared where it is registered.

    A reason is a text that follows the method's name in an error; "" where there is none.

    Attributes:
      how: "gossip" if it mixes, "average" over all agents, "relay" along a tree, "none".
      rarely: Whether agents may work alone for some steps between exchanges.
      by_chance: Whether a coin then decides in every step if there is an exchange.
      uncompressed: Why the network must not compress what it sends.
      lossless: Why it needs every message to arrive; may be a function of the hyper-parameters.
      keeps_sums: Whether sums over all agents must stay what they are, which old messages break.
      adds_up: Whether it adds up what it hears from step to step and no gradient pulls that back, so
        that noise on messages has no bound: trackers, corrections, the weights of push-sum.
      unmixed: Whether its gradient is always taken at the model before it is mixed.
      noiseless: Why its messages must not get noise, if not for `adds_up`.
      float64: Whether it needs float64, which TPUs do not have; what their compiler puts in its place
        has not been seen to be enough.
    """

    how: Literal["gossip", "average", "relay", "none"] = "gossip"
    rarely: bool = True
    by_chance: bool = False
    uncompressed: str = ""
    lossless: str | Callable[[dict[str, Any]], str] = ""
    keeps_sums: bool = False
    adds_up: bool = False
    unmixed: bool = False
    noiseless: str = ""
    float64: bool = False


GOSSIP = Capabilities()
# Recursions over steps, published for one graph that is used in every step.
EVERY_STEP = Capabilities(
    rarely=False,
    lossless="is made for a graph that does not change, which losses make it do",
    adds_up=True,
)
# Trackers, whose sum over all agents is that of what they track.
TRACKING = Capabilities(keeps_sums=True, adds_up=True)
# The same, with the gradient at the model that is sent.
TRACKING_UNMIXED = dataclasses.replace(TRACKING, unmixed=True)

# `check(topology, hyperparameters)` of a graph raises ValueError where the method does not work, and
# says what to do instead; see `ccl_jax.algorithms.graph_checks`. Beside the hyper-parameters it may be
# given the network's `gossip_steps`.
Check = Callable[[Topology, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Method:
    """A named entry of the registry.

    Attributes:
      name: What users call it.
      build: Builder; its arguments are the hyper-parameters.
      fixed: Hyper-parameters that the name stands for and that cannot be changed.
      summary: One line.
      reference: Where it was published.
      graph: What it needs of the graph, in words.
      checks: The same, as code.
      stochastic: Whether its mixing matrices have rows ("row") or columns that sum to 1.
      capabilities: How it talks and what it bears; None where nobody has declared it.
    """

    name: str
    build: Callable[..., Algorithm]
    fixed: dict[str, Any]
    summary: str
    reference: str
    graph: str
    checks: tuple[Check, ...]
    stochastic: Stochastic
    capabilities: Capabilities | None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyper-parameters a user may set, with their defaults."""
        return signatures.options(self.name, self.build, given=self.fixed)

    def check(self, topology: Topology, **hyperparameters: Any) -> None:
        """Makes sure that the method works on a graph.

        Raises:
          ValueError: It does not; the message says why and what to take instead.
        """
        try:
            for check in self.checks:
                check(topology, self.hyperparameters | self.fixed | hyperparameters)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


REGISTRY: dict[str, Method] = {}


def register(
    name: str,
    *,
    summary: str,
    reference: str,
    graph: str = "any",
    check: tuple[Check, ...] = (),
    stochastic: Stochastic = "row",
    capabilities: Capabilities | None = None,
    **fixed: Any,
) -> Callable[[Callable[..., Algorithm]], Callable[..., Algorithm]]:
    """Decorator that enters a builder into the registry, possibly under several names.

    Args:
      name: The method's name in tables and on the command line.
      summary: One line that says what it does.
      reference: Citation.
      graph: What it needs of the graph, in words.
      check: The same, as code.
      stochastic: "row", or "column" for push-sum.
      capabilities: How it talks and what it bears. Without it, settings that not every method bears
        (local steps, several gossip steps, compression, faults, noise, exact averages) are refused.
      **fixed: Hyper-parameters that this name fixes.

    Raises:
      ValueError: Another module has a method of that name, or a hyper-parameter has no default.
    """

    def enter(build: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
        builders = {key: method.build for key, method in REGISTRY.items()}
        check_free("algorithm", name, build.__module__, builders)
        signatures.options(name, build, given=fixed)
        REGISTRY[name] = Method(
            name, build, fixed, summary, reference, graph, check, stochastic, capabilities
        )
        return build

    return enter


def make(name: str, **hyperparameters: Any) -> Algorithm:
    """Builds a method by name.

    Args:
      name: A key of `REGISTRY`.
      **hyperparameters: Overrides of `REGISTRY[name].hyperparameters`.

    Raises:
      ValueError: Unknown name or hyper-parameter, a value of the wrong kind, or a function that cannot
        be called as `Algorithm` says.
    """
    check_hyperparameters(name, hyperparameters)
    method = get(name)
    built = method.build(**method.fixed, **hyperparameters)
    if not isinstance(built, Algorithm):
        raise ValueError(
            f"what builds {name} returns {type(built).__name__}; it must return an Algorithm"
        )
    contracts.check_functions(name, built)
    return built


def check_hyperparameters(name: str, hyperparameters: Mapping[str, Any]) -> None:
    """What can be said of hyper-parameters without building the method, which may start JAX.

    Raises:
      ValueError: Unknown method or hyper-parameter, or a value of the wrong kind.
    """
    method = get(name)
    unknown = sorted(set(hyperparameters) - set(method.hyperparameters))
    if unknown and not signatures.takes_any(method.build):
        raise ValueError(
            f"{name} has no hyper-parameter {', '.join(unknown)}; it takes "
            f"{', '.join(method.hyperparameters) or 'none'}"
        )
    for key, value in hyperparameters.items():
        contracts.check_value(name, key, value, method.hyperparameters.get(key))


def get(name: str) -> Method:
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


# What many methods share.


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Returns `value`, or raises ValueError if it is not among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(allowed)}")
    return value


def rate_at(gossip_rate: GossipRate, talk: Round) -> jax.Array | float:
    """gamma in the step of a round; 1 where averages are exact, so that agents come to be alike."""
    gamma = gossip_rate(talk.step) if callable(gossip_rate) else gossip_rate
    return gamma if talk.exact is None else jnp.where(talk.exact, 1.0, gamma)


def gossip(talk: Round, message: Message, gossip_rate: GossipRate) -> tuple[PyTree, PyTree]:
    """x + r with r = gamma * (W - I) x.

    Returns:
      The mixed values and the displacement r.
    """
    gamma = rate_at(gossip_rate, talk)
    displacement = jax.tree.map(
        lambda m, x: jnp.asarray(gamma, x.dtype) * (m - x), talk.mix(message), message.own
    )
    return optax.tree.add(message.own, displacement), displacement


def each_agent(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optax transform that treats each agent of a stack on its own."""
    return optax.GradientTransformation(jax.vmap(transform.init), jax.vmap(transform.update))


def clip(algorithm: Algorithm, largest: float) -> Algorithm:
    """A method whose local step uses gradients of at most this l2 norm, agent by agent."""

    def update(grads, eval_params, state, talk, lr):
        norms = jax.vmap(optax.tree.norm)(grads)
        scale = jnp.minimum(1.0, largest / jnp.maximum(norms, 1e-12))
        grads = jax.tree.map(lambda g: g * trees.per_agent(scale.astype(g.dtype), g), grads)
        return algorithm.update(grads, eval_params, state, talk, lr)

    return algorithm._replace(update=update)


def sgd_direction(
    momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """PyTorch's SGD without the learning rate: u = g + lam x; m <- beta m + u; d = u + beta m or m."""
    steps = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    steps += [optax.trace(momentum, nesterov)] if momentum else []
    return each_agent(optax.chain(*steps) if steps else optax.identity())


def heavy_ball(
    momentum: float, nesterov: bool, weight_decay: float
) -> Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]:
    """The same step for methods that keep m themselves: `(g, x, m) -> (d, m)`."""

    def step(grads: PyTree, params: PyTree, m: PyTree) -> tuple[PyTree, PyTree]:
        u = trees.axpy(weight_decay, params, grads)
        m = trees.axpy(momentum, m, u)
        return trees.axpy(momentum, m, u) if nesterov else m, m

    return step


def no_rate(params: PyTree) -> jax.Array:
    """The learning rate of the step before the first one: 0."""
    return jnp.zeros((), trees.sum_type(params))


def safe_previous(lr_previous: jax.Array, lr: jax.Array) -> jax.Array:
    """The learning rate to divide by: the previous step's, or this one's before there was any.

    Both are 0 where a warm-up starts. It is then infinite: what has moved is roundoff, and is not to
    become a gradient. The floor of 1e-8 is that of the RelaySGD code.
    """
    rate = jnp.where(lr_previous > 0, lr_previous, lr)
    return jnp.where(rate > 0, jnp.maximum(rate, 1e-8), jnp.inf)
