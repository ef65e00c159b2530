"""Runs one Config: builds everything, trains, and leaves a run directory behind."""

import contextlib
import dataclasses
import datetime
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from ccl_jax import algorithms, graphs, models, training
from ccl_jax.algorithms import capabilities
from ccl_jax.data import augment, batches, datasets, partition
from ccl_jax.devices import hosts, memory, parallel
from ccl_jax.graphs.topology import Topology
from ccl_jax.network import Network, compression
from ccl_jax.runs import checksums, environment, inputs, programs, reporter, tensorboard, trainer
from ccl_jax.runs.config import MAY_DIFFER, Config
from ccl_jax.runs.directory import RunDirectory, made_with
from ccl_jax.runs.signals import stop_signals
from ccl_jax.runs.summary import results_table
from ccl_jax.training import schedules
from ccl_jax.training.merge import make_merge

# One virtual CPU device an agent is fastest, up to a number that is still quick to compile for.
MOST_CPU_DEVICES = 64


@dataclasses.dataclass(frozen=True)
class Run:
    """A Config with everything built and checked, ready to train. Nothing is written yet.

    Attributes:
      config: The settings.
      directory: Where its files go.
      data: Its dataset, and who holds what of it.
      plan: Where the agents are.
      network: How they talk.
      algorithm: The method.
      model: The network that each agent trains.
      objective: What it minimises.
      schedule: Learning rate by step.
      augmentation: Of one agent's training images.
    """

    config: Config
    directory: RunDirectory
    data: inputs.Data
    plan: parallel.Plan
    network: Network
    algorithm: algorithms.Algorithm
    model: nn.Module
    objective: training.Objective
    schedule: optax.Schedule
    augmentation: augment.Augmentation

    def at(self, path: Path) -> "Run":
        """The same run in another directory."""
        config = self.config.replace(workdir=str(path))
        return dataclasses.replace(self, config=config, directory=RunDirectory(path))

    @property
    def dataset(self) -> datasets.Dataset | datasets.StreamedDataset:
        """Where images come from."""
        return self.data.dataset

    @property
    def partition(self) -> partition.Partition:
        """Who holds which training samples."""
        return self.data.partition

    @functools.cached_property
    def made_of(self) -> dict[str, dict[str, str]]:
        """Checksums of what it trains on, `data`, and of the user's own files, `own_code`."""
        return checksums.of(self)


@hosts.together()
def prepare(
    config: Config,
    dataset: datasets.Dataset | datasets.StreamedDataset | None = None,
    plan: parallel.Plan | None = None,
) -> Run:
    """Builds and checks all parts of a run, and writes nothing.

    Args:
      config: The settings.
      dataset: The dataset, if it is loaded already.
      plan: Where the agents are, if that is not for the settings to say.

    Raises:
      ValueError: Something in the settings, the data or the work directory does not fit.
    """
    if config.seeds > 1:
        raise ValueError(
            f"seeds is {config.seeds}, and this makes one run; take ccl_jax.train_seeds for several"
        )
    environment.ask_defaults()
    directory = RunDirectory(config.workdir or new_workdir(config))
    if config.resume:
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        more = _more_epochs(directory, config)
        if more and config.final_merge:
            raise ValueError(
                f"{directory.path} has {more} epochs and then merges its models (final_merge), after "
                f"which it cannot go on to {config.epochs}; leave out --epochs, or start another run"
            )
        longer = {"epochs"} if more else set()
        directory.check_same(dataclasses.asdict(config), MAY_DIFFER | longer, defaults)
    else:
        directory.check_free()
    if config.tensorboard:
        tensorboard.check()
    programs.keep(config.compile_cache)
    algorithms.make(config.algorithm, **config.hyperparameters())  # Raises before data are read.
    method = algorithms.get(config.algorithm)
    # Data before the graph: a graph of far too many agents would not fit in memory.
    loaded = inputs.load(config, dataset)
    dataset = loaded.dataset
    model = make_model(config, dataset.num_classes)
    # Before JAX starts. Raises where images are too small for the model.
    prepare_memory(model, dataset.image_shape, config.batch_size)
    plan = plan or make_plan(config)
    topology = make_topology(config)
    steps = batches.steps_per_epoch(loaded.partition, config.batch_size)
    if steps * config.epochs >= 2**31:  # They are counted in int32.
        raise ValueError(
            f"epochs is {config.epochs}, and an epoch has {steps} steps; it must be at most "
            f"{(2**31 - 1) // steps}"
        )
    hyperparameters = config.hyperparameters(steps)
    method.check(topology, **hyperparameters, gossip_steps=config.gossip_steps)
    network = _make_network(config, topology, plan.blocks, steps)
    capabilities.check(method, network, **hyperparameters)
    if config.gossip_batch_stats:
        capabilities.check_mixed_statistics(method)
    capabilities.check_platform(method, plan.platform)
    if config.final_merge:
        make_merge(topology, plan)  # Raises where models cannot be merged.
    objective = _make_objective(config, dataset.num_classes, steps)
    _check_mixed(objective, method, config)
    schedule = schedules.make(
        config.schedule, config.lr, steps * config.epochs, steps * config.warmup_epochs
    )
    return Run(
        config,
        directory,
        loaded,
        plan,
        network,
        algorithms.make(config.algorithm, **hyperparameters),
        model,
        objective,
        schedule,
        augment.make(config.augment, dataset.image_shape[:2]),
    )


