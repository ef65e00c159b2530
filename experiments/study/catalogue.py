"""A study is data: plans/NAME.toml lists methods x settings x seeds, and how to plot them.

    title, claim, question   what is asked, and what the paper says; texts
    seeds                    [0, 1, ...]
    metrics                  what is recorded at the end; the first one decides; default: accuracies
    reference                the method that the others are compared with; default: the first
    [against]                METHOD = "METHOD": what this one is compared with instead
    target                   accuracy, or a list of them, for "rounds to target"; default: none
    [settings]               of all runs: names as the flags of the mains; eval_every is 1 unless given
    [axes.AXIS]              LABEL = {settings}: the cells of the study are the product of all axes
    [methods]                LABEL = {settings}: each is run in every cell, with every seed
    [[figures]]              kind = dots, lines, heatmap or scatter, with title, x, y, metric, log or
                             difference; see `experiments.report.figures`. Curves are always drawn
    [tune]                   lr = [...], validation = 0.2, seeds = [...], each = [axes]: every method
                             takes its learning rate from the grid, by the first metric on a held-out
                             part of the training data; of its own in every label of the axes `each`,
                             elsewhere that of the first label. epochs = 20 makes these runs so long,
                             eval_every = 5 evaluates them so often. keep = 0.5 lets the best half of
                             a method's candidates go on from one seed to the next, at least two
    [tune.options]           METHOD = {LABEL = {settings}}: tried with each learning rate
    [tune.same_lr]           METHOD = "METHOD": a control, which takes the learning rate of another
    [data.NAME]              the same on another dataset: `settings` of its own, and any of the above
                             in place of what is said for all. `main` has the defaults; default: NAME

A method is stronger than the cell, and the cell stronger than [data.NAME] and [settings]. "default"
stands for the value None, a method's own.
"""

import dataclasses
import importlib
import itertools
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccl_jax.names import check_distinct, look_up
from ccl_jax.runs import runner
from ccl_jax.runs.config import Config
from experiments import extensions
from experiments.study.plan import (
    CURVES,
    METRICS,
    SUMMARY,
    Cell,
    Choices,
    Job,
    Settings,
    Study,
    Tune,
    default_of,
    identity,
    losses_recorded,
    settings_of,
)

__all__ = [
    "CURVES",
    "METRICS",
    "SUMMARY",
    "Cell",
    "Choices",
    "Job",
    "Settings",
    "Study",
    "Tune",
    "check",
    "default_of",
    "identity",
    "load",
    "losses_recorded",
    "names",
    "settings_of",
]

FOLDER = Path(__file__).with_name("plans")
MAINS = ("digits", "fmnist", "cifar10", "cifar100", "imagenette", "imagenet")

# A study's seeds are a list of their own; files and what is shown are the study's business.
_RESERVED = frozenset(
    [
        "seed",
        "seeds",
        "pack_seeds",
        "dataset",
        "workdir",
        "resume",
        "progress",
        "figures",
        "compile_cache",
        "on_divergence",
    ]
)
_KEYS: dict[str, Any] = {
    **dict.fromkeys(["title", "claim", "question", "reference"], str),
    **dict.fromkeys(["seeds", "metrics", "figures"], list),
    **dict.fromkeys(["settings", "axes", "methods", "against", "tune", "data"], dict),
    "target": (int, float, list),
}
_DATA_KEYS = {"main": str} | {key: kind for key, kind in _KEYS.items() if key != "data"}
_TUNE_KEYS = {
    **dict.fromkeys(["lr", "seeds", "each"], list),
    **dict.fromkeys(["options", "same_lr"], dict),
    **{"validation": float, "keep": float, "epochs": int, "eval_every": int},
}
_FIGURE_KEYS = {
    **dict.fromkeys(["kind", "title", "x", "y", "metric"], str),
    **dict.fromkeys(["log", "difference"], bool),
}
# What each kind of figure needs, and what it may have.
_FIGURE_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dots": ((), ("metric",)),
    "lines": (("x",), ("metric", "log")),
    "heatmap": (("x", "y"), ("metric", "difference")),
    "scatter": (("x", "y"), ()),
}


def names(folder: Path = FOLDER) -> list[str]:
    """The names of all studies."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def datasets(name: str, folder: Path = FOLDER) -> list[str]:
    """The names of a study's data tables.

    Raises:
      ValueError: As `load`.
    """
    return list(_read(name, folder)[1].get("data", {}))


def load(
    name: str,
    data: str = "digits",
    seeds: Sequence[int] = (),
    folder: Path = FOLDER,
    **changes: Any,
) -> Study:
    """Reads a study.

    Args:
      name: Its name, or the path of a file of one's own.
      data: Which of its data tables.
      seeds: In place of its own.
      folder: Where studies lie.
      **changes: Settings of all runs, stronger than the study's own.

    Raises:
      ValueError: There is no such study, or something in it is wrong; one line says what.
    """
    path, table = _read(name, folder)
    try:
        study = _study(path.stem, data, table, tuple(seeds), changes)
    except ValueError as error:
        raise ValueError(f"study {path.stem}: {error}") from error
    return dataclasses.replace(study, file=name if Path(name).suffix == ".toml" else "")


def _read(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A study's file and what stands in it."""
    path = Path(name)
    if path.suffix != ".toml":
        known = {each: folder / f"{each}.toml" for each in names(folder)}
        path = look_up("study", name, known)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"study {name}: {error}") from error
    return path, table


