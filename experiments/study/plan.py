"""What a study comes to: its cells, the runs that it needs, and by what a run is known."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

from ccl_jax.runs.config import MAY_DIFFER, Config
from ccl_jax.runs.directory import plain

METRICS = ("consensus_accuracy", "local_accuracy_mean", "local_accuracy_min")

Settings = dict[str, Any]
Cell = tuple[str, ...]
"""A label for each axis."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run that a study needs.

    Attributes:
      method: The method's label.
      cell: A label for each axis.
      config: The settings.
    """

    method: str
    cell: Cell
    config: Config

    @property
    def identity(self) -> str:
        """What the run is filed under: equal for equal settings, whatever the study."""
        return identity(self.config)

    def __str__(self) -> str:
        return ", ".join([self.method, *self.cell, f"seed {self.config.seed}"])


@dataclasses.dataclass(frozen=True)
class Tune:
    """How learning rates are chosen.

    Attributes:
      lr: The grid.
      validation: Part of the training data that is held out.
      seeds: Seeds of the runs, their own.
      each: Axes with a learning rate for each label.
    """

    lr: tuple[float, ...]
    validation: float
    seeds: tuple[int, ...]
    each: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study on one dataset; see this module's text.

    Attributes:
      name: Of the file.
      data: Of its data table.
      defaults: The settings that all runs start from.
      reference: The method that others are compared with.
      against: Method -> the one that it is compared with instead.
      axes: Axis -> label -> settings.
      methods: Label -> settings.
      figures: The tables `figures`.
      tune: None where learning rates are given.
      title: One line.
      claim: What the paper says.
      question: What is asked.
      seeds: Seeds.
      metrics: The first decides.
      target: Accuracy.
      own_seeds: Those of the file; `seeds` may be others.
      epochs: Of all runs, where they are not the study's own.
    """

    name: str
    data: str
    defaults: Config
    reference: str
    against: dict[str, str]
    axes: dict[str, dict[str, Settings]]
    methods: dict[str, Settings]
    figures: tuple[dict[str, Any], ...]
    tune: Tune | None
    title: str
    claim: str
    question: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    target: float | None
    own_seeds: tuple[int, ...] = ()
    epochs: int | None = None

    @property
    def label(self) -> str:
        """What it runs on, and for how long if that is not its own length; names its results."""
        return self.data if self.epochs is None else f"{self.data}-{self.epochs}-epochs"

    @property
    def options(self) -> str:
        """The flags that ask for this study on a command line."""
        data = "" if self.data == "digits" else f" --data={self.data}"
        epochs = "" if self.epochs is None else f" --epochs={self.epochs}"
        seeds = "" if self.seeds == self.own_seeds else f" --seeds={','.join(map(str, self.seeds))}"
        return f"--study={self.name}{data}{epochs}{seeds}"

    def of_length(self, epochs: int) -> "Study":
        """The study with so many epochs in every run, evaluated as many times, or every epoch."""
        default = self.defaults
        every = max(1, round(default.eval_every * epochs / default.epochs))
        return dataclasses.replace(
            self, defaults=default.replace(epochs=epochs, eval_every=every), epochs=epochs
        )

    @property
    def cells(self) -> list[Cell]:
        """All cells; one without labels where there are no axes."""
        return list(itertools.product(*self.axes.values()))

    def reference_of(self, method: str) -> str | None:
        """The method that this one is compared with; None for the reference itself."""
        reference = self.against.get(method, self.reference)
        return None if reference == method else reference

    def config(self, method: str, cell: Cell, **changes: Any) -> Config:
        """The settings of a method in a cell."""
        parts = [labels[label] for labels, label in zip(self.axes.values(), cell, strict=True)]
        changed = {
            k: v for part in [*parts, self.methods[method], changes] for k, v in part.items()
        }
        return self.defaults.replace(**changed)

    def tuning_cell(self, cell: Cell) -> Cell:
        """The cell whose learning rate a cell takes: first labels, but for the axes `each`."""
        return tuple(
            label if axis in self.tune.each else next(iter(labels))
            for (axis, labels), label in zip(self.axes.items(), cell, strict=True)
        )

    def tuning_jobs(self) -> list[Job]:
        """The runs by which learning rates are chosen."""
        if self.tune is None:
            return []
        cells = list(dict.fromkeys(map(self.tuning_cell, self.cells)))
        return [
            Job(
                method,
                cell,
                self.config(method, cell, lr=lr, seed=seed, validation=self.tune.validation),
            )
            for seed in self.tune.seeds
            for cell in cells
            for method in self.methods
            for lr in self.tune.lr
        ]

    def jobs(self, rates: Mapping[tuple[str, Cell], float] | None = None) -> list[Job]:
        """The runs of the study, seed by seed, so that a part of them is a smaller study.

        Args:
          rates: Learning rate of each method and tuning cell, where they are tuned.
        """
        changes = lambda method, cell: (
            {} if rates is None else {"lr": rates[method, self.tuning_cell(cell)]}
        )
        return [
            Job(method, cell, self.config(method, cell, seed=seed, **changes(method, cell)))
            for seed in self.seeds
            for cell in self.cells
            for method in self.methods
        ]


def identity(config: Config) -> str:
    """Names a run by what it computes: 12 hexadecimal digits of a hash of its settings."""
    text = json.dumps(settings_of(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_of(config: Config) -> Settings:
    """The settings that are not those of a plain Config and can change a result, as plain values.

    A setting that is new to the project, at its default, therefore changes no identity.
    """
    return {
        field.name: plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in MAY_DIFFER and getattr(config, field.name) != field.default
    }
