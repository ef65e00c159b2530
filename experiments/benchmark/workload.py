"""What the benchmark runs and how it is measured: programs, alternating clocks, operations, memory."""

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms, models, training
from ccl_jax.data.base import Dataset
from ccl_jax.devices.parallel import Plan, Step
from ccl_jax.graphs.topology import Topology
from ccl_jax.losses import Batch
from ccl_jax.network import Network
from ccl_jax.runs.runner import Run
from ccl_jax.training import Objective
from experiments import flops

# Method's name in the table -> algorithm, and the weight of both contrastive losses.
METHODS = {
    "dsgdm-n": ("dsgdm-n", 0.0),
    "qg-dsgdm-n": ("qg-dsgdm-n", 0.0),
    "ccl": ("qg-dsgdm-n", 0.1),
}
CLASSES = 10
LEARNING_RATE = 0.01  # Constant; small, as random labels cannot be learned.
_IMAGE_SHAPES = {"digits-cnn": (8, 8, 1), "lenet5": (28, 28, 1)}
_IMAGE_SHAPES |= dict.fromkeys(("resnet18", "resnet34", "resnet50"), (224, 224, 3))


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a step works on.

    Attributes:
      model: Name of the model.
      norm: Its normalisation; None for the published one.
      dtype: Compute type.
      topology: The graph, which tells the number of agents.
      batch_size: Samples an agent.
      plan: Where the agents are.
    """

    model: str
    norm: str | None
    dtype: str
    topology: Topology
    batch_size: int
    plan: Plan

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` that the model was made for."""
        return image_shape(self.model)

    def make_model(self) -> Any:
        """The model."""
        return models.make(self.model, CLASSES, norm=self.norm, dtype=jnp.dtype(self.dtype))

    def batch(self) -> Batch:
        """Synthetic: images of normal noise and random labels; speed does not depend on them."""
        rng = np.random.default_rng(0)
        shape = (self.topology.agents, self.batch_size)
        return Batch(
            jnp.asarray(rng.standard_normal((*shape, *self.image_shape), np.float32)),
            jnp.asarray(rng.integers(0, CLASSES, shape), jnp.int32),
            jnp.ones(shape, bool),
        )


def image_shape(model: str) -> tuple[int, int, int]:
    """`(H, W, C)` of the images that a model was made for."""
    return _IMAGE_SHAPES.get(model, (32, 32, 3))


def of(run: Run) -> Workload:
    """What the step of a run works on."""
    config = run.config
    return Workload(
        config.model, config.norm, config.dtype, run.network.topology, config.batch_size, run.plan
    )


def noise(model: str, samples: int) -> Dataset:
    """So many training images of noise, of the size that a model was made for."""
    rng, shape = np.random.default_rng(0), image_shape(model)
    make = lambda n: rng.integers(0, 256, (n, *shape), np.uint8)
    labels = (np.arange(samples) % CLASSES).astype(np.int32)
    return Dataset(
        name="noise",
        train_images=make(samples),
        train_labels=labels,
        test_images=make(CLASSES),
        test_labels=labels[:1].repeat(CLASSES),
        num_classes=CLASSES,
        mean=(0.5,) * shape[2],
        std=(0.3,) * shape[2],
        scale=255.0,
        class_names=tuple(map(str, range(CLASSES))),
    )


def make_step(work: Workload, method: str) -> tuple[Step, training.TrainState]:
    """One method's step of all agents and its first state; built by the functions that a run uses.

    Args:
      work: What it works on.
      method: Key of METHODS.
    """
    name, weight = METHODS[method]
    algorithm, model = algorithms.make(name), work.make_model()
    network = Network(work.topology, devices=work.plan.devices)
    objective = Objective(CLASSES, lambda_m=weight, lambda_d=weight)
    rate = lambda _: jnp.float32(LEARNING_RATE)
    step = work.plan.wrap(training.make_step(model, algorithm, network, objective, rate))
    key = jax.random.key(0)
    return step, training.init_state(model, algorithm, network, objective, work.image_shape, key)


