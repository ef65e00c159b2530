"""What a study comes to: its cells, the runs that it needs, and by what a run is known."""

import dataclasses
import hashlib
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ccl_jax import losses
from ccl_jax.runs.config import AUTO, MAY_DIFFER, Config
from ccl_jax.runs.directory import plain

METRICS = ("consensus_accuracy", "local_accuracy_mean", "local_accuracy_min")

CURVES = (
    "epoch",
    "step",
    "local_accuracy_mean",
    "local_accuracy_min",
    "local_accuracy_max",
    "local_accuracy_std",
    "consensus_accuracy",
    "consensus_distance",
    "cross_entropy",
    "bytes_sent_per_agent_max",
)
"""What is recorded of every evaluation."""
SUMMARY = (
    *CURVES[2:],
    "train_accuracy",
    "bytes_sent_per_agent",
    "steps",
    "parameters",
    "label_divergence",
    "spectral_gap",
    "seconds_compile",
    "seconds_training",
    "seconds_evaluation",
)
"""What is recorded at the end."""

Settings = dict[str, Any]
Cell = tuple[str, ...]
"""A label for each axis."""
Choices = Mapping[tuple[str, Cell], Settings]
"""The settings that tuning has chosen for each method and tuning cell; its learning rate at least."""

# A run is known by what differs from a plain Config. Where a default has changed since runs were made,
# what it was.
_DEFAULTS_OF_IDENTITY = vars(Config()) | {"eval_every": 1, "model": "lenet5"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run that a study needs.

    Attributes:
      method: The method's label.
      cell: A label for each axis.
      config: The settings.
      candidate: In tuning, which settings it tries.
    """

    method: str
    cell: Cell
    config: Config
    candidate: str = ""

    @property
    def identity(self) -> str:
        """What the run is filed under: equal for equal settings, whatever the study."""
        return identity(self.config)

    def __str__(self) -> str:
        tried = [self.candidate] if self.candidate else []
        return ", ".join([self.method, *self.cell, *tried, f"seed {self.config.seed}"])


@dataclasses.dataclass(frozen=True)
class Tune:
    """How learning rates, and other options of methods, are chosen.

    Attributes:
      lr: The grid.
      validation: Part of the training data that is held out.
      seeds: Seeds of the runs, their own.
      each: Axes with a choice for each label.
      options: Method -> label -> settings that are tried with every learning rate.
      same_lr: Method -> the one whose learning rate it takes, in place of tuning: a control.
      epochs: Of the runs; None for the study's own.
      eval_every: Of the runs; None for the study's own.
      keep: Part of a method's candidates that goes on from one seed to the next: the best ones, and
        never fewer than two.
    """

    lr: tuple[float, ...]
    validation: float
    seeds: tuple[int, ...]
    each: tuple[str, ...]
    options: dict[str, dict[str, Settings]] = dataclasses.field(default_factory=dict)
    same_lr: dict[str, str] = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    eval_every: int | None = None
    keep: float = 1.0


@dataclasses.dataclass(frozen=True)
class Study:
    """A study on one dataset; see the text of `catalogue`.

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
      targets: Accuracies.
      own_seeds: Those of the file; `seeds` may be others.
      epochs: Of all runs, where they are not the study's own.
      file: The path of one's own file; "" for a study of the project.
      extensions: Files that have to be run first.
      only: What was asked of `part`.
      terms: For each of them that is of cells, labels of which a cell must have one.
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
    targets: tuple[float, ...]
    own_seeds: tuple[int, ...] = ()
    epochs: int | None = None
    file: str = ""
    extensions: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    terms: tuple[frozenset[str], ...] = ()

    @property
    def label(self) -> str:
        """What it runs on, and for how long if that is not its own length; names its results."""
        return self.data if self.epochs is None else f"{self.data}-{self.epochs}-epochs"

    @property
    def options(self) -> str:
        """The flags that ask for this study on a command line, with the users' own files."""
        study = shlex.quote(self.file or self.name)
        files = "".join(f" --extension={shlex.quote(file)}" for file in self.extensions)
        data = "" if self.data == "digits" else f" --data={self.data}"
        epochs = "" if self.epochs is None else f" --epochs={self.epochs}"
        seeds = "" if self.seeds == self.own_seeds else f" --seeds={','.join(map(str, self.seeds))}"
        # In double quotes, as people write them, where a shell leaves alone what is in these.
        quote = lambda term: shlex.quote(term) if set(term) & set('"$`\\!') else f'"{term}"'
        only = "".join(f" --only={quote(term)}" for term in self.only)
        return f"--study={study}{data}{epochs}{seeds}{only}{files}"

    def of_length(self, epochs: int) -> "Study":
        """The study with so many epochs in every run, evaluated as many times, or every epoch.

        Raises:
          ValueError: Some runs have a number of epochs of their own.
        """
        options = self.tune.options if self.tune else {}
        for labels in (*self.axes.values(), self.methods, *options.values()):
            if own := [label for label, settings in labels.items() if "epochs" in settings]:
                raise ValueError(
                    f"--epochs={epochs} is for all runs, and {own[0]} of {self.name} has epochs of its "
                    "own; leave it out, or change the study's file"
                )
        default = self.defaults
        every = default.eval_every
        if every != AUTO:
            every = max(1, round(every * epochs / default.epochs))
        tune = self.tune
        if tune is not None and tune.epochs is not None:
            tune = dataclasses.replace(tune, epochs=min(tune.epochs, epochs))
        return dataclasses.replace(
            self,
            defaults=default.replace(epochs=epochs, eval_every=every),
            epochs=epochs,
            tune=tune,
        )

    def part(self, only: Sequence[str]) -> "Study":
        """The study in some of its cells, or with some of its methods.

        Args:
          only: Texts; each is a label of an axis or method, or part of one. Cells have something of
            each text that is in labels of axes; methods of any text that is in theirs. Those with which
            they are compared, or whose learning rate they take, stay.

        Raises:
          ValueError: A text is in no label.
        """
        asked, terms = set(), []
        for text in only:
            matching = lambda labels, t=text: (
                {x for x in labels if x == t} or {x for x in labels if t.lower() in x.lower()}
            )
            of_cells = matching([label for labels in self.axes.values() for label in labels])
            of_methods = matching(self.methods)
            if of_cells:
                terms.append(frozenset(of_cells))
            elif of_methods:
                asked |= of_methods
            else:
                labels = [*self.methods, *itertools.chain.from_iterable(self.axes.values())]
                raise ValueError(
                    f"--only={text!r} is in no label of {self.name} on {self.data}; "
                    f"they are: {'; '.join(labels)}"
                )
        left = self._needed(asked) if asked else set(self.methods)
        methods = {m: s for m, s in self.methods.items() if m in left}
        part = dataclasses.replace(self, methods=methods, only=tuple(only), terms=tuple(terms))
        if not part.cells:
            raise ValueError(f"no cell of {self.name} has all of: {'; '.join(only)}")
        return part

    def _needed(self, methods: set[str]) -> set[str]:
        """Methods, and those that they are compared with or take their learning rate from."""
        same = self.tune.same_lr if self.tune else {}
        more = {self.reference_of(m) or m for m in methods} | {same.get(m, m) for m in methods}
        return methods if more <= methods else self._needed(methods | more)

    @property
    def cells(self) -> list[Cell]:
        """All cells; one without labels where there are no axes."""
        every = itertools.product(*self.axes.values())
        return [cell for cell in every if all(term & set(cell) for term in self.terms)]

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

    def candidates(self, method: str) -> dict[str, Settings]:
        """What tuning tries for a method: label -> settings; nothing for a control."""
        if method in self.tune.same_lr:
            return {}
        options = self.tune.options.get(method, {"": {}})
        return {
            ", ".join(filter(None, [label, f"lr {lr:g}"])): settings | {"lr": lr}
            for label, settings in options.items()
            for lr in self.tune.lr
        }

    def tuning_job(self, method: str, cell: Cell, candidate: str, seed: int) -> Job:
        """The run that tries a candidate with a seed."""
        tune = self.tune
        own = {"epochs": tune.epochs, "eval_every": tune.eval_every}
        length = {name: value for name, value in own.items() if value is not None}
        tried = self.candidates(method)[candidate]
        changes = tried | length | {"seed": seed, "validation": tune.validation}
        return Job(method, cell, self.config(method, cell, **changes), candidate)

    def tuning_pairs(self) -> list[tuple[str, Cell]]:
        """The methods and cells for which tuning chooses."""
        if self.tune is None:
            return []
        cells = dict.fromkeys(map(self.tuning_cell, self.cells))
        return [(m, cell) for cell in cells for m in self.methods if m not in self.tune.same_lr]

    def tuning_jobs(self) -> list[Job]:
        """All runs by which learning rates may be chosen; `tuning.race` says which are called for."""
        return [
            self.tuning_job(method, cell, candidate, seed)
            for seed in (self.tune.seeds if self.tune else ())
            for method, cell in self.tuning_pairs()
            for candidate in self.candidates(method)
        ]

    def jobs(self, choices: Choices | None = None) -> list[Job]:
        """The runs of the study, seed by seed, so that a part of them is a smaller study.

        Args:
          choices: What tuning has chosen; methods and cells for which it has not chosen are left out.
            None for the settings as they are.
        """
        chosen = lambda method, cell: (
            {} if choices is None else choices.get((method, self.tuning_cell(cell)))
        )
        return [
            Job(method, cell, self.config(method, cell, seed=seed, **changes))
            for seed in self.seeds
            for cell in self.cells
            for method in self.methods
            if (changes := chosen(method, cell)) is not None
        ]

    @property
    def total(self) -> int:
        """How many runs the study has, without those of tuning."""
        return len(self.seeds) * len(self.cells) * len(self.methods)


def losses_recorded() -> list[str]:
    """What the means of feature losses are called where they are recorded."""
    return [f"{name}_loss" for name in losses.REGISTRY]


def default_of(name: str) -> Any:
    """What a setting is where a record does not name it; None if there is no such setting."""
    return _DEFAULTS_OF_IDENTITY.get(name)


def identity(config: Config) -> str:
    """Names a run by what it computes: 12 hexadecimal digits of a hash of its settings."""
    text = json.dumps(settings_of(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_of(config: Config) -> Settings:
    """The settings that are not those of `default_of` and can change a result, as plain values.

    A setting that is new to the project, at its default, therefore changes no identity; nor does a
    default that has changed since.
    """
    return {
        field.name: plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in MAY_DIFFER and getattr(config, field.name) != default_of(field.name)
    }
