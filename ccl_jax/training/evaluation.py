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
from ccl_jax.data import augment, batches, streaming
from ccl_jax.data.base import Dataset, StreamedDataset
from ccl_jax.devices import hosts

PyTree = Any


class Evaluation(NamedTuple):
    """How good the agents' models are, and their mean.

    Attributes:
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
    """Evaluates models on a dataset's test set.

    A set in memory is kept on the device; of a streamed one each batch is decoded once an evaluation
    and shown to all models. Test images that cannot be read are left out, as in training.

    Args:
      model: Returns (features, logits) for one agent.
      dataset: Where the test images come from.
      batch_size: Images a forward pass. None: 500, but 25 of a set in memory on a CPU, as what they
        need stays in its caches.
      workers: Threads that decode a streamed set.
      max_unreadable: Test images of a streamed set that may be unreadable.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset | StreamedDataset,
        batch_size: int | None = None,
        *,
        workers: int = 16,
        max_unreadable: int = 10,
    ) -> None:
        size = len(dataset.test_labels)
        streamed = isinstance(dataset, StreamedDataset)
        if batch_size is None:
            batch_size = 25 if jax.default_backend() == "cpu" and not streamed else 500
        batch_size = min(batch_size, size)
        indices = np.full(-(-size // batch_size) * batch_size, batches.PADDING)
        indices[:size] = np.arange(size)
        indices = indices.reshape(-1, batch_size)
        if streamed:
            skipped = streaming.Skipped(max_unreadable)
            # One batch at a time: [1, batch, ...].
            self._chunks = lambda: streaming.decode_ahead(
                dataset.test, indices[:, None], dataset.stored_side, skipped, workers=workers
            )
        else:
            # The whole set at once: [batches, batch, ...].
            images, labels = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
            whole = jax.jit(batches.gather)(images, labels, jnp.asarray(indices, jnp.int32))
            self._chunks = lambda: [whole]

        def batch_sums(params, model_state, images, labels, mask):
            images = augment.centre_crop(images, dataset.image_shape[:2])
            images = augment.normalize(images, dataset.mean, dataset.std, dataset.scale)
            _, logits = models.apply_eval(model, params, model_state, images)
            loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
            hit = (logits.argmax(axis=-1) == labels) & mask
            return hit.sum(dtype=jnp.int32), jnp.where(mask, loss, 0.0).sum()

        @jax.jit
        def one_model(params, model_state, chunk):
            hits, losses = jax.lax.map(lambda b: batch_sums(params, model_state, *b), chunk)
            return hits.sum(), losses.sum()

        self._one_model = one_model

    def __call__(self, params: PyTree, model_state: PyTree) -> Evaluation:
        """Evaluates all agents' models and their mean; several processes share the work.

        Args:
          params: Leaves `[agents, ...]`; with several processes in the memory of each.
          model_state: Leaves `[agents, ...]`.
        """
        stacked = (params, model_state)
        agents = jax.tree.leaves(params)[0].shape[0]
        # One agent after another: no per-agent kernels, which XLA's CPU convolution is slow at.
        pick = lambda i: jax.tree.map(lambda x: x[i], stacked) if i < agents else consensus(stacked)
        mine = range(jax.process_index(), agents + 1, hosts.count())
        candidates = list(map(pick, mine))
        sums, size = np.zeros((agents + 1, 2)), 0
        for chunk in self._chunks():
            chunk = jax.device_put(chunk)
            # All are under way before the first result is waited for.
            found = jax.device_get([self._one_model(*c, chunk) for c in candidates])
            sums[mine] += np.reshape(found, (-1, 2))
            size += int(chunk[2].sum())
        hits, losses = hosts.gather(sums).sum(axis=0).T / size
        return Evaluation(
            hits[:-1],
            losses[:-1],
            float(hits[-1]),
            float(losses[-1]),
            float(consensus_distance(params)),
        )
