"""How much an agent will send, told before a run trains."""

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ccl_jax import training
from ccl_jax.losses import Batch
from ccl_jax.network import Memory, Traffic
from ccl_jax.network.traffic import all_reduce_bytes, message_bytes

if TYPE_CHECKING:
    from ccl_jax.runs.runner import Run

# Of a graph that takes longer to repeat, so many steps stand for all.
MOST_STEPS = 256


class Idle(nn.Module):
    """Stands in for a model where only what is sent counts: as many features and classes, no work.

    Attributes:
      features: F.
      num_classes: Number of logits.
    """

    features: int
    num_classes: int

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        zeros = lambda width: jnp.zeros((len(images), width), jnp.float32)
        return zeros(self.features), zeros(self.num_classes)


def bytes_sent(run: "Run", state: training.TrainState, steps: int) -> float:
    """Bytes that an agent will send in a run, the mean over agents.

    The training step itself says what it sends, step by step until that repeats; with a model that
    does no work, the compiler leaves nothing of it but this. Agents that go offline are taken to be so
    for exactly their share of the time.

    Args:
      run: The run.
      state: Any state of it, for shapes.
      steps: How many steps it has, at least 1.
    """
    network = run.network.whole()
    network.faults = dataclasses.replace(network.faults, offline=0.0)
    step = training.make_step(
        Idle(_features(run, state), run.objective.num_classes),
        run.algorithm,
        network,
        run.objective,
        optax.constant_schedule(0.1),
        gossip_batch_stats=run.config.gossip_batch_stats,
    )
    agents, image = run.config.agents, run.dataset.image_shape
    shapes = jax.eval_shape(lambda: state._replace(memory=Memory(), key=()))

    # What runs a few times is not worth optimising.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    @partial(jax.jit, compiler_options=options)
    def traffic(number: jax.Array) -> Traffic:
        zeros = lambda *shape: jnp.zeros((agents, 1, *shape), jnp.float32)
        batch = Batch(zeros(*image), zeros().astype(jnp.int32), zeros() == 0)
        at = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return step(at._replace(step=number, key=jax.random.key(0)), batch)[1].traffic

    # A method may begin with a step of its own; after that, the graph and local steps repeat.
    period = min(math.lcm(network.topology.rounds, network.local_steps), MOST_STEPS)

    def size(number: int) -> float:
        return float(traffic(jnp.int32(number)).bytes_sent().mean())

    def sent(begin: int, end: int) -> float:
        if network.coins is not None and network.local_steps > 1:
            # Coins do not repeat, but what an exchange sends does: the graph is a static one.
            exchanges = begin + np.flatnonzero(jax.vmap(network.talks)(jnp.arange(begin, end)))
            return len(exchanges) * size(exchanges[0]) if len(exchanges) else 0.0
        sizes = [size(number) for number in range(begin, min(end, begin + 1 + period))]
        whole, rest = divmod(max(0, end - begin - 1), period)
        return sum(sizes[:1]) + whole * sum(sizes[1:]) + sum(sizes[1 : 1 + rest])

    change = steps if network.average_from is None else network.average_from
    steps_sent = sent(0, change) + sent(change, steps)
    merge = (
        message_bytes((state.params, state.model_state), lead=1) if run.config.final_merge else 0
    )
    return steps_sent * (1 - run.network.faults.offline) + all_reduce_bytes(merge, agents)


def _features(run: "Run", state: training.TrainState) -> int:
    """F, the width of what the last layer is given."""
    one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    own = jax.tree.map(one, (state.params, state.model_state))
    image = jax.ShapeDtypeStruct((1, *run.dataset.image_shape), jnp.float32)
    return jax.eval_shape(training.make_features_fn(run.model), own, image).shape[-1]
