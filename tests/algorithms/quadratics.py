"""Agents with quadratic losses of their own: f_i(x) = 1/2 (x - c_i)' A_i (x - c_i), on a ring."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms.base import Algorithm
from ccl_jax.network import Network


def ring_weights(agents: int) -> np.ndarray:
    """1/3 for oneself and both neighbours, written down by hand; 3 agents or more."""
    weights = np.zeros((agents, agents))
    for i in range(agents):
        for j in (i - 1, i, i + 1):
            weights[i, j % agents] = 1 / 3
    return weights


def top_k(x: np.ndarray, count: int) -> np.ndarray:
    """The entries of largest magnitude in every row of `[agents, size]`."""
    kept = np.zeros_like(x)
    for row, own in zip(kept, x, strict=True):
        places = np.argsort(-np.abs(own), kind="stable")[:count]
        row[places] = own[places]
    return kept


class Quadratics:
    """Heterogeneous: every agent has a curvature and a minimum of its own; `talk` is for the network."""

    def __init__(self, agents: int, size: int, seed: int, **talk: Any) -> None:
        rng = np.random.default_rng(seed)
        factors = rng.normal(size=(agents, size, size))
        self.agents, self.size = agents, size
        self.curvature = factors @ factors.transpose(0, 2, 1) / size + 0.3 * np.eye(size)
        self.minimum = rng.normal(size=(agents, size))
        self.start = rng.normal(size=size)
        self.network = Network(graphs.make("ring", agents), **talk)

    @property
    def optimum(self) -> np.ndarray:
        """Where the mean gradient is 0."""
        right = np.einsum("ixy,iy->x", self.curvature, self.minimum)
        return np.linalg.solve(self.curvature.sum(axis=0), right)

    def gradients(self, x: np.ndarray) -> np.ndarray:
        """Of everyone's f_i at its x, `[agents, size]`."""
        return np.einsum("ixy,iy->ix", self.curvature, x - self.minimum)

    def gradient(self, agent: int, x: np.ndarray) -> np.ndarray:
        """Of f_i at x."""
        return self.curvature[agent] @ (x - self.minimum[agent])

    def run(self, algorithm: Algorithm, rates: list[float]) -> np.ndarray:
        """The parameters after each step, `[steps, agents, size]`; in float64 where that is on."""
        a, c = (jnp.asarray(x, float) for x in (self.curvature, self.minimum))
        gradient = jax.vmap(lambda x, a, c: a @ (x - c))

        def advance(x, state, talk, lr):
            own = lambda at, _: (gradient(at, a, c), None)
            return algorithms.advance(algorithm, x, state, talk, lr, own)

        @jax.jit
        def step(x, state, memory, t, lr):
            talk = self.network.round(t, memory)
            new = advance(x, state, talk, lr)
            return new.params, new.state, talk.memory()

        x = jnp.tile(jnp.asarray(self.start, float), (self.agents, 1))
        state = algorithm.init(x, self.network.round(0))
        memory = self.network.start(lambda talk: advance(x, state, talk, jnp.asarray(0.1, float)))
        path = []
        for t, lr in enumerate(rates):
            x, state, memory = step(x, state, memory, jnp.int32(t), jnp.asarray(lr, float))
            path.append(x)
        return np.stack(path)
