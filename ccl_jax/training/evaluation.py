"""Evaluation: how good each agent's model is, how good their mean is, and how much they disagree.

Papers differ in what they report (local models, the consensus model, after extra gossip or not), so
all of it is measured: mean, min, max and std over the agents' own models on the whole test set, the
consensus model (the parameter mean), and the consensus distance. Sums are masked and divided once, so
every test image counts exactly once whatever the batch size.

It runs where training does: each device shows the test set to its own agents, and the consensus model
its share of it. Models never come to the host.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec

from ccl_jax import models
from ccl_jax.data import augment, batches, streaming
from ccl_jax.data.base import Dataset, StreamedDataset
from ccl_jax.devices.parallel import BATCH, Plan
from ccl_jax.models import lowering
from ccl_jax.network.blocks import AXIS

PyTree = Any

# Agents whose models a TPU evaluates at once: their channels lie side by side in its lanes.
TOGETHER_ON_TPU = 8

# Multiples of 1, 2 and 5 in which people count.
_INTERVALS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))


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
    return jnp.sqrt(_squared_distances(params, consensus(params)).mean())


def _squared_distances(params: PyTree, mean: PyTree) -> jax.Array:
    """`[agents]` squared l2 distances of models, leaves `[agents, ...]`, to one."""
    square = lambda x, m: jnp.square(x - m[None]).reshape(len(x), -1).sum(axis=1)
    return jax.tree.reduce(jnp.add, jax.tree.map(square, params, mean))


def interval(training_passes: float, evaluation_passes: float) -> int:
    """The fewest epochs (1, 2, 5, 10, ...) at which evaluating costs under a tenth of training.

    Args:
      training_passes: Forward passes that an epoch of training is worth.
      evaluation_passes: Forward passes of one evaluation.
    """
    cheap = (k for k in _INTERVALS if evaluation_passes < 0.1 * k * training_passes)
    return next(cheap, _INTERVALS[-1])


class Evaluator:
    """Evaluates models on a dataset's test set.

    A set in memory is kept on every device; of a streamed one each batch is decoded once an evaluation
    and shown to all models. Test images that cannot be read are left out, as in training.

    One compiled program does it all: every device shows some of its models a share of the images. For
    the agents' own models all devices go through the shares in turn; for the consensus model each
    takes one of its own.

    Args:
      model: Returns (features, logits) for one agent.
      dataset: Where the test images come from.
      batch_size: Images a forward pass. None: 500, but 25 of a set in memory on a CPU, as what they
        need stays in its caches.
      plan: Where the agents are; default: all on one device.
      workers: Threads that decode a streamed set.
      max_unreadable: Test images of a streamed set that may be unreadable.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset | StreamedDataset,
        batch_size: int | None = None,
        *,
        plan: Plan | None = None,
        workers: int = 16,
        max_unreadable: int = 10,
    ) -> None:
        self._model, self._dataset = model, dataset
        self._plan = plan or Plan()
        platform = lowering.platform()
        self._together = TOGETHER_ON_TPU if platform == "tpu" else 1
        streamed = isinstance(dataset, StreamedDataset)
        if batch_size is None:
            batch_size = 25 if platform == "cpu" and not streamed else 500
        self._batch_size = batch_size
        self._programs: dict[int, tuple[Any, Any]] = {}
        self._chunks: dict[int, Any] = {}
        self._workers, self._skipped = workers, streaming.Skipped(max_unreadable)

    def __call__(self, params: PyTree, model_state: PyTree) -> Evaluation:
        """Evaluates all agents' models and their mean; all processes must call it.

        Args:
          params: Leaves `[agents, ...]`, where the plan has put them.
          model_state: Likewise.
        """
        plan = self._plan
        stacked = plan.on_mesh((params, model_state))
        agents = jax.tree.leaves(params)[0].shape[0]
        block = agents // plan.blocks
        # One agent after another where this is what convolutions are fastest at.
        together = math.gcd(block, self._together)
        share, average = self._compiled(together)
        mean, squares = average(stacked)

        shape = (plan.blocks, plan.batch_devices, together)
        shares = math.prod(shape)
        # Who is shown which share, by device and by model, in each call.
        everyone = [
            np.broadcast_to(np.arange(first, first + shape[1])[None, :, None], shape)
            for first in range(0, shares, shape[1])
        ]
        each_one = np.arange(shares).reshape(shape)
        local, whole, size = np.zeros((2, plan.blocks, block)), np.zeros(2), 0
        for count, chunk in self._images(shares):
            # All are under way before the first result is waited for.
            found = {
                start: [share(stacked, chunk, start, plan.each(who.ravel())) for who in everyone]
                for start in range(0, block, together)
            }
            found_mean = share(mean, chunk, 0, plan.each(each_one.ravel()))
            for start, sums in plan.fetch(found).items():
                by_device = np.asarray(sums, np.float64).reshape(-1, 2, *shape)
                local[:, :, start : start + together] += by_device.sum(axis=(0, 3))
            whole += np.asarray(plan.fetch(found_mean), np.float64).reshape(2, -1).sum(axis=1)
            size += count
        hits, losses = local.reshape(2, -1) / size
        distance = math.sqrt(np.asarray(plan.fetch(squares), np.float64).mean())
        return Evaluation(hits, losses, float(whole[0] / size), float(whole[1] / size), distance)

    def _compiled(self, together: int) -> tuple[Any, Any]:
        """The programs that show models a share of the images, and that make their mean."""
        if together in self._programs:
            return self._programs[together]
        dataset, model = self._dataset, self._model

        def batch_sums(params, model_state, images, labels, mask):
            images = augment.centre_crop(images, dataset.image_shape[:2])
            images = augment.normalize(images, dataset.mean, dataset.std, dataset.scale)
            _, logits = models.apply_eval(model, params, model_state, images)
            loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
            hit = (logits.argmax(axis=-1) == labels) & mask
            return hit.sum(dtype=jnp.int32), jnp.where(mask, loss, 0.0).sum()

        def one_model(variables, images):
            hits, losses = jax.lax.map(lambda b: batch_sums(*variables, *b), images)
            return hits.sum(), losses.sum()

        def share(stacked, chunk, start, shares):
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, together)
            shown = lambda x: x.reshape(-1, x.shape[0] // self._shares(together), *x.shape[1:])
            images = jax.tree.map(lambda x: shown(x)[shares], chunk)
            return jax.vmap(one_model)(jax.tree.map(cut, stacked), images)

        def average(stacked):
            # In the order of the agents, so that sums are the same on any number of devices.
            whole = lambda x: jax.lax.all_gather(x, AXIS, tiled=True).mean(axis=0)
            mean = jax.tree.map(whole, stacked)
            again = jax.tree.map(lambda m, x: jnp.broadcast_to(m[None], x.shape), mean, stacked)
            return again, _squared_distances(stacked[0], mean[0])

        mesh, spread = self._plan.mesh, PartitionSpec(AXIS)
        each = PartitionSpec((AXIS, BATCH))
        options = dict(mesh=mesh, check_vma=False)
        share = jax.shard_map(
            share,
            in_specs=(spread, PartitionSpec(), PartitionSpec(), each),
            out_specs=each,
            **options,
        )
        average = jax.shard_map(average, in_specs=spread, out_specs=spread, **options)
        self._programs[together] = jax.jit(share), jax.jit(average)
        return self._programs[together]

    def _shares(self, together: int) -> int:
        return self._plan.devices * together

    def _images(self, shares: int) -> Any:
        """Chunks of the test set, `[rows, batch, ...]` with a multiple of `shares` rows."""
        dataset, plan = self._dataset, self._plan
        size = len(dataset.test_labels)
        if isinstance(dataset, StreamedDataset):
            # A batch at a time, which is divided into shares.
            batch = -(-min(self._batch_size, size) // shares)
            rows = shares
        else:
            rows = -(-size // min(self._batch_size, size))
            rows = -(-rows // shares) * shares
            batch = -(-size // rows)
        indices = np.full(-(-size // (rows * batch)) * rows * batch, batches.PADDING)
        indices[:size] = np.arange(size)
        indices = indices.reshape(-1, rows, batch)
        if isinstance(dataset, StreamedDataset):
            decoded = streaming.decode_ahead(
                dataset.test, indices, dataset.stored_side, self._skipped, workers=self._workers
            )
            return ((int(chunk[2].sum()), plan.replicate(chunk)) for chunk in decoded)
        if shares not in self._chunks:
            images, labels = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
            whole = jax.jit(batches.gather)(images, labels, jnp.asarray(indices[0], jnp.int32))
            self._chunks[shares] = plan.replicate(whole)
        return [(size, self._chunks[shares])]