def _study(
    name: str, data: str, table: dict[str, Any], seeds: tuple[int, ...], changes: Settings
) -> Study:
    _only(table, _KEYS, "the study")
    if not table.get("data"):
        raise ValueError("has no [data.NAME]; add one, as [data.digits]")
    own = look_up("dataset of this study", data, table["data"])
    _only({"data": own}, {"data": dict}, f"[data.{data}]")
    _only(own, _DATA_KEYS, f"data.{data}")
    whole = table | own
    if not whole.get("methods"):
        raise ValueError("has no [methods]; add at least one")
    main = own.get("main", data)
    look_up("main", main, dict.fromkeys(MAINS))
    defaults: Config = importlib.import_module(f"experiments.{main}").DEFAULTS
    every = {"eval_every": default_of("eval_every")}  # Whatever the mains' is, now or later.
    base = every | table.get("settings", {}) | own.get("settings", {})
    shown = {"progress": False, "figures": False}
    defaults = defaults.replace(**_settings(base, "settings") | shown | changes)
    for axis, labels in whole.get("axes", {}).items():
        if not isinstance(labels, dict) or not labels:
            raise ValueError(f"axes.{axis} is {labels!r}; it must be a table LABEL = {{settings}}")
    axes = {
        axis: {label: _settings(s, f"axes.{axis}.{label}") for label, s in labels.items()}
        for axis, labels in whole.get("axes", {}).items()
    }
    methods = {label: _settings(s, f"methods.{label}") for label, s in whole["methods"].items()}
    reference = whole.get("reference", next(iter(methods)))
    against = {
        k: v for k, v in whole.get("against", {}).items() if k in methods or "methods" not in own
    }
    for label in (reference, *against, *against.values()):
        look_up("method", _text(label, "against"), methods)
    study = Study(
        name,
        data,
        defaults,
        reference,
        against,
        axes,
        methods,
        tuple(_figure(figure) for figure in whole.get("figures", ())),
        _tune(whole["tune"], axes, methods) if "tune" in whole else None,
        whole.get("title", name),
        whole.get("claim", ""),
        whole.get("question", ""),
        seeds or tuple(whole.get("seeds", ())),
        tuple(whole.get("metrics", METRICS)),
        _targets(whole.get("target", [])),
        tuple(whole.get("seeds", ())),
    )
    _check_seeds("seeds", study.seeds)
    if not study.metrics or not all(isinstance(name, str) for name in study.metrics):
        raise ValueError(f"metrics are {list(study.metrics)}; they must be texts, at least one")
    check_distinct("metrics", study.metrics)
    for name in study.metrics:
        look_up("metric", name, dict.fromkeys(_metrics()))
    for where, labels in (("methods", methods), *((f"axes.{axis}", axes[axis]) for axis in axes)):
        controls = study.tune.same_lr if study.tune and where == "methods" else {}
        _check_different(where, {k: v for k, v in labels.items() if k not in controls})
    if study.tune is not None and study.metrics[0] not in METRICS:
        raise ValueError(f"tune needs {' or '.join(METRICS)} as the first of metrics")
    _any_jobs(study)  # Building their Configs has checked them.
    return study


def check(study: Study) -> None:
    """Checks what can be known of a study's runs before the first one.

    Raises:
      ValueError: A run cannot be made; the message names it.
    """
    for job in _any_jobs(study):
        try:
            runner.check(job.config)
        except ValueError as error:
            said = extensions.blame(error) or error
            raise ValueError(f"study {study.name}: {job}: {said}") from error


def _any_jobs(study: Study) -> list[Job]:
    """What jobs there will be, whatever tuning chooses."""
    return [*study.tuning_jobs(), *study.jobs(_any_choices(study))]


def _any_choices(study: Study) -> Choices | None:
    """Some choice for every method and cell."""
    if study.tune is None:
        return None
    pairs = itertools.product(study.methods, map(study.tuning_cell, study.cells))
    return {pair: {"lr": study.tune.lr[0]} for pair in pairs}


def _targets(given: Any) -> tuple[float, ...]:
    targets = given if isinstance(given, list) else [given]
    if not all(type(target) in (int, float) and 0 < target <= 1 for target in targets):
        raise ValueError(f"target is {given}; it must be an accuracy, as 0.8, or a list of them")
    check_distinct("target", targets)
    return tuple(map(float, targets))


