"""Runs one Config: builds everything, trains, and leaves a run directory behind."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ccl_jax import algorithms, compression, graphs, loop, models, plots, schedules, training
from ccl_jax.data import augment, batches, datasets, partition
from ccl_jax.data.feeds import InMemory
from ccl_jax.evaluation import Evaluator
from ccl_jax.metrics import RunDirectory
from ccl_jax.network import Network
from experiments.config import Config


@dataclasses.dataclass(frozen=True)
class Run:
    """A Config with everything built and checked, ready to train. Nothing is written yet.

    Attributes are what their types say; `partition` tells who holds which training samples.
    """

    config: Config
    directory: RunDirectory
    dataset: datasets.Dataset
    partition: partition.Partition
    network: Network
    algorithm: algorithms.Algorithm
    model: Any
    objective: training.Objective
    schedule: Any
    augmentation: augment.Augmentation


def prepare(config: Config, dataset: datasets.Dataset | None = None) -> Run:
    """Builds and checks all parts of a run, and writes nothing.

    Args:
      config: The settings.
      dataset: The dataset, if it is loaded already.

    Raises:
      ValueError: Something in the settings, the data or the work directory does not fit.
    """
    directory = RunDirectory(config.workdir or new_workdir(config))
    directory.check_free()
    algorithm = algorithms.make(config.algorithm, **config.hyperparameters())
    method = algorithms.lookup(config.algorithm)
    topology = graphs.make(
        config.topology,
        config.agents,
        weights=config.weights,
        stochastic=method.stochastic,
        seed=config.seed,
    )
    method.check(topology, **config.hyperparameters())
    network = Network(
        topology,
        local_steps=config.local_steps,
        gossip_steps=config.gossip_steps,
        compressor=compression.make(config.compression),
    )
    dataset = dataset or datasets.load(config.dataset, config.data_dir)
    objective = training.Objective(
        num_classes=dataset.num_classes,
        lambda_m=config.lambda_m,
        lambda_d=config.lambda_d,
        distance=config.distance,
        clip_norm=config.clip_norm,
        measure=config.measure_heterogeneity,
    )
    model = models.make(config.model, dataset.num_classes, norm=config.norm)
    split = partition.make(
        config.partition,
        dataset.train_labels,
        config.agents,
        alpha=config.alpha,
        seed=config.seed,
        # What the clean Dirichlet split guarantees: Flower's minimum, and one full batch.
        min_samples=min(max(10, config.batch_size), len(dataset.train_labels) // config.agents),
        classes_per_agent=config.classes_per_agent,
        shards_per_agent=config.shards_per_agent,
    )
    steps = batches.steps_per_epoch(split, config.batch_size)
    schedule = schedules.make(
        config.schedule, config.lr, steps * config.epochs, steps * config.warmup_epochs
    )
    return Run(
        config,
        directory,
        dataset,
        split,
        network,
        algorithm,
        model,
        objective,
        schedule,
        augment.make(config.augment),
    )


def execute(run: Run) -> dict[str, Any]:
    """Trains, writes the run directory and returns the summary.

    Raises:
      loop.Diverged: A loss is not finite; all metrics so far are on disk.
      ValueError: The work directory cannot be used.
    """
    config, topology = run.config, run.network.topology
    run.directory.create(dataclasses.asdict(config))
    counts = partition.class_counts(
        run.partition, run.dataset.train_labels, run.dataset.num_classes
    )
    plots.class_bubbles(
        counts,
        run.directory.figures / "partition.png",
        f"{config.dataset}, {config.partition} split, alpha {config.alpha:g}",
        run.dataset.class_names,
    )

    state = training.init_state(
        run.model,
        run.algorithm,
        run.network,
        run.dataset.image_shape,
        jax.random.key(config.seed),
    )
    parameters = sum(x[0].size for x in jax.tree.leaves(state.params))
    step = training.make_step(run.model, run.algorithm, run.network, run.objective, run.schedule)
    feed = InMemory(run.dataset, run.partition, config.batch_size, config.seed)
    evaluator = Evaluator(run.model, run.dataset)

    def evaluate(state: training.TrainState):
        return evaluator(run.algorithm.models(state.params, state.algorithm), state.model_state)

    rows: list[loop.Row] = []
    with progress_bar(run) as bar:

        def on_epoch(row: loop.Row) -> None:
            rows.append(row)
            run.directory.log(row)
            shown = {"loss": f"{row['cross_entropy']:.3f}"}
            if "local_accuracy_mean" in row:
                shown["local"] = f"{100 * row['local_accuracy_mean']:.1f}%"
                shown["consensus"] = f"{100 * row['consensus_accuracy']:.1f}%"
            bar.set_postfix(shown)

        state, timing = loop.fit(
            state,
            loop.make_data_step(step, feed, run.dataset, run.augmentation),
            feed,
            epochs=config.epochs,
            evaluate=evaluate,
            eval_every=config.eval_every,
            on_epoch=on_epoch,
            on_step=lambda step: bar.update(),
        )

    last = rows[-1]
    summary = {
        "label": config.label,
        "dataset": config.dataset,
        "algorithm": config.algorithm,
        "lambda_m": config.lambda_m,
        "lambda_d": config.lambda_d,
        "topology": topology.name,
        "agents": config.agents,
        "alpha": config.alpha,
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": timing.steps,
        "model": config.model,
        "parameters": parameters,
        **{k: v for k, v in last.items() if k not in ("epoch", "step", "seconds_training")},
        **dataclasses.asdict(run.objective),
        "spectral_gap": topology.spectral_gap,
        "smallest_eigenvalue": topology.smallest_eigenvalue,
        "label_divergence": partition.label_divergence(counts),
        "samples_per_agent_min": int(counts.sum(axis=1).min()),
        "samples_per_agent_max": int(counts.sum(axis=1).max()),
        "seconds_compile": timing.seconds_compile,
        "seconds_training": timing.seconds_training,
        "seconds_evaluation": timing.seconds_evaluation,
        "steps_per_second": timing.steps / max(timing.seconds_training, 1e-9),
        "device": device_name(),
    }
    plots.accuracy_curves({config.label: rows}, run.directory.figures / "accuracy.png")
    run.directory.write_json("summary.json", summary)
    return summary


def new_workdir(config: Config) -> str:
    """A directory name that no run has yet: runs/<dataset>-<date>-<time>."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = Path("runs") / f"{config.dataset}-{stamp}"
    others = (Path(f"{name}-{k}") for k in range(2, 1000))
    return str(name if not name.exists() else next(p for p in others if not p.exists()))


