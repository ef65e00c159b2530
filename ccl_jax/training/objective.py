"""What an agent minimises: the cross-entropy, and feature losses beside it."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from ccl_jax import losses, ranges
from ccl_jax.names import look_up

# The losses of the paper, which have settings of their own.
LAMBDAS = {"model_variant": "lambda_m", "data_variant": "lambda_d"}


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

    Raises:
      ValueError: A negative weight, norm or number of steps, or an unknown loss or distance.
    """

    num_classes: int
    lambda_m: float = 0.0
    lambda_d: float = 0.0
    distance: str = "mse"
    clip_norm: float | None = None
    measure: bool = False
    lambda_warmup_steps: int = 0
    feature_losses: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name in (*LAMBDAS.values(), "clip_norm", "lambda_warmup_steps"):
            ranges.check(name, getattr(self, name))
        names = [name for name, _ in self.feature_losses]
        for name, weight in self.feature_losses:
            for need in losses.get(name).needs:
                look_up("need of a feature loss", need, losses.NEEDS)
            ranges.check(f"the weight of feature loss {name}", weight, ranges.NOT_NEGATIVE)
            if name in LAMBDAS:
                raise ValueError(f"feature loss {name} has a setting of its own: {LAMBDAS[name]}")
            if names.count(name) > 1:
                raise ValueError(f"feature loss {name} is given twice; give it once")
        look_up("distance", self.distance, losses.DISTANCES)

    @property
    def weights(self) -> dict[str, float]:
        """By name, the weights of the losses that count."""
        paper = {name: getattr(self, setting) for name, setting in LAMBDAS.items()}
        return {k: w for k, w in (paper | dict(self.feature_losses)).items() if w > 0}

    @property
    def needs(self) -> frozenset[str]:
        """What these losses need to hear."""
        return _needs(self.weights)

    @property
    def reported(self) -> tuple[str, ...]:
        """Names of the losses in the metrics."""
        return tuple(dict.fromkeys((*self.weights, *(LAMBDAS if self.measure else ()))))

    @property
    def measured_needs(self) -> frozenset[str]:
        """What is computed for the report alone."""
        return _needs(self.reported) - self.needs

    def rise(self, step: jax.Array) -> jax.Array:
        """The scalar in [0, 1] by which all weights are multiplied after `step` steps."""
        if self.lambda_warmup_steps == 0:
            return jnp.float32(1.0)
        return jnp.minimum(1.0, step.astype(jnp.float32) / self.lambda_warmup_steps)


def _needs(names: Iterable[str]) -> frozenset[str]:
    return frozenset(need for name in names for need in losses.get(name).needs)