class Program:
    """One method's compiled step and its state.

    Args:
      work: What it works on.
      method: Key of METHODS.

    Attributes:
      work: What it works on.
    """

    def __init__(self, work: Workload, method: str) -> None:
        self.work = work
        step, state = make_step(work, method)
        # No two models alike, as in a run that has begun.
        rng = np.random.default_rng(1)
        noise = lambda x: x + 0.01 * rng.standard_normal(x.shape, np.float32)
        state = state._replace(params=jax.tree.map(noise, state.params))
        self._batch = work.plan.put(work.batch())
        self._state = work.plan.put(state)
        began = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self._state, self._batch)
        traced = time.perf_counter()
        self._step = lowered.compile()
        self._seconds = (traced - began, time.perf_counter() - traced)

    def facts(self) -> dict[str, Any]:
        """Seconds from Python to XLA's input and of XLA's own; bytes of arguments, results and
        temporary buffers of the compiled step on all devices.
        """
        needed = program_bytes(self._step) * self.work.plan.devices
        trace, compiling = self._seconds
        return {"seconds_trace": trace, "seconds_compile": compiling, "program_bytes": needed}

    def run(self, steps: int) -> None:
        """Takes steps, each dispatched by itself, and waits for the last."""
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))

    def parameters(self) -> dict:
        """The agents' parameters as they are now, on the host."""
        return jax.device_get(self._state.params)


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Times of one contender, one a round.

    Attributes:
      wall: Seconds on the clock.
      cpu: Seconds of processor time of this process, all threads: what a busy machine changes least.
    """

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        """Median of the wall times."""
        return statistics.median(self.wall)

    def ratio_to(self, other: "Seconds") -> float:
        """Median over the rounds of this one's time over the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.wall, other.wall, strict=True))

    def row(self) -> dict[str, Any]:
        """Median, quartiles, extremes and all times, for a JSON line."""
        low, high = np.percentile(self.wall, (25, 75))
        return {
            "seconds_median": self.median,
            "seconds_min": min(self.wall),
            "seconds_q1": float(low),
            "seconds_q3": float(high),
            "seconds_max": max(self.wall),
            "cpu_seconds_median": statistics.median(self.cpu),
            "seconds": self.wall,
        }


def alternate(
    contenders: Mapping[str, Callable[[int], Any]], repeats: int, steps: int
) -> dict[str, Seconds]:
    """Times contenders in turns, A B C A B C ..., so that a slow moment hits all of them.

    Args:
      contenders: `run(steps)`, returning when the steps are done; each is warmed up by one step.
      repeats: Rounds.
      steps: Steps that one measurement takes.

    Returns:
      Seconds a step.
    """
    for run in contenders.values():
        run(1)
    times = {name: Seconds([], []) for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(steps)
            times[name].wall.append((time.perf_counter() - wall) / steps)
            times[name].cpu.append((time.process_time() - cpu) / steps)
    return times


def matmul_gflops(dtype: str, repeats: int = 4) -> float:
    """The machine's own rate: the best of some products of square matrices, on one JAX device."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    run = lambda steps: jax.block_until_ready([product(matrix, matrix) for _ in range(steps)])
    return 2e-9 * size**3 / min(alternate({"": run}, repeats, 1)[""].wall)


def step_gflop(work: Workload, method: str) -> float:
    """Model arithmetic of one step of all agents, in GFLOP: an analytic count.

    Forward and backward are three forward passes (`flops.forward`), and with cross-features every
    neighbour's model adds one. Normalisation, losses, gossip and updates are left out: what is counted
    is what could run at the rate of a matrix product.
    """
    forward = flops.forward(work.model, CLASSES, work.image_shape)
    neighbors = work.topology.mask[0].sum() if METHODS[method][1] else 0
    images = work.batch_size * (3 * work.topology.agents + int(neighbors))
    return 1e-9 * forward * images


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """What XLA says that a compiled program needs on each device."""
    parts = compiled.memory_analysis()
    needed = parts.argument_size_in_bytes + parts.output_size_in_bytes + parts.temp_size_in_bytes
    return needed - parts.alias_size_in_bytes


def memory() -> dict[str, int | None]:
    """Peaks since this process began: of the first device, where it keeps count, and resident."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "device_peak_bytes": stats.get("peak_bytes_in_use"),
        "rss_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def gossip_programs(topology: Topology, params: dict) -> dict[str, Callable[[int], Any]]:
    """Gossip of a model alone, on one device: by the matrix, and by neighbour sums.

    Args:
      topology: The graph.
      params: Leaves `[agents, ...]`.
    """

    def program(mixing: str) -> Callable[[int], Any]:
        network = Network(topology, mixing=mixing)

        @jax.jit
        def mix(tree):
            talk = network.round(0)
            return talk.mix(talk.send("params", tree))

        return lambda steps: jax.block_until_ready([mix(params) for _ in range(steps)])

    return {mixing: program(mixing) for mixing in ("dense", "sparse")}