def progress_bar(run: Run) -> tqdm:
    """A bar over the steps of a run, on stderr."""
    steps = batches.steps_per_epoch(run.partition, run.config.batch_size) * run.config.epochs
    return tqdm(total=steps, desc=run.config.label, unit="step", disable=not run.config.progress)


def device_name() -> str:
    """What the run ran on, as `cpu x 1` or `NVIDIA H100 x 8`."""
    devices = jax.local_devices()
    return f"{devices[0].device_kind} x {len(devices)}"


def results_table(summaries: list[dict[str, Any]]) -> str:
    """A table of summaries for a terminal; accuracies in percent, traffic in megabytes an agent."""
    header = ("method", "local mean", "min", "max", "consensus", "disagreement", "MB sent")
    rows = [
        (
            s["label"],
            *(
                f"{100 * s[k]:.2f}%"
                for k in (
                    "local_accuracy_mean",
                    "local_accuracy_min",
                    "local_accuracy_max",
                    "consensus_accuracy",
                )
            ),
            f"{s['consensus_distance']:.4f}",
            f"{s['bytes_sent_per_agent'] / 1e6:.2f}",
        )
        for s in summaries
    ]
    widths = np.max([[len(cell) for cell in row] for row in (header, *rows)], axis=0)

    def line(cells: tuple[str, ...]) -> str:
        first, *others = cells
        return "  ".join(
            [first.ljust(widths[0])] + [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        )

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])
