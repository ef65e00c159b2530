"""From a Config to its data: the dataset, who holds what of it, and how batches are fed."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccl_jax import randomness
from ccl_jax.data import (
    batches,
    datasets,
    feature_shift,
    folders,
    heterogeneity,
    images,
    partition,
)
from ccl_jax.data.base import Dataset, StreamedDataset, hold_out, renumber, take
from ccl_jax.data.feeds import Feed, InMemory, OnHost
from ccl_jax.data.streaming import Streaming
from ccl_jax.names import check_distinct, look_up
from ccl_jax.runs.config import Config


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
      dataset: The set, with the labels that agents train on.
      partition: Who holds which training samples.
      shifts: What agents' images go through.
      degrees: How much, `feature_shift.degrees`.
      report: What is known about the split; see `describe`.
      notes: What a user should know of the files before training, one line each.
    """

    dataset: Dataset | StreamedDataset
    partition: partition.Partition
    shifts: tuple[feature_shift.Shift, ...]
    degrees: tuple[np.ndarray, ...]
    report: dict[str, Any]
    notes: tuple[str, ...] = ()


def load(config: Config, dataset: Dataset | StreamedDataset | None = None) -> Data:
    """Loads and splits the data of a run.

    Args:
      config: The settings.
      dataset: The dataset, if it is loaded already.

    Raises:
      ValueError: Something in the settings or the files does not fit.
    """
    check(config)
    shifts, rates = _shifts(config), heterogeneity.noise_rates(config.label_noise, config.agents)
    sources = _sources(config)
    dataset = dataset or _read(config, sources[0])
    sets = [dataset, *(_read(config, source, dataset.image_shape[0]) for source in sources[1:])]
    if config.renumber_labels:
        sets = [renumber(each) for each in sets]
    notes = [note for pair in zip(sources, sets, strict=True) for note in _notes(*pair)]
    if config.train_samples is not None:
        sets = [take(each, config.train_samples, config.seed) for each in sets]
    if config.validation > 0:
        sets = [hold_out(each, config.validation, config.seed) for each in sets]
    dataset = sets[0]
    # Streamed sets have none, and those of several sets are not told apart.
    users = None if config.domain else getattr(dataset, "users", None)
    split = lambda labels, agents, domain=0: _split(config, labels, agents, users, domain)
    if config.domain:
        dataset, domains = heterogeneity.join(sets)
        held = heterogeneity.by_domain(dataset.train_labels, domains, config.agents, split)
    else:
        domains = np.zeros(len(dataset.train_labels), int)
        held = split(dataset.train_labels, config.agents)
    if config.quantity_alpha is not None:
        held = heterogeneity.quantity_skew(
            held, config.quantity_alpha, config.seed, config.batch_size
        )
    batches.steps_per_epoch(held, config.batch_size)  # Checks the batch size.
    true_labels = dataset.train_labels
    counts = partition.class_counts(held, true_labels, dataset.num_classes).sum(axis=0)
    if lost := _named(dataset, (counts == 0) & np.isin(range(len(counts)), true_labels)):
        notes += [f"no agent holds an image of {lost}: take more agents or a less uneven split."]
    if rates.any():
        noisy = heterogeneity.label_noise(
            true_labels, held, rates, dataset.num_classes, config.seed
        )
        dataset = dataset.with_train_labels(noisy)
    degrees = feature_shift.degrees(shifts, config.agents, dataset.image_shape[2], config.seed)
    wrong = dataset.train_labels != true_labels
    report = describe(held, dataset, domains, wrong) | {"domains": list(map(str, sources))}
    report |= {
        f"feature_shift {shift.kind}:{shift.strength:g}": degree
        for shift, degree in zip(shifts, degrees, strict=True)
    }
    return Data(dataset, held, shifts, degrees, report, tuple(notes))


def check(config: Config) -> None:
    """Checks what the settings of data say by themselves, before any is read.

    Raises:
      ValueError: Something does not fit.
    """
    shifts = [f"{shift.kind}:{shift.strength:g}" for shift in _shifts(config)]
    check_distinct("feature_shift", shifts)
    heterogeneity.noise_rates(config.label_noise, config.agents)
    look_up("partition", config.partition, dict.fromkeys(partition.NAMES))
    for text in config.domain:
        look_up("dataset", text.partition(":")[0], dict.fromkeys(datasets.NAMES))


def first_set(config: Config) -> Dataset | StreamedDataset:
    """The dataset that `load` can be given, for several runs; reads it."""
    return _read(config, _sources(config)[0])


def make_feed(data: Data, config: Config, here: np.ndarray | None = None) -> Feed:
    """What the training loop is fed from.

    Args:
      data: The data of the run.
      config: Its settings.
      here: The agents of this process, with several; `parallel.Plan.agents_here`.
    """
    if isinstance(data.dataset, StreamedDataset):
        feed = Streaming(
            data.dataset,
            data.partition,
            config.batch_size,
            config.seed,
            workers=config.workers,
            max_unreadable=config.max_unreadable,
            here=slice(None) if here is None else here,
        )
    elif here is not None:
        feed = OnHost(data.dataset, data.partition, config.batch_size, config.seed, here)
    else:
        feed = InMemory(data.dataset, data.partition, config.batch_size, config.seed)
    if not data.shifts:
        return feed
    return feature_shift.Shifted(feed, data.shifts, data.degrees, data.dataset.scale)


