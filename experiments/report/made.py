"""How a page was made: commands, settings, versions, hardware, dates and cost."""

from collections.abc import Sequence

from experiments.report.outcome import Outcome
from experiments.report.wall_clock import Link
from experiments.study import records
from experiments.study.command import duration
from experiments.study.records import Record

_VERSIONS = ("python", "jax", "flax", "optax", "numpy", "device", "cpu", "git_commit")

# Until this day "-dirty" was written if any file of the checkout had changed.
_LAST_DAY = "2026-11-23"
_DIRTY = (
    f"in records up to {_LAST_DAY} “-dirty” counts any changed file, result files and texts, too; "
    "whether code differed from the commit is not known"
)


def facts(outcome: Outcome, tuning_runs: Sequence[Record]) -> list[tuple[str, str]]:
    """Command, versions, hardware, date and cost."""
    study_, found = outcome.study, outcome.records
    made = [record["made_with"] for record in (*found, *tuning_runs)]
    dates = sorted(m["date"] for m in made)
    values = {name: {records.value(record, name) for record in found} for name in _SHOWN}
    show = lambda name: f"{name} {', '.join(map(str, sorted(values[name])))}"
    facts = [
        ("runs", f"python -m experiments.study {study_.options}"),
        ("this page", f"python -m experiments.report {study_.options}{_options(outcome.link)}"),
        (
            "settings of all runs",
            ", ".join(show(name) for name in _SHOWN if len(values[name]) == 1),
        ),
        ("settings that differ", "; ".join(show(name) for name in _SHOWN if len(values[name]) > 1)),
        ("seeds", ", ".join(map(str, study_.seeds))),
        *((name.replace("_", " "), _every(made, name)) for name in _VERSIONS),
        ("of -dirty commits", _DIRTY if any(map(_counted_all, made)) else ""),
        ("dates", " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "none"),
        ("time of the runs", _time(found)),
        ("time of tuning", _time(tuning_runs)),
    ]
    return [(name, text) for name, text in facts if text]


def _time(found: Sequence[Record]) -> str:
    """How long some runs took in all; one that stands for several cells counts once."""
    unique = {record["id"]: record["summary"] for record in found}.values()
    kinds = ("seconds_compile", "seconds_training", "seconds_evaluation")
    seconds = sum(summary.get(kind) or 0.0 for summary in unique for kind in kinds)
    return f"{duration(seconds)} in {len(unique)} runs" if unique else ""


def _every(made: Sequence[Record], name: str) -> str:
    """All values of a version; "unknown" where it was asked for and not found, as a commit may be."""
    asked = [m[name] for m in made if name in m]
    return ", ".join(sorted({str(value) for value in asked if value})) or "unknown" * bool(asked)


def _options(link: Link) -> str:
    """The flags of a link that is not the default one."""
    plain = Link()._asdict()
    changed = {name: value for name, value in link._asdict().items() if value != plain[name]}
    return "".join(f" --{name}={value:g}" for name, value in changed.items())


_SHOWN = (
    "dataset",
    "model",
    "epochs",
    "batch_size",
    "lr",
    "schedule",
    "agents",
    "topology",
    "alpha",
)


def _counted_all(made: Record) -> bool:
    """Whether a record's "-dirty" may be of result files only."""
    return str(made.get("git_commit")).endswith("-dirty") and made["date"] <= _LAST_DAY
