"""Evaluation: how good each agent's model is, how good their mean is, and how much they disagree.

Papers differ in what they report (local models, the consensus model, after extra gossip or not), so
all of it is measured: mean, min, max and std over the agents' own models on the whole test set, the
consensus model (the parameter mean), and the consensus distance. Sums are masked and divided once, so
every test image counts exactly once whatever the batch size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ccl_jax import models
from ccl_jax.data import augment
from ccl_jax.data.datasets import Dataset

PyTree = Any


class Evaluation(NamedTuple):
    """Attributes:
    local_accuracy: `[agents]` float64 in [0, 1], each agent's model on the whole test set.
    local_loss: `[agents]` float64, mean cross-entropy of the same.
    consensus_accuracy: Accuracy of the mean model.
    consensus_loss: Cross-entropy of the mean model.
    consensus_distance: Root of the mean squared l2 distance of the agents to the mean model.
    """

    local_accuracy: np.ndarray
    local_loss: np.ndarray
    consensus_accuracy: float
    consensus_loss: float
    consensus_distance: float

    def summary(self) -> dict[str, float]:
        """The scalars that tables show."""
        local = self.local_accuracy
        return {
            "local_accuracy_mean": float(local.mean()),
            "local_accuracy_min": float(local.min()),
            "local_accuracy_max": float(local.max()),
            "local_accuracy_std": float(local.std()),
            "local_loss_mean": float(self.local_loss.mean()),
            "consensus_accuracy": self.consensus_accuracy,
            "consensus_loss": self.consensus_loss,
            "consensus_distance": self.consensus_distance,
        }


def consensus(tree: PyTree) -> PyTree:
    """The mean over agents of every leaf `[agents, ...]`."""
    return jax.tree.map(lambda x: x.mean(axis=0), tree)


@jax.jit
def consensus_distance(params: PyTree) -> jax.Array:
    """sqrt(mean over agents of ||x_i - mean x||^2): how much the agents disagree; scalar."""
    off = jax.tree.map(lambda x: x - x.mean(axis=0, keepdims=True), params)
    squares = jax.tree.map(lambda x: jnp.square(x).sum() / x.shape[0], off)
    return jnp.sqrt(jax.tree.reduce(jnp.add, squares))


class Evaluator:
    """Evaluates models on a dataset's test set, which it keeps on the device.

    Args:
      model: Returns (features, logits) for one agent.
      dataset: Where the test images come from.
      batch_size: Images a forward pass.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, batch_size: int = 500) -> None:
        size = len(dataset.test_labels)
        batch_size = min(batch_size, size)
        batches = -(-size // batch_size)
        padding = batches * batch_size - size

        def in_batches(x: np.ndarray) -> jax.Array:
            padded = np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
            return jnp.asarray(padded.reshape(batches, batch_size, *x.shape[1:]))

        self._size = size
        self._test = (
            in_batches(dataset.test_images),
            in_batches(dataset.test_labels),
            in_batches(np.ones(size, bool)),
        )

        def batch_sums(params, model_state, images, labels, mask):
            images = augment.normalize(images, dataset.mean, dataset.std, dataset.scale)
            _, logits = models.apply_eval(model, params, model_state, images)
            loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
            hit = (logits.argmax(axis=-1) == labels) & mask
            return hit.sum(dtype=jnp.int32), jnp.where(mask, loss, 0.0).sum()

        @jax.jit
        def one_model(params, model_state, test):
            hits, losses = jax.lax.map(lambda b: batch_sums(params, model_state, *b), test)
            return hits.sum(), losses.sum()

        self._one_model = one_model

    def __call__(self, params: PyTree, model_state: PyTree) -> Evaluation:
        """Evaluates all agents' models and their mean.

        Args:
          params: Leaves `[agents, ...]`.
          model_state: Leaves `[agents, ...]`.
        """
        stacked = (params, model_state)
        agents = jax.tree.leaves(params)[0].shape[0]
        # One agent after another: no per-agent kernels, which XLA's CPU convolution is slow at.
        sums = [
            self._one_model(*jax.tree.map(lambda x, i=i: x[i], stacked), self._test)
            for i in range(agents)
        ]
        sums.append(self._one_model(*consensus(stacked), self._test))
        hits, losses = np.asarray(jax.device_get(sums), np.float64).T / self._size
        return Evaluation(
            hits[:-1],
            losses[:-1],
            float(hits[-1]),
            float(losses[-1]),
            float(consensus_distance(params)),
        )
