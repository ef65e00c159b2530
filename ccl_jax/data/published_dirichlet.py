"""The Dirichlet split of the published experiments, index for index.

First used by Lin et al. 2021 (Quasi-Global Momentum, arXiv 2102.04761), then by the CCL paper
(arXiv 2310.15890) and most work between and since. In words:

  1. Shuffle all samples. Take the agents in chunks of 10, the last chunk being the rest, and give
     each chunk its proportional stretch of the samples.
  2. Deal out a chunk of k agents and s samples class by class: p ~ Dir(alpha 1_k); p_j = 0 for
     agents that already hold s/k or more; cut the class in proportion to p.
  3. Deal the chunk again until every agent holds at least half of s/k.
  4. Concatenate the lists of all agents and cut the result again into equal pieces.

The last step makes sizes equal, but the label mixtures are no longer the Dirichlet draws, ranks
next to each other share a class, and up to agents - 1 samples are left out.
"""

import math
from collections.abc import Sequence

import numpy as np

MAX_DEALS = 10_000
"""Deals of a chunk before giving up; published settings need up to a few hundred."""

_CHUNK = 10


def deal(labels: np.ndarray, agents: int, alpha: float, seed: int) -> np.ndarray:
    """Deals the samples to the agents; `partition.dirichlet_authors` checks the arguments.

    Where p is all 0, or not finite because its draws underflow, the class goes to the chunk's last
    agent: that is what the original amounts to, as it casts the resulting NaN to a cut at or below
    position 0. Where the original would deal for ever, this gives up after `MAX_DEALS`.

    Args:
      labels: `[n]` integer classes, from 0 on.
      agents: Number of agents, 1 to n.
      alpha: Concentration, above 0; small is heterogeneous.
      seed: 0 to 2**32 - 1.

    Returns:
      `[agents, floor(n / agents)]` indices.

    Raises:
      ValueError: No deal gives every agent enough: alpha is too small.
    """
    rng = np.random.RandomState(seed)  # The legacy generator, as the split is defined by its draws.
    order = np.arange(len(labels))
    rng.shuffle(order)
    num_classes = int(labels.max()) + 1
    starts = [int(_CHUNK / agents * len(labels)) * c for c in range(math.ceil(agents / _CHUNK))]
    dealt = []
    for c, chunk in enumerate(np.split(order, starts[1:])):
        workers = min(_CHUNK, agents - c * _CHUNK)
        members = [chunk[labels[chunk] == k] for k in range(num_classes)]
        cuts = _deal_chunk(rng, [len(m) for m in members], c * _CHUNK, workers, alpha)
        pieces = [np.split(m, cut) for m, cut in zip(members, cuts, strict=True)]
        dealt += [piece[worker] for worker in range(workers) for piece in pieces]
    size = len(labels) // agents
    return np.concatenate(dealt)[: size * agents].reshape(agents, size)


def _deal_chunk(
    rng: np.random.RandomState,
    class_sizes: Sequence[int],
    first: int,
    workers: int,
    alpha: float,
) -> list[np.ndarray]:
    """Deals to agents `first`, `first` + 1, ... until every one has half its share.

    Returns:
      The `workers - 1` cuts of each class.
    """
    share = sum(class_sizes) / workers
    for _ in range(MAX_DEALS):
        held = np.zeros(workers, int)
        cuts = []
        for size in class_sizes:
            p = np.where(held < share, rng.dirichlet(np.full(workers, alpha)), 0.0)
            total = p.sum()
            usable = 0 < total < np.inf
            fractions = np.cumsum(p / total)[:-1] if usable else np.zeros(workers - 1)
            cuts.append((fractions * size).astype(int))
            held += np.diff(cuts[-1], prepend=0, append=size)
        if held.min() >= int(0.5 * share):
            return cuts
    raise ValueError(
        f"alpha {alpha} with {workers} agents and {len(class_sizes)} classes: every agent must "
        f"hold half an equal share, and none of {MAX_DEALS} deals was like that (in the last, agent "
        f"{first + held.argmin()} got {held.min()} samples): take a larger alpha or the split "
        "'dirichlet-clean'."
    )
