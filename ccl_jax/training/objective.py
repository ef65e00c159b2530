"""What an agent minimises: the cross-entropy, and feature losses beside it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ccl_jax import losses, ranges
from ccl_jax.names import look_up
from ccl_jax.network import Network

# The losses of the paper, which have settings of their own.
LAMBDAS = {"model_variant": "lambda_m", "data_variant": "lambda_d"}
_CHECKED = ("clip_norm", "lambda_warmup_steps", "local_steps", "sam_rho")


@dataclasses.dataclass(frozen=True)
class Objective:
    """Cross-entropy + lambda_m L_mv + lambda_d L_dv + other feature losses.

    Attributes:
      num_classes: C.
      lambda_m: Weight of the model-variant loss; 0 leaves it out.
      lambda_d: Weight of the data-variant loss; 0 leaves it out.
      distance: Key of `losses.DISTANCES`.
      clip_norm: Largest l2 norm of one agent's gradient; None does not clip.
      lambda_warmup_steps: Steps at the start over which all weights rise linearly from 0.
      measure: Report L_mv and L_dv even where their weight is 0. Costs the forward passes, changes
        no result and is not counted as traffic.
      feature_losses: (name, weight) of others, names of `losses.REGISTRY`; weight 0 leaves one out.
      loss_options: By name, options of losses, such as a temperature; default: each loss's own.
      local_steps: Steps from one exchange to the next, the network's: a loss may need other things
        where agents work alone. `on` gives an objective that of a network.
      sam_rho: Length of the ascent of `sam.sharpness_aware`; 0 for plain gradients.
      sam_adaptive: Its adaptive form.

    Raises:
      ValueError: A negative weight, norm or number of steps, or an unknown loss, option or distance.
    """

    num_classes: int
    lambda_m: float = 0.0
    lambda_d: float = 0.0
    distance: str = "mse"
    clip_norm: float | None = None
    measure: bool = False
    lambda_warmup_steps: int = 0
    feature_losses: tuple[tuple[str, float], ...] = ()
    loss_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    local_steps: int = 1
    sam_rho: float = 0.0
    sam_adaptive: bool = False

    def __post_init__(self) -> None:
        for name in (*LAMBDAS.values(), *_CHECKED):
            ranges.check(name, getattr(self, name))
        names = [name for name, _ in self.feature_losses]
        for name, weight in self.feature_losses:
            entry = losses.get(name)
            for need in (*entry.needs, *(entry.apart or ())):
                look_up("need of a feature loss", need, losses.NEEDS)
            ranges.check(f"the weight of feature loss {name}", weight, ranges.NOT_NEGATIVE)
            if name in LAMBDAS:
                raise ValueError(f"feature loss {name} has a setting of its own: {LAMBDAS[name]}")
            if names.count(name) > 1:
                raise ValueError(f"feature loss {name} is given twice; give it once")
        for name, options in self.loss_options.items():
            losses.get(name).check_options(options)
        look_up("distance", self.distance, losses.DISTANCES)

    def on(self, network: Network) -> "Objective":
        """The same on a network, which says how rarely agents talk."""
        return dataclasses.replace(self, local_steps=network.local_steps)

    @property
    def weights(self) -> dict[str, float]:
        """By name, the weights of the losses that count."""
        paper = {name: getattr(self, setting) for name, setting in LAMBDAS.items()}
        return {k: w for k, w in (paper | dict(self.feature_losses)).items() if w > 0}

    @property
    def needs(self) -> frozenset[str]:
        """What these losses need to hear."""
        return self._needs(self.weights)

    @property
    def reported(self) -> tuple[str, ...]:
        """Names of the losses in the metrics."""
        return tuple(dict.fromkeys((*self.weights, *(LAMBDAS if self.measure else ()))))

    @property
    def measured_needs(self) -> frozenset[str]:
        """What is computed for the report alone."""
        return self._needs(self.reported) - self.needs

    def passes(self, neighbors: int, crossed: bool, exchanges: float = 1.0) -> float:
        """Forward passes that a step is worth to an agent, on each sample of its batch.

        A gradient, as always, is worth three.

        Args:
          neighbors: The largest number of an agent.
          crossed: Whether the method takes gradients of the neighbours' models, too.
          exchanges: Part of the steps that have an exchange, and with it foreign models.
        """
        heard = self.needs | self.measured_needs
        there = exchanges * neighbors
        gradients = (1 + crossed * there) * (2 if self.sam_rho else 1)
        foreign = there if losses.needs.foreign(heard) else 0
        return 3 * gradients + foreign + len(losses.needs.own_models(heard))

    def rise(self, step: jax.Array) -> jax.Array:
        """The scalar in [0, 1] by which all weights are multiplied after `step` steps."""
        if self.lambda_warmup_steps == 0:
            return jnp.float32(1.0)
        return jnp.minimum(1.0, step.astype(jnp.float32) / self.lambda_warmup_steps)

    def needs_of(self, name: str) -> tuple[str, ...]:
        """What a loss needs to hear."""
        return losses.get(name).needs_with(self.local_steps)

    def memories(self, own: losses.Own) -> dict[str, Any]:
        """By loss, what one agent remembers before its first step.

        Args:
          own: Shapes and dtypes of its forward pass.

        Raises:
          ValueError: It is not of numbers.
        """
        entries = map(losses.get, self.weights)
        return {entry.name: entry.start(own) for entry in entries if entry.memory is not None}

    def _needs(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset(need for name in names for need in self.needs_of(name))