def check(config: Config) -> None:
    """Checks what can be known of settings without their data or JAX's devices; `prepare` checks all.

    What only the building of the method tells is not known: that may start JAX.

    Raises:
      ValueError: Something does not fit.
    """
    method, hyperparameters = algorithms.get(config.algorithm), config.hyperparameters()
    algorithms.check_hyperparameters(config.algorithm, hyperparameters)
    topology = make_topology(config)
    method.check(topology, **hyperparameters, gossip_steps=config.gossip_steps)
    capabilities.check(method, _make_network(config, topology), **hyperparameters)
    if config.gossip_batch_stats:
        capabilities.check_mixed_statistics(method)
    inputs.check(config)
    make_model(config, num_classes=2)
    augment.make(config.augment)
    _check_mixed(_make_objective(config, num_classes=2, steps=1), method, config)
    schedules.make(config.schedule, config.lr, config.epochs, config.warmup_epochs)


def _make_objective(config: Config, num_classes: int, steps: int) -> training.Objective:
    """What agents minimise; `steps` are those of an epoch."""
    return training.Objective(
        num_classes=num_classes,
        lambda_m=config.lambda_m,
        lambda_d=config.lambda_d,
        feature_losses=config.feature_losses(),
        loss_options=config.loss_options(),
        local_steps=config.local_steps,
        sam_rho=config.sam_rho,
        sam_adaptive=config.sam_adaptive,
        distance=config.distance,
        clip_norm=config.clip_norm,
        measure=config.measure_heterogeneity,
        lambda_warmup_steps=steps * config.lambda_warmup_epochs,
    )


def _make_network(config: Config, topology: Topology, devices: int = 1, steps: int = 1) -> Network:
    """What agents talk through; `steps` are those of an epoch."""
    method = algorithms.get(config.algorithm)
    return Network(
        topology,
        devices=devices,
        local_steps=config.local_steps,
        coins=config.seed if method.capabilities and method.capabilities.by_chance else None,
        gossip_steps=config.gossip_steps,
        compressor=compression.make(config.compression),
        compression_start=config.compression_start,
        faults=config.faults(),
        message_noise=config.message_noise,
        noise_seed=config.seed,
        average_from=None if config.merge_at is None else steps * (config.merge_at - 1),
    )


def prepare_memory(model: nn.Module, image_shape: tuple[int, int, int], batch_size: int) -> None:
    """Lets the C library keep what a large model's steps allocate; see `devices.memory`."""
    if models.forward_bytes(model, image_shape, batch_size) >= memory.LARGE:
        memory.keep_freed()


