"""Progress: where a run is, in numbers that a checkpoint can hold.

Metrics of an epoch are running totals, not a list of steps, so that a run which stops in the middle of
an epoch goes on adding where it was, and ends with the same numbers to the bit.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from ccl_jax.network import Traffic
from ccl_jax.training.step import StepMetrics

Row = dict[str, Any]


class Totals(NamedTuple):
    """Sums over the steps of an epoch so far.

    Attributes:
      samples: Samples seen by all agents.
      correct: Of which were classified rightly.
      cross_entropy: Sum over samples.
      busy: Pairs of step and agent in which the agent had samples left.
      losses: By name, sums of the feature losses over those.
      lr: Learning rate of the last step.
      skipped: Steps that were not taken because a number was not finite.
      messages: Messages sent.
      lost: Of which did not arrive; None in a network without faults.
      online: Pairs of step and agent in which the agent was online.
      steps: Steps taken.
      runaway: The feature loss that was over ten times some agent's cross-entropy in the last step,
        the largest of them; "" if none was.
    """

    samples: int = 0
    correct: int = 0
    cross_entropy: float = 0.0
    busy: int = 0
    losses: dict[str, float] = {}  # noqa: RUF012 (never changed, always replaced)
    lr: float = math.nan
    skipped: int = 0
    messages: int = 0
    lost: int | None = None
    online: int = 0
    steps: int = 0
    runaway: str = ""

    def add(self, metrics: StepMetrics) -> "Totals":
        """Adds one step; `metrics` are on the host."""
        # A step in which an agent had no samples left says nothing about its features.
        busy = metrics.samples > 0
        lost = metrics.traffic.lost
        total = lambda values, weights=1: float(
            (np.where(busy, values, 0).astype(np.float64) * weights).sum()
        )
        return Totals(
            self.samples + int(metrics.samples.sum()),
            self.correct + int(metrics.correct.sum()),
            self.cross_entropy + total(metrics.cross_entropy, metrics.samples),
            self.busy + int(busy.sum()),
            {
                name: self.losses.get(name, 0.0) + total(values)
                for name, values in metrics.losses.items()
            },
            float(metrics.lr[0]),
            self.skipped,
            self.messages + int(metrics.traffic.messages.sum()),
            None if lost is None else (self.lost or 0) + int(lost.sum()),
            self.online + int(metrics.online.sum()),
            self.steps + 1,
            _runaway(metrics),
        )

    def means(self) -> Row:
        """Cross-entropy and accuracy per sample; feature losses per step and agent."""
        samples = max(1, self.samples)
        pairs = self.busy or math.nan
        return {
            "lr": self.lr,
            "cross_entropy": self.cross_entropy / samples,
            "train_accuracy": self.correct / samples,
            **{f"{name}_loss": value / pairs for name, value in self.losses.items()},
            **self._faults(),
            **({"skipped_steps": self.skipped} if self.skipped else {}),
        }

    def _faults(self) -> Row:
        """The share of messages that were lost and the mean number of agents online, with faults."""
        if self.lost is None:
            return {}
        return {
            "messages_lost": self.lost / max(1, self.messages),
            "agents_online": self.online / self.steps,
        }


def _runaway(metrics: StepMetrics) -> str:
    with np.errstate(all="ignore"):  # Where a run diverges, numbers overflow.
        excess = {
            name: float((values / np.maximum(metrics.cross_entropy, 1e-30)).max())
            for name, values in metrics.losses.items()
            if (values / 10 > metrics.cross_entropy).any()
        }
    return max(excess, key=excess.__getitem__, default="")


class Progress(NamedTuple):
    """Where a run is.

    Attributes:
      step: Steps done.
      epoch: The epoch under way, from 1.
      position: Steps of that epoch that are done.
      totals: Totals of that epoch.
      bytes_sent: Bytes that each agent has sent; () before the first step.
      seconds_training: Time spent in steps.
      seconds_evaluation: Time spent evaluating.
      rollbacks: How often the run went back to a checkpoint with a lower learning rate.
      rows: The rows of metrics of all finished epochs.
      unreadable: Positions in the training set of the images that could not be read so far.
    """

    step: int = 0
    epoch: int = 1
    position: int = 0
    totals: Totals = Totals()
    bytes_sent: tuple[int, ...] = ()
    seconds_training: float = 0.0
    seconds_evaluation: float = 0.0
    rollbacks: int = 0
    rows: tuple[Row, ...] = ()
    unreadable: tuple[int, ...] = ()

    def after_step(self, metrics: StepMetrics, seconds: float) -> "Progress":
        """One step later. A step that was not taken counts, but its numbers do not."""
        if metrics.taken.all():
            totals = self.totals.add(metrics)
        else:
            totals = self.totals._replace(skipped=self.totals.skipped + 1)
        return self.after_sending(metrics.traffic)._replace(
            step=self.step + 1,
            position=self.position + 1,
            totals=totals,
            seconds_training=self.seconds_training + seconds,
        )

    def after_sending(self, traffic: Traffic) -> "Progress":
        """With what has been sent besides; `traffic` is on the host."""
        sent = traffic.bytes_sent() + np.asarray(self.bytes_sent or 0, np.int64)
        return self._replace(bytes_sent=tuple(sent.tolist()))

    def knowing(self, unreadable: Collection[int]) -> "Progress":
        """With the images that could not be read so far."""
        return self._replace(unreadable=tuple(sorted(unreadable)))

    def row(self) -> Row:
        """The row of metrics of the epoch under way."""
        mean = sum(self.bytes_sent) / max(1, len(self.bytes_sent))
        return {
            "epoch": self.epoch,
            "step": self.step,
            **self.totals.means(),
            # An int where the number is whole, as it mostly is.
            "bytes_sent_per_agent": int(mean) if mean.is_integer() else mean,
            "bytes_sent_per_agent_max": max(self.bytes_sent, default=0),
            "seconds_training": self.seconds_training,
            **({"rollbacks": self.rollbacks} if self.rollbacks else {}),
        }

    def next_epoch(self, row: Row, seconds_evaluation: float) -> "Progress":
        """At the start of the next epoch; `row` is that of the one that ended."""
        return self._replace(
            epoch=self.epoch + 1,
            position=0,
            totals=Totals(),
            seconds_evaluation=self.seconds_evaluation + seconds_evaluation,
            rows=(*self.rows, row),
        )

    def to_json(self) -> Row:
        """As plain values; `from_json` is the way back."""
        return self._asdict() | {"totals": self.totals._asdict()}

    @classmethod
    def from_json(cls, value: Row) -> "Progress":
        """The progress that `to_json` wrote."""
        return cls(
            **value
            | {
                "totals": Totals(**value["totals"]),
                "bytes_sent": tuple(value["bytes_sent"]),
                "rows": tuple(value["rows"]),
                "unreadable": tuple(value.get("unreadable", ())),
            }
        )