def _settings(table: Any, where: str) -> Settings:
    """Settings as a Config wants them."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}; it must be a table of settings, as {{lr = 0.1}}")
    kinds = typing.get_type_hints(Config)
    allowed = {name: kind for name, kind in kinds.items() if name not in _RESERVED}
    return {
        name: _value(value, look_up("setting", name, allowed), f"{where}.{name}")
        for name, value in table.items()
    }


def _value(value: Any, kind: Any, where: str) -> Any:
    """One setting, of the kind of its field, or one of its kinds."""
    optional = isinstance(kind, types.UnionType)
    if value == "default" and optional:
        return None
    kinds = [k for k in typing.get_args(kind) if k is not type(None)] if optional else [kind]
    kinds = [typing.get_origin(k) or k for k in kinds]
    if float in kinds and type(value) is int:
        return float(value)
    if tuple in kinds and isinstance(value, list):
        return tuple(map(str, value))
    if type(value) not in kinds:
        names = {float: "a number", int: "a whole number", bool: "true or false", tuple: "a list"}
        allowed = " or ".join(names.get(k, "a text") for k in kinds)
        raise ValueError(f"{where} is {value!r}; it must be {allowed}")
    return value


def _tune(table: dict[str, Any], axes: Mapping[str, Any], methods: Mapping[str, Any]) -> Tune:
    _only(table, _TUNE_KEYS, "tune")
    each = tuple(table.get("each", ()))
    for axis in each:
        if _text(axis, "tune.each") not in axes:
            raise ValueError(f"tune.each names {axis!r}; the axes are: {', '.join(axes) or 'none'}")
    grid, seeds = table.get("lr"), table.get("seeds")
    if not grid or not seeds or "validation" not in table:
        raise ValueError("tune needs lr = [...], validation = 0.2 and seeds = [...]")
    _check_seeds("tune.seeds", seeds)
    rates = tuple(_value(lr, float, "tune.lr") for lr in grid)
    for name, values in (("tune.lr", rates), ("tune.each", each)):
        check_distinct(name, values)
    same, options = table.get("same_lr", {}), {}
    for method, other in same.items():
        look_up("method", method, methods)
        look_up("method", _text(other, f"tune.same_lr.{method}"), methods)
        if other in same or method in table.get("options", {}):
            raise ValueError(f"tune.same_lr.{method} = {other!r}: one is tuned, and the other not")
    for method, labels in table.get("options", {}).items():
        look_up("method", method, methods)
        where = f"tune.options.{method}"
        if not isinstance(labels, dict) or not labels:
            raise ValueError(f"{where} is {labels!r}; it must be a table LABEL = {{settings}}")
        options[method] = {k: _settings(v, f"{where}.{k}") for k, v in labels.items()}
        _check_different(where, options[method])
    keep = float(table.get("keep", 1.0))
    if not 0 < keep <= 1:
        raise ValueError(f"tune.keep is {keep:g}; it must be above 0 and at most 1")
    held_out = float(table["validation"])
    if not 0 < held_out < 1:
        raise ValueError(f"tune.validation is {held_out:g}; it must be above 0 and below 1")
    lengths = table.get("epochs"), table.get("eval_every")
    return Tune(rates, held_out, tuple(seeds), each, options, same, *lengths, keep)


def _check_different(where: str, labels: Mapping[str, Settings]) -> None:
    """Two labels with the same settings would be the same runs, counted twice."""
    for one, other in itertools.combinations(labels, 2):
        if labels[one] == labels[other]:
            raise ValueError(f"{where}: {one!r} and {other!r} have the same settings; drop one")


def _check_seeds(name: str, seeds: Sequence[Any]) -> None:
    """One run is one sample: a seed that is there twice would count twice."""
    if not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{name} are {list(seeds)}; they must be whole numbers, at least one")
    check_distinct(name, seeds)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {value!r} must be a text")
    return value


def _metrics() -> list[str]:
    """What may be compared: what is recorded at the end, with means of losses over all epochs."""
    return [*SUMMARY, *losses_recorded(), *(f"{name}_mean" for name in losses_recorded())]


def _figure(table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ValueError(f'figures: {table!r} must be a table, as {{kind = "dots"}}')
    kind = str(table.get("kind", ""))
    needs, may = look_up("kind of figure", kind, _FIGURE_KINDS)
    known = {key: _FIGURE_KEYS[key] for key in ("kind", "title", *needs, *may)}
    _only(table, known, f"figures.{kind}")
    for name in needs:
        if name not in table:
            raise ValueError(f"figures.{kind} needs {name}")
    numbers = dict.fromkeys([*_metrics(), *typing.get_type_hints(Config)])
    for name in {"x", "y", "metric"} & set(table):
        look_up(f"{name} of figures.{kind}", table[name], numbers)
    return dict(table)


def _only(table: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Makes sure that a table has known keys only, with values of their kinds."""
    names = {
        str: "a text",
        list: "a list",
        dict: "a table",
        float: "a number",
        bool: "true or false",
        int: "a whole number",
        (int, float, list): "a number or a list of numbers",
    }
    for key, value in table.items():
        kind = look_up(f"key of {where}", key, known)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{key} of {where} is {value!r}; it must be {names[kind]}")