def request_devices(config: Config) -> None:
    """Asks for a run's virtual devices, if it is to be on a CPU; of no effect once JAX runs."""
    most = min(config.agents * config.batch_devices, MOST_CPU_DEVICES)
    parallel.request_cpu_devices(-(-(config.devices or most) // (config.num_processes or 1)))


def make_plan(config: Config) -> parallel.Plan:
    """Where the agents of a run are; on a CPU it asks for virtual devices first."""
    request_devices(config)
    devices = config.devices or parallel.usable_devices(config.agents, config.batch_devices)
    return parallel.Plan(devices, config.spmd, config.batch_devices)


def make_topology(config: Config) -> Topology:
    """Who talks to whom in a run."""
    return graphs.make(
        config.topology,
        config.agents,
        weights=config.weights,
        stochastic=algorithms.get(config.algorithm).stochastic,
        seed=config.seed,
    )


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The network that each agent of a run trains."""
    return models.make(config.model, num_classes, norm=config.norm, dtype=jnp.dtype(config.dtype))


def _check_mixed(objective: training.Objective, method: algorithms.Method, config: Config) -> None:
    """Refuses a loss that compares with the mixed model beside a method that never sees it there."""
    settings = method.hyperparameters | method.fixed | config.hyperparameters()
    choosable = settings.get("gradient_at") == "unmixed"
    always = method.capabilities is not None and method.capabilities.unmixed
    if "mixed_features" in objective.needs and (choosable or always):
        remedy = "give --hparam=gradient_at=mixed, or leave" if choosable else "leave"
        names = [name for name in objective.weights if "mixed_features" in objective.needs_of(name)]
        raise ValueError(
            f"local_steps is {config.local_steps}, so {', '.join(names)} compares with the mixed model, "
            f"and {method.name} takes its gradient before mixing; {remedy} the loss out"
        )


def main(config: Config, given: frozenset[str] = frozenset()) -> None:
    """The main of most experiments: one run, and its result on the terminal."""
    del given
    if config.seeds > 1:
        from ccl_jax.runs import seeds  # Which builds on this file.

        seeds.main(config)
        return
    run = prepare(config)
    hosts.tell(results_table([execute(run)]))
    hosts.tell(f"run directory: {run.directory.path}")
    if not config.quiet:
        hosts.tell(reporter.what_next(run.directory.path, config))


def train(config: Config) -> dict[str, Any]:
    """One run from its settings to its summary; `prepare` and `execute` in one."""
    return execute(prepare(config))


def execute(run: Run) -> dict[str, Any]:
    """Trains, writes the run directory and returns the summary.

    With `resume` in its config, the run that is there goes on; one that has ended is left alone.

    Raises:
      loop.Diverged: A loss is not finite; all metrics so far are on disk.
      checkpoints.Stopped: A signal came; the run is saved and can be resumed.
      OSError: A file could not be written.
      ValueError: The work directory cannot be used, or another run is using it.
    """
    with contextlib.ExitStack() as stack:
        open_directory(run, stack)
        stop = stack.enter_context(stop_signals())
        if (summary := go_on(run)) is not None:
            return summary
        stack.enter_context(precision(run.config))
        return trainer.train(run, stop)


def open_directory(run: Run, stack: contextlib.ExitStack) -> None:
    """Keeps others out of the run directory while `stack` is open; makes it, unless the run goes on."""
    checksums.agree(run)
    with hosts.together():
        if run.config.workdir is None:
            run.directory.claim()
        stack.enter_context(run.directory.lock(hosts.note))
        if not run.config.resume:
            made = made_with() | run.made_of
            run.directory.create(dataclasses.asdict(run.config) | {"made_with": made})
    with hosts.together():
        run.directory.check_shared()


def go_on(run: Run) -> dict[str, Any] | None:
    """With `resume`, says how the run goes on; returns its summary if it has ended already.

    Raises:
      ValueError: It cannot go on, as what it trained on has changed.
    """
    if not run.config.resume:
        return None
    more = _more_epochs(run.directory, run.config)
    if not more and has_ended(run):
        hosts.note(f"{run.directory.path} has ended already; this is its result")
        return run.directory.summary()
    with hosts.together():
        checksums.check(run)
    if more:
        hosts.note(
            f"{run.directory.path} goes on from {more} to {run.config.epochs} epochs, from here "
            f"on at the learning rates of a run of {run.config.epochs}"
        )
        settings = run.directory.settings() | {"epochs": run.config.epochs}
        run.directory.write_json("config.json", settings)
    return None


def has_ended(run: Run) -> bool:
    """Whether the run that is there has a summary of all of its epochs.

    Raises:
      ValueError: The summary is damaged.
    """
    try:
        summary = run.directory.summary() if run.config.resume else None
    except ValueError as error:
        raise ValueError(
            f"{run.directory.path}/summary.json is damaged: {error}; remove it, and a run that goes on "
            "makes it again"
        ) from None
    return summary is not None and summary["epochs"] == run.config.epochs


def precision(config: Config) -> contextlib.AbstractContextManager[None]:
    """In which products are as precise as the settings ask for."""
    if config.precision == "highest":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def _more_epochs(directory: RunDirectory, config: Config) -> int:
    """How many epochs the run that is there has, if it is to have more; else 0.

    Raises:
      ValueError: It is to have fewer.
    """
    if not (directory.path / "config.json").exists():
        return 0
    epochs = directory.settings().get("epochs", config.epochs)
    if config.epochs < epochs:
        raise ValueError(
            f"{directory.path} holds a run of more epochs: epochs was {epochs}, now {config.epochs}; "
            "one that goes on can only have more"
        )
    return epochs if config.epochs > epochs else 0


def new_workdir(config: Config) -> str:
    """A directory name that no run has yet: runs/<dataset>-<date>-<time>."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = Path("runs") / f"{config.dataset}-{stamp}"
    others = (Path(f"{name}-{k}") for k in range(2, 1000))
    return str(name if not name.exists() else next(p for p in others if not p.exists()))
