"""The ledger of a run: what its steps have reported so far, and whether that is finite still."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ccl_jax.training.objective import LAMBDAS
from ccl_jax.training.progress import Progress, Row
from ccl_jax.training.step import StepMetrics


class Diverged(ArithmeticError):
    """A loss is no longer finite. The message names the step, the agent and the likely cause."""


class Ledger:
    """Enters the metrics of steps into a progress, in order.

    Args:
      start: Where the run starts.
      epoch_steps: Steps of an epoch.
      skip_divergence: As for `loop.fit`.
      loss_weights: As for `loop.fit`.
      on_epoch: Is given the row of an epoch that ends early.
      on_step: Is told the number of steps done.

    Attributes:
      done: What has been entered so far.
    """

    def __init__(
        self,
        start: Progress,
        epoch_steps: int,
        *,
        skip_divergence: bool = False,
        loss_weights: Mapping[str, float],
        on_epoch: Callable[[Row], None],
        on_step: Callable[[int], None],
    ) -> None:
        self.done = start
        self._before: StepMetrics | None = None
        self._epoch_steps = epoch_steps
        self._skip, self._loss_weights = skip_divergence, loss_weights
        self._on_epoch, self._on_step = on_epoch, on_step

    def enter(self, steps: Sequence[StepMetrics], seconds: float) -> None:
        """Enters steps, which are on the host and took so many seconds together.

        Raises:
          Diverged: As `loop.fit`.
        """
        for metrics in steps:
            problem = _explain(metrics, self._before, self.done, self._loss_weights)
            self._before = metrics
            self.done = self.done.after_step(metrics, seconds / len(steps))
            all_skipped = self.done.totals.skipped == self._epoch_steps
            if problem and (not self._skip or all_skipped):
                self._on_epoch(self.done.row() | {"diverged": problem})
                raise Diverged(problem)
            self._on_step(self.done.step)

    def close(self, row: Row) -> None:
        """Makes sure that what the last step has left is a model still: no step after it would notice.

        Args:
          row: Of the last epoch, which has been evaluated.

        Raises:
          Diverged: As `loop.fit`.
        """
        if math.isfinite(row["local_loss_mean"]):
            return
        problem = (
            f"the loss on the test set is no longer finite after step {self.done.step}, the last; "
            f"likely {_TOO_FAST}"
        )
        self._on_epoch(row | {"diverged": problem})
        raise Diverged(problem)


_TOO_FAST = "the learning rate is too high for this model and data: lower lr or clip gradients"


def _explain(
    metrics: StepMetrics,
    before: StepMetrics | None,
    done: Progress,
    loss_weights: Mapping[str, float],
) -> str | None:
    """One line on why a step's losses or gradients are not finite; None if they are.

    Args:
      metrics: Of the step, on the host.
      before: Of the step before, if there was one.
      done: The progress before it.
      loss_weights: As for `loop.fit`.
    """
    bad = ~(np.isfinite(metrics.cross_entropy) & np.isfinite(metrics.gradient_norm))
    if not bad.any() and metrics.taken.all():
        return None
    cause = _loss_too_large(metrics, before, done, loss_weights)
    if not bad.any():
        return (
            f"a parameter is no longer finite at step {done.step + 1}; likely {cause or _TOO_FAST}"
        )
    agent = int(np.argmax(bad))
    wrong = [name for name in loss_weights if not np.isfinite(metrics.losses[name][agent])]
    cross_entropy_fine = np.isfinite(metrics.cross_entropy[agent])
    if cause is None and cross_entropy_fine:
        if wrong:
            cause = f"{_spoken(wrong[0])} itself, as the cross-entropy is finite; or {_TOO_FAST}"
        elif np.isnan(metrics.gradient_norm[agent]):  # What grows too large is infinite first.
            cause = f"a derivative, as of a norm, a root or a quotient at 0; or {_TOO_FAST}"
    terms = {
        "cross-entropy": metrics.cross_entropy,
        **{f"{_spoken(name)} loss": values for name, values in metrics.losses.items()},
        "gradient norm": metrics.gradient_norm,
    }
    sizes = ", ".join(f"{name} {float(value[agent]):.4g}" for name, value in terms.items())
    what = "gradient" if cross_entropy_fine and not wrong else "loss"
    return (
        f"the {what} is no longer finite at step {done.step + 1}, agent {agent} ({sizes}); likely "
        f"{cause or _TOO_FAST}"
    )


def _loss_too_large(
    metrics: StepMetrics,
    before: StepMetrics | None,
    done: Progress,
    loss_weights: Mapping[str, float],
) -> str | None:
    """Which feature loss has outgrown the cross-entropy, and what to do; None if none has."""
    for step in filter(None, (metrics, before)):
        if text := _outweighs(step, loss_weights):
            return text
    if (runaway := done.totals.runaway) in loss_weights:
        return (
            f"the {_spoken(runaway)} loss ran away from the cross-entropy: lower {_weight(runaway)}, "
            "take another distance (huber, cosine) or use a network with normalisation"
        )
    return None


def _outweighs(metrics: StepMetrics, weights: Mapping[str, float]) -> str | None:
    """Which weighted loss is more than ten times the cross-entropy of some agent; None if none is."""
    for name, weight in weights.items():
        # Divided, since 1e38 of anything overflows.
        if (metrics.losses[name] / 10 * np.float64(weight) > metrics.cross_entropy).any():
            return (
                f"{_weight(name)} {weight:g} is too large: so weighted, the {_spoken(name)} loss is "
                f"more than ten times the cross-entropy: lower {_weight(name)}"
            )
    return None


def _spoken(name: str) -> str:
    return name.replace("_", "-")


def _weight(name: str) -> str:
    """What sets the weight of a feature loss."""
    return LAMBDAS.get(name, f"the weight of {name}")
