"""A few steps of the tiny model on random data, for tests of losses and of what goes into a step."""

import jax
import numpy as np

from ccl_jax import algorithms, graphs, training
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch, spread

MODEL = TinyModel()
LR = 0.1


class FewSteps:
    """Agents that differ from the start, step by step.

    Attributes:
      state: After the last step.
      metrics: Of the last step.
      compiled: The jitted step.
    """

    def __init__(
        self,
        method="dsgd",
        graph="ring",
        agents=4,
        objective=None,
        hyper=None,
        model=MODEL,
        **network,
    ):
        topology = graphs.make(graph, agents, stochastic=algorithms.get(method).stochastic)
        algorithm = algorithms.make(method, **({"weight_decay": 0.0} | (hyper or {})))
        self.agents, self.model = agents, model
        build = (model, algorithm, Network(topology, **network), objective or Objective(CLASSES))
        self.state = training.init_state(*build, IMAGE, jax.random.key(0))
        self.state = self.state._replace(params=spread(self.state.params))
        self.compiled = jax.jit(training.make_step(*build, lambda t: LR))
        self.metrics = None

    def step(self, seed, **of_batch):
        """One step on the batch of that seed; returns the batch."""
        data = batch(self.agents, seed=seed, **of_batch)
        self.state, self.metrics = self.compiled(self.state, data)
        return data

    def bytes_sent(self):
        """Of the last step, by agent."""
        return self.metrics.traffic.bytes_sent().tolist()

    def features(self, seed=0):
        """`[agents, batch, F]` of each agent's model on one batch of its own."""
        data = batch(self.agents, seed=seed)
        apply = lambda params, images: self.model.apply({"params": params}, images)[0]
        return np.asarray(jax.vmap(apply)(self.state.params, data.images))

    def text(self):
        """The program of a step."""
        return self.compiled.lower(self.state, batch(self.agents)).as_text()


def agent(tree, i):
    """One agent's part of a stacked tree."""
    return jax.tree.map(lambda x: x[i], tree)


def apply(params, images):
    """(features, logits) of one tiny model."""
    return MODEL.apply({"params": params}, images)


def same_program(one, other, **settings):
    """Two objectives make the same state and the same program, so that nothing differs by a bit."""
    a, b = FewSteps(objective=one, **settings), FewSteps(objective=other, **settings)
    assert jax.tree.structure(a.state) == jax.tree.structure(b.state)
    assert a.text() == b.text()