def test_images(dataset: Dataset | StreamedDataset, chosen: np.ndarray) -> np.ndarray:
    """`[n, H, W, C]` uint8, the test images with these numbers.

    Raises:
      OSError: A file cannot be read.
      ValueError: An image cannot be decoded.
    """
    if isinstance(dataset, StreamedDataset):
        read = lambda k: images.decode(dataset.test.read(int(k)), dataset.stored_side)
        return np.stack(list(map(read, chosen)))
    return dataset.test_images[chosen]


def throughput(data: Data, feed: Feed, row: dict[str, Any]) -> dict[str, Any]:
    """What a row of metrics says of the feed: images a second and seconds a step, so far.

    Args:
      data: The data of the run.
      feed: Made by `make_feed`.
      row: With `step` and `seconds_training`.

    Returns:
      More of the row; `unreadable_images` for a streamed set.
    """
    seconds = max(row["seconds_training"], 1e-9)
    seen = float(data.partition.sizes.sum()) * row["step"] / feed.steps
    known = {
        "images_per_second": seen / seconds,
        "seconds_per_step": seconds / max(1, row["step"]),
    }
    if not isinstance(data.dataset, StreamedDataset):
        return known
    return known | {"unreadable_images": len(feed.unreadable)}


def describe(
    held: partition.Partition,
    dataset: Dataset | StreamedDataset,
    domains: np.ndarray,
    wrong: np.ndarray,
) -> dict[str, Any]:
    """What is known about a split, for partition.json.

    Args:
      held: Who holds which samples.
      dataset: With the labels that agents train on.
      domains: `[n]` the domain of each training sample.
      wrong: `[n]` bool, whether its label is wrong by label noise.

    Returns:
      The class-by-agent table and per agent sizes, domain and part of wrong labels; over all agents
      the mean pairwise label divergence and a summary of the sizes.
    """
    counts = partition.class_counts(held, dataset.train_labels, dataset.num_classes)
    return {
        "partition": held.name,
        "samples": partition.size_summary(held)._asdict(),
        "label_divergence": partition.label_divergence(counts),
        "classes": dataset.class_names,
        "samples_by_agent": held.sizes,
        "domain_by_agent": [int(domains[own[0]]) for own in held.indices],
        "wrong_labels_by_agent": [float(wrong[own].mean()) for own in held.indices],
        "samples_by_agent_and_class": counts,
    }


def _shifts(config: Config) -> tuple[feature_shift.Shift, ...]:
    return tuple(feature_shift.parse(text) for text in config.feature_shift)


def _split(
    config: Config, labels: np.ndarray, agents: int, users: np.ndarray | None, domain: int
) -> partition.Partition:
    return partition.make(
        config.partition,
        labels,
        agents,
        alpha=config.alpha,
        seed=randomness.seed_of(config.seed, domain),
        # What the clean Dirichlet split guarantees: Flower's minimum, and one full batch.
        min_samples=min(max(10, config.batch_size), max(1, len(labels) // agents)),
        classes_per_agent=config.classes_per_agent,
        shards_per_agent=config.shards_per_agent,
        users=users,
    )


class _Source(NamedTuple):
    """One of the sets of a run: a dataset's name, and where its files lie."""

    name: str
    place: str | None

    def __str__(self) -> str:
        return ":".join(filter(None, self))

    @property
    def resolved(self) -> str:
        """Equal for equal sets, however the place is written."""
        return self.name if self.place is None else f"{self.name}:{Path(self.place).resolve()}"


def _sources(config: Config) -> list[_Source]:
    """The first set and those beside it; without a folder of images of its own, those alone."""
    sources = [source for text in config.domain for source in _domains(text)]
    if not sources or config.dataset != "folder" or config.data_dir is not None:
        sources = [_Source(config.dataset, config.data_dir), *sources]
    check_distinct("domain", [source.resolved for source in sources])
    return sources


def _domains(text: str) -> list[_Source]:
    """NAME or NAME:PATH, and of a folder of domains each one."""
    name, _, path = text.partition(":")
    path = os.path.expanduser(path)
    inside = folders.domains(Path(path)) if name == "folder" and path else ()
    return [_Source(name, str(place)) for place in inside] or [_Source(name, path or None)]


def _read(config: Config, source: _Source, beside: int | None = None) -> Dataset | StreamedDataset:
    """Loads one of the sets: the first, or one `beside` it, whose image files then have its size."""
    size = config.image_size
    if beside is not None:
        size = beside if source.name in datasets.SIZED else None
    dataset = datasets.load(
        source.name,
        source.place,
        image_size=size,
        verify_checksums=config.verify_checksums and beside is None,
    )
    if config.domain and isinstance(dataset, StreamedDataset):
        raise ValueError(f"{source} is streamed; only sets that fit in memory can be domains.")
    return dataset


def _notes(source: _Source, dataset: Dataset | StreamedDataset) -> list[str]:
    """What a user should know of the files of a set."""
    notes = [note] if (note := datasets.size_note(dataset)) else []
    notes += dataset.notes
    counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
    if empty := _named(dataset, counts == 0):
        notes += [
            f"{source}: there is no training image of {empty}; --renumber_labels leaves out classes "
            "that have no test image either."
        ]
    own = source.name in ("folder", "folder-full") and source.place is not None
    if own and folders.is_undivided(Path(source.place)):
        notes += [
            f"{source.place} is not divided into train/ and val/: {folders.TEST_PART:.0%} of each "
            f"class, drawn with seed {folders.TEST_SEED} in every run, are for testing."
        ]
    return notes


def _named(dataset: Dataset | StreamedDataset, chosen: np.ndarray) -> str:
    """Which classes are chosen, `[classes]` bool, with their number; "" for none."""
    names = [name for name, yes in zip(dataset.class_names, chosen, strict=True) if yes]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} of {len(chosen)} classes ({shown})" if names else ""
