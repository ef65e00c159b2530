"""Mixing weights from edge counts, by name: what each agent gives to whom it hears."""

from collections.abc import Callable

import numpy as np

from ccl_jax.graphs.topology import Stochastic


def uniform(counts: np.ndarray, stochastic: Stochastic = "row") -> np.ndarray:
    """1 / (neighbours + 1) for oneself and each neighbour.

    Args:
      counts: `[rounds, agents, agents]` edge counts, entry (r, i, j) from j to i.
      stochastic: Whose neighbours count: "row" the receiver's, "column" the sender's (push-sum).

    Returns:
      `[rounds, agents, agents]` float64 mixing matrices; doubly stochastic on regular graphs.
    """
    voices = counts + np.eye(counts.shape[-1])
    return voices / voices.sum(axis=-1 if stochastic == "row" else -2, keepdims=True)


def metropolis(counts: np.ndarray, stochastic: Stochastic = "row") -> np.ndarray:
    """1 / (max(d_i, d_j) + 1) for each neighbour, the rest for oneself.

    Args:
      counts: `[rounds, agents, agents]` edge counts of undirected graphs.
      stochastic: Makes no difference: rows and columns both sum to 1.

    Returns:
      `[rounds, agents, agents]` float64 mixing matrices, symmetric and doubly stochastic.

    Raises:
      ValueError: The graph is directed.
    """
    if not np.array_equal(counts, np.swapaxes(counts, -1, -2)):
        raise ValueError(
            "metropolis weights need an undirected graph and this one is directed; use uniform "
            "weights"
        )
    degree = counts.sum(axis=-1)
    weights = counts / (np.maximum(degree[:, :, None], degree[:, None, :]) + 1)
    return weights + np.eye(counts.shape[-1]) * (1 - weights.sum(axis=-1, keepdims=True))


def lazy(weigh: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Halves every step: (I + W) / 2, whose eigenvalues are never below 0 if W is symmetric."""

    def weigh_lazily(counts: np.ndarray, stochastic: Stochastic = "row") -> np.ndarray:
        return (np.eye(counts.shape[-1]) + weigh(counts, stochastic)) / 2

    return weigh_lazily


WEIGHTS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "metropolis": metropolis,
    "lazy": lazy(uniform),
    "lazy-metropolis": lazy(metropolis),
}
