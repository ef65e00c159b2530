"""A small run of one method, to be interrupted and resumed; importing it starts no JAX backend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms, graphs, training
from ccl_jax.data import augment, partition
from ccl_jax.data.base import Dataset
from ccl_jax.data.feeds import InMemory
from ccl_jax.network import Network, compression
from ccl_jax.runs.directory import plain
from ccl_jax.training import loop
from ccl_jax.training.evaluation import Evaluator
from ccl_jax.training.progress import Progress
from tests.support.tiny import CLASSES, IMAGE, TinyModel

MODEL = TinyModel()
AGENTS, EPOCHS = 3, 3
STEPS = 4 * EPOCHS
# Uneven parts: in the last step of an epoch some agents have nothing left.
PARTITION = partition.Partition("uneven", tuple(np.split(np.arange(40), [10, 26])))

# One of every family, on a graph that it takes.
FAMILIES = {
    "dsgdm-n": "ring",
    "qg-dsgdm-n": "ring",
    "qg-dsgdm-n-ema": "ring",
    "qg-adam": "ring",
    "adam": "ring",
    "all-reduce": "ring",
    "isolated": "ring",
    "fedavg": "star",
    "relaysgd": "chain",
    "d2": "ring",
    "exact-diffusion": "ring",
    "decentlam": "ring",
    "dsgt": "ring",
    "k-gt": "ring",
    "aug-dgm": "ring",
    "led": "ring",
    "nids": "ring",
    "edm": "ring",
    "extra": "ring",
    "update-tracking": "ring",
    "gut": "ring",
    "momentum-tracking": "ring",
    "comp-ngc": "ring",
    "comp-cga": "ring",
    "muon": "ring",
    "demuon": "ring",
    "sgp": "exponential",
    "motef": "ring",
    "choco-sgd": "ring",
    "adagossip": "ring",
}


def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, *IMAGE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, 60).astype(np.int32)
    names = tuple("abcd")
    return Dataset(
        "tiny", images[:40], labels[:40], images[40:], labels[40:], CLASSES, (0.5,), (0.3,), 255.0,
        names,
    )  # fmt: skip


DATA = dataset()


@functools.cache
def evaluator() -> Evaluator:
    return Evaluator(MODEL, DATA)


class Experiment:
    """A run of `EPOCHS` epochs of four steps, in this process."""

    def __init__(
        self,
        name="qg-dsgdm-n",
        graph="ring",
        compressor="none",
        compression_start="model",
        lambdas=(0, 0),
        augmentation="none",
        faults=None,
        message_noise=0.0,
        average_from=None,
        feature_losses=(),
        local_steps=1,
        sam_rho=0.0,
        coins=None,
        **hyper,
    ):
        lr = 0.05
        self.algorithm = algorithms.make(name, **hyper)
        topology = graphs.make(graph, AGENTS, stochastic=algorithms.get(name).stochastic)
        network = Network(
            topology,
            local_steps=local_steps,
            coins=coins,
            compressor=compression.make(compressor),
            compression_start=compression_start,
            faults=faults,
            message_noise=message_noise,
            average_from=average_from,
        )
        objective = training.Objective(
            CLASSES, *lambdas, feature_losses=feature_losses, sam_rho=sam_rho
        )
        rate = lambda t: lr / (1 + t.astype(jnp.float32))
        step = training.make_step(MODEL, self.algorithm, network, objective, rate)
        self.feed = InMemory(DATA, PARTITION, batch_size=4, seed=1)
        # Jitted, so that all runs of an experiment share one trace.
        transform = augment.make(augmentation)
        self.step = jax.jit(loop.make_data_step(step, self.feed, DATA, transform))

        self.first = training.init_state(
            MODEL, self.algorithm, network, objective, IMAGE, jax.random.key(3)
        )

    def start(self) -> training.TrainState:
        """The first state, in buffers of its own."""
        return jax.tree.map(jnp.copy, self.first)

    def run(self, state, start=Progress(), **callbacks):  # noqa: B008
        """The end of the run: parameters, and rows without their seconds."""
        rows = list(start.rows)
        models = lambda s: evaluator()(self.algorithm.models(s.params, s.algorithm), {})
        callbacks = {"on_epoch": rows.append} | callbacks
        state, _ = loop.fit(
            state, self.step, self.feed, epochs=EPOCHS, eval_every=2, evaluate=models, start=start,
            **callbacks,
        )  # fmt: skip
        return state, without_seconds(rows)


def without_seconds(rows) -> list[dict]:
    keep = lambda row: {k: v for k, v in row.items() if "second" not in k}
    return [keep(plain(row)) for row in rows]


def same(a: training.TrainState, b: training.TrainState) -> None:
    a, b = (s._replace(key=jax.random.key_data(s.key)) for s in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def same_rows(a: list[dict], b: list[dict]) -> None:
    """Rows of metrics are equal to the bit; what differs is named."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        differ = {k: (x.get(k), y.get(k)) for k in x | y if x.get(k, "none") != y.get(k, "none")}
        assert not differ, (x.get("epoch"), differ)
