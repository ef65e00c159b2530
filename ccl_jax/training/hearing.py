"""What the losses of a step hear of other agents: their models as neighbours know them, and more."""

from collections.abc import Callable
from typing import Any

import jax

from ccl_jax import trees
from ccl_jax.losses import Batch, needs
from ccl_jax.network import Message, Round
from ccl_jax.training.objective import Objective

PyTree = Any


class KnownModels:
    """Agents' models with their batch statistics: the own ones, and as neighbours know them.

    Args:
      talk: The round of the step.
      params: What agents send, leaves `[agents, ...]`.
      model_state: Batch statistics, leaves `[agents, ...]`; {} without.
      gossip: Whether statistics are mixed.

    Attributes:
      own_stats: Statistics that the own forward pass starts from.
    """

    def __init__(self, talk: Round, params: PyTree, model_state: PyTree, gossip: bool) -> None:
        self._talk = talk
        self._params, self._model_state = params, model_state
        self._stats: Message | None = None
        self._pair: Message | None = None
        self.own_stats = model_state
        if gossip and model_state:
            self._stats = self._send_stats(talk)
            self.own_stats = talk.mix(self._stats)

    def own(self, sent: Message | None) -> PyTree:
        """The agents' own pairs (params, statistics) before mixing; nothing is sent for them.

        Args:
          sent: As for `message`; what is sent can differ from the model (push-sum).
        """
        return (self._params if sent is None else sent.own), self._model_state

    def message(self, sent: Message | None, talk: Round) -> Message:
        """The pairs (params, statistics); what has not been sent yet is sent by this, once.

        Args:
          sent: By which neighbours know the models; None if the method sends none.
          talk: The round to send in.
        """
        if self._pair is not None:
            return self._pair
        params = talk.send("models", self._params) if sent is None else sent
        if self._model_state:
            pair = params.join(self._stats or self._send_stats(talk))
        else:
            pair = params.map(lambda x: (x, self._model_state))
        # What is measured has not been sent; who needs it later in the step sends it then.
        if talk is self._talk:
            self._pair = pair
        return pair

    def _send_stats(self, talk: Round) -> Message:
        # Exactly: a compressor or noise could make a variance negative.
        return talk.send("batch statistics", self._model_state, compress=False, noise=False)


def hear(
    objective: Objective,
    talk: Round,
    known: KnownModels,
    sent: Message | None,
    mixed: PyTree,
    batch: Batch,
    kept: dict[str, PyTree],
    forward: Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array]],
) -> tuple[dict[str, Any], dict[str, PyTree]]:
    """All that the losses need, and what is measured beside them.

    Args:
      objective: The losses.
      talk: The round of the step.
      known: The agents' models.
      sent: By which neighbours know them; None if the method sends none.
      mixed: Where the gradient is taken, leaves `[agents, ...]`.
      batch: Stacked batches.
      kept: What losses have kept from the step before.
      forward: As for `needs.collect`.

    Returns:
      By need, what was heard (`needs.collect`), and the losses' own `memory` if any; and the models
      among what is kept, of this exchange.
    """
    now = {"previous_features": known.own(sent), "mixed_features": (mixed, known.own_stats)}
    own = {need: now[need] for need in needs.own_models(objective.needs)}
    models = {}
    if "models" in kept:
        own = trees.where(talk.active, own, kept["models"])
        models = {"models": own}
    heard: dict[str, Any] = {}
    # What is only measured is not sent, and what training uses stays as it is.
    for wanted, where in ((objective.needs, talk), (objective.measured_needs, talk.measuring())):
        message = known.message(sent, where) if needs.foreign(wanted) else None
        heard = needs.collect(
            wanted, where, forward, message, batch, objective.num_classes, kept, heard, own
        )
    if "memory" in kept:
        heard["memory"] = kept["memory"]
    return heard, models
