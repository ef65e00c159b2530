"""A model of how long a step takes on a stated network of agents, to compare methods by time.

    seconds a step = flops / speed  +  exchanges * latency  +  bytes * 8 / bandwidth

for the slowest agent: the one with the most neighbours. Agents work side by side; computing and sending
do not overlap. A gradient counts as three forward passes, a cross-feature as one; with SAM there are two
gradients for each.
"""

import functools
from typing import NamedTuple

from ccl_jax import algorithms, losses
from ccl_jax.runs import runner
from ccl_jax.runs.config import Config
from ccl_jax.training import Objective
from experiments import flops, methods


class Cost(NamedTuple):
    """What a step costs the slowest agent.

    Attributes:
      flops: Floating-point operations.
      exchanges: Times that it waits for a message; below 1 where most steps are local.
    """

    flops: float
    exchanges: float


class Link(NamedTuple):
    """What is assumed of agents and the links between them.

    Attributes:
      bandwidth_mbps: Megabits a second that an agent can send.
      latency_ms: Milliseconds until a message arrives.
      gflops: Billions of floating-point operations a second and agent.
      seconds_per_step: Seconds of computing a step, in place of what follows from `gflops`.
    """

    bandwidth_mbps: float = 100.0
    latency_ms: float = 10.0
    gflops: float = 10.0
    seconds_per_step: float | None = None

    def seconds(self, cost: Cost, steps: float, bytes_sent: float) -> float:
        """Modelled seconds of some steps in which the slowest agent sent so many bytes in all."""
        compute = self.seconds_per_step
        if compute is None:
            compute = cost.flops / (1e9 * self.gflops)
        waiting = cost.exchanges * self.latency_ms / 1e3
        return steps * (compute + waiting) + bytes_sent * 8 / (1e6 * self.bandwidth_mbps)


def cost(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> Cost:
    """Counts a step of some settings."""
    topology = runner.make_topology(config)
    neighbors = int(topology.mask.sum(axis=-1).max())
    # On a small graph the same is measured faster, and once for all runs.
    measured = _measured(config.algorithm) or methods.measure(
        algorithms.get(config.algorithm), topology
    )
    crossed = measured.gradients != "1"
    objective = Objective(
        num_classes,
        config.lambda_m,
        config.lambda_d,
        feature_losses=config.feature_losses(),
        local_steps=config.local_steps,
        sam_rho=config.sam_rho,
    )
    passes = objective.passes(neighbors, crossed, 1 / config.local_steps)
    per_image = flops.forward_by_xla(config.model, num_classes, image_shape, config.norm)
    # Models that the method itself does not send, and replies, come once, however often agents mix.
    apart = losses.needs.foreign(objective.needs) and not measured.sends_models
    replies = crossed + ("class_sums" in objective.needs)
    waits = (measured.exchanges - crossed) * config.gossip_steps + apart + replies
    # What else losses send goes with what is sent anyway, if anything is.
    waits = max(waits, any(losses.needs.NEEDS[need].sends for need in objective.needs))
    return Cost(passes * config.batch_size * per_image, waits / config.local_steps)


@functools.cache
def _measured(algorithm: str) -> methods.Cost | None:
    method = algorithms.get(algorithm)
    topology = methods.fitting_graph(method)
    return None if topology is None else methods.measure(method, topology)
