"""Makes report.html, and results.md with a picture, of what has been run of a study.

    python -m experiments.report --study=first_three
    python -m experiments.report --study=rounds --bandwidth_mbps=10 --latency_ms=50 --gflops=2

They lie in RESULTS/STUDY-DATA beside runs.jsonl. A file finding.md that lies there is taken in: what was
found, in words.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ccl_jax.runs import plots
from experiments import cli
from experiments.report import figures, page
from experiments.report.outcome import AXES, Outcome, heading
from experiments.report.panels import COLORS, css_color
from experiments.report.wall_clock import Link
from experiments.study import command, records, tuning
from experiments.study.records import Record

_VERSIONS = ("python", "jax", "flax", "optax", "numpy", "device", "cpu", "git_commit")

_PICTURE = "differences.png"


def write(outcome: Outcome, results: Path, total: int) -> Path:
    """Writes report.html, results.md and its picture, differences.png.

    Args:
      outcome: What there is of the study.
      results: The results directory.
      total: How many runs the study has when it is whole.

    Returns:
      Where they lie.
    """
    where = command.folder(outcome.study, results)
    finding = (where / "finding.md").read_text() if (where / "finding.md").exists() else ""
    tuned, tuning_runs = None, []
    if outcome.study.tune is not None:
        known = records.known(results)
        tuned = tuning.table_of_tuning(outcome.study, known)
        jobs = tuning.wanted(outcome.study, known)
        tuning_runs = [known[job.identity] for job in jobs if job.identity in known]
    target, made = _to_target(outcome), _made(outcome, tuning_runs)
    parts = [
        *_opening(outcome, total),
        *([f'<div class="finding">{page.markdown(finding)}</div>'] if finding else []),
        page.element("h2", "In short"),
        page.bullets(outcome.statements()),
        page.element("p", caution(outcome), "soft"),
        page.element("h2", "Results"),
        page.table(outcome.header(), outcome.rows(), len(outcome.study.axes)),
        page.element("p", _reading(outcome), "soft"),
        *(_shown_target(outcome, target) if target else []),
        *_diverged(outcome),
        page.element("h2", "Figures"),
        f'<div class="figures">{"".join(_figures(outcome))}</div>',
        *_left_out(outcome),
        *_tuned(outcome, tuned),
        page.element("h2", "How it was made"),
        page.facts(made),
    ]
    where.mkdir(parents=True, exist_ok=True)
    title = f"{outcome.study.title} ({outcome.study.label})"
    study_ = outcome.study
    texts = [
        f"# {title}",
        *([f"The paper: {study_.claim}"] if study_.claim else []),
        *([f"Asked: {study_.question}"] if study_.question else []),
        f"{len(outcome.records)} of {total} runs.",
        *([finding.strip()] if finding else []),
        "\n".join(f"- {text}" for text in outcome.statements()),
        caution(outcome),
        page.markdown_table(outcome.header(), outcome.rows()),
        _reading(outcome),
        f"![Differences of the table]({_PICTURE})",
        *([page.markdown_table(*target), _when_reached(outcome)] if target else []),
        *([_how_tuned(outcome), page.markdown_table(*tuned)] if tuned else []),
        "\n".join(f"- {name}: {text}" for name, text in made),
    ]
    (where / "results.md").write_text("\n\n".join(texts) + "\n")
    (where / "report.html").write_text(page.page(title, parts))
    with plots.attempt(_PICTURE):
        (where / _PICTURE).write_bytes(figures.picture(outcome))
    return where


def caution(outcome: Outcome) -> str:
    """What so many comparisons are worth."""
    number, distinct = outcome.comparisons()
    repeated = number - distinct
    same = f" ({repeated} of them of runs that another one has compared)" if repeated else ""
    return (
        "A difference whose 95% interval contains 0 is called “no difference seen”. There are "
        f"{number} comparisons in the table{same}; of comparisons without any true difference about "
        "one in twenty shows one by chance."
    )


def _opening(outcome: Outcome, total: int) -> list[str]:
    study_ = outcome.study
    count = f"{len(outcome.records)} of {total} runs"
    return [
        page.element("p", f"ccl_jax · study {study_.name} · {study_.label} · {count}", "soft"),
        page.element("h1", study_.title),
        *([page.element("p", f"The paper: {study_.claim}")] if study_.claim else []),
        *([page.element("p", f"Asked: {study_.question}")] if study_.question else []),
    ]


def _reading(outcome: Outcome) -> str:
    return (
        "Mean ± standard deviation over seeds, of the runs that did not diverge, on the test set at the "
        "end. Differences are paired by seed (same split, same start, same order of data), with "
        f"Student's t; in points for accuracies; of {heading(outcome.metric, unit=False)}. Worst: of a "
        "run's agents. MB: what one agent sent."
    )


def _when_reached(outcome: Outcome) -> str:
    """How finely rounds to the target are known, and how time is modelled."""
    every = sorted({r["rows"]["step"][0] for r in outcome.records if r["rows"].get("step")})
    between = " to ".join(str(n) for n in dict.fromkeys([every[0], every[-1]])) if every else "no"
    return (
        "Mean over the runs that reach it, at the first evaluation that does, of one every "
        f"{between} rounds. {_model(outcome)}"
    )


def _to_target(outcome: Outcome) -> tuning.Table | None:
    study_, rows = outcome.study, []
    for target, cell in itertools.product(study_.targets, study_.cells):
        for method in study_.methods:
            reached = {axis: outcome.reached(cell, method, axis, target) for axis in AXES}
            if not reached["rounds"].of:
                continue
            shown = [_amount(r.mean) if r.seeds else "never" for r in reached.values()]
            count = f"{reached['rounds'].seeds} of {reached['rounds'].of}"
            rows.append([f"{100 * target:g}%", *cell, method, count, *shown])
    target = f"{heading(outcome.metric, unit=False)} of"
    return (
        ([target, *study_.axes, "method", "runs that reach it", *AXES.values()], rows)
        if rows
        else None
    )


def _amount(value: float) -> str:
    """Three digits, or all before the point: 1888 rather than 1.89e+03."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _shown_target(outcome: Outcome, target: tuning.Table) -> list[str]:
    header, rows = target
    table = page.table(header, rows, 1 + len(outcome.study.axes))
    return [
        page.element("h2", "To the target"),
        table if len(rows) <= 24 else page.folded(f"{len(rows)} rows", table),
        page.element("p", _when_reached(outcome), "soft"),
    ]


def _diverged(outcome: Outcome) -> list[str]:
    rows = [
        [*cell, method, str(record["seed"]), str(record["step"]), record["reason"]]
        for cell in outcome.study.cells
        for method in outcome.study.methods
        for record in outcome.diverged(cell, method)
    ]
    if not rows:
        return []
    header = [*outcome.study.axes, "method", "seed", "step", "what happened"]
    return [
        page.element("h2", "Runs that diverged"),
        page.table(header, rows, len(outcome.study.axes)),
    ]


def _figures(outcome: Outcome) -> list[str]:
    study_ = outcome.study
    names = list(study_.methods)
    colors = [css_color(index) for index in range(len(names))]
    dashed = [index >= len(COLORS) for index in range(len(names))]
    legend = page.legend(list(zip(names, colors, dashed, strict=True)))
    parts = []
    for spec in study_.figures:
        title = spec.get("title") or heading(spec.get("metric", outcome.metric))
        title = title[0].upper() + title[1:]
        shown = "" if spec["kind"] == "heatmap" else legend
        panels = figures.of_study(outcome, spec)
        parts.append(page.figure(title, _CAPTIONS[spec["kind"]], panels, shown))
    parts.append(
        page.figure(
            "Differences",
            "Mean and 95% interval, paired by seed; 0 is what the method is compared with.",
            figures.differences(outcome),
            legend,
        )
    )
    for axis, unit in AXES.items():
        caption = "Line or dot: mean over seeds; band or stroke: lowest to highest seed."
        caption += " " + _model(outcome) if axis == "seconds" else ""
        panels = figures.curves(outcome, axis)
        parts.append(page.figure(f"Accuracy against {unit}", caption, panels, legend))
    parts.append(
        page.figure(
            "The agents of a run",
            "Test accuracy of the worst, the mean and the best agent, averaged over seeds.",
            figures.agents(outcome),
            legend,
        )
    )
    panels = figures.splits(outcome)
    if panels:
        caption = "The area of a bubble is the number of samples of a class that an agent holds."
        parts.append(page.figure("Who holds which classes", caption, panels))
    return parts


def _left_out(outcome: Outcome) -> list[str]:
    more = len(outcome.study.cells) - figures.MOST_CELLS
    text = f"Curves and splits of {more} more cells are not drawn; runs.jsonl has them."
    return [page.element("p", text, "soft")] if more > 0 else []


_CAPTIONS = {
    "dots": "Strokes: single seeds; dot and bar: mean and standard deviation.",
    "lines": "Mean and standard deviation over seeds.",
    "heatmap": "Mean over seeds. With differences, a star marks a 95% interval that leaves out 0.",
    "scatter": "A dot is a run.",
}


def _model(outcome: Outcome) -> str:
    """The model of time, in one sentence."""
    link = outcome.link
    compute = f"floating-point operations at {link.gflops:g} GFLOP/s"
    if link.seconds_per_step is not None:
        compute = f"{link.seconds_per_step:g} s of computing"
    return (
        f"Modelled time of a round, for the slowest agent: {compute}, plus {link.latency_ms:g} ms for "
        f"every exchange, plus bytes sent at {link.bandwidth_mbps:g} Mbit/s; a gradient counts as three "
        "forward passes, a cross-feature as one."
    )


def _tuned(outcome: Outcome, tuned: tuning.Table | None) -> list[str]:
    if tuned is None:
        return []
    return [
        page.element("h2", "Learning rates"),
        page.table(*tuned, len(outcome.study.axes)),
        page.element("p", _how_tuned(outcome), "soft"),
    ]


def _how_tuned(outcome: Outcome) -> str:
    study_, tune = outcome.study, outcome.study.tune
    seeds = ", ".join(map(str, tune.seeds))
    elsewhere = [axis for axis in study_.axes if axis not in tune.each]
    text = (
        f"Learning rates: {heading(study_.metrics[0])} on {tune.validation:.0%} of the training "
        f"data, held out, after training on the rest; seeds {seeds}. "
    )
    if tune.epochs is not None:
        text += f"Runs of tuning have {tune.epochs} epochs. "
    text += "Every method has the same grid" + " and the same number of runs" * (not tune.options)
    if tune.options:
        text += ", and those with options have it for each of them"
    text += ". A run that diverged counts as chance."
    if len(tune.seeds) > 1:
        if tune.keep < 1:
            text += (
                f" All candidates are run with the first seed; {tune.keep:.0%} of a method's, the best, "
                "and never fewer than two, go on to the next seed."
            )
        text += (
            " A choice is called not clearly ahead if its lead is at most the standard deviation of "
            "that lead over the seeds; the runner-up is then run, too."
        )
    for method, other in tune.same_lr.items():
        text += f" {method} is a control: it takes the learning rate of {other}."
    if elsewhere:
        text += f" What is chosen serves for every {' and '.join(elsewhere)}."
    return text


def _made(outcome: Outcome, tuning_runs: Sequence[Record]) -> list[tuple[str, str]]:
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
    return f"{command.duration(seconds)} in {len(unique)} runs" if unique else ""


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


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a report; returns the exit code."""
    values = command.define()
    link = Link()
    for name, text in (
        ("bandwidth_mbps", "megabits a second that an agent can send"),
        ("latency_ms", "milliseconds until a message arrives"),
        ("gflops", "billions of floating-point operations a second, of an agent"),
    ):
        default = getattr(link, name)
        flags.DEFINE_float(name, default, text, lower_bound=1e-9, flag_values=values)
    text = "computing time of a round, as measured, in place of --gflops"
    flags.DEFINE_float("seconds_per_step", None, text, lower_bound=0, flag_values=values)

    def body() -> None:
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        wanted, results = command.requested(values), Path(values["results"].value)
        found = command.collect(wanted, results)
        if not found:
            raise ValueError(
                f"no run of {wanted.name} on {wanted.label} is in {results}; run `python -m "
                f"experiments.study {wanted.options}` first"
            )
        assumed = Link(**{name: values[name].value for name in Link._fields})
        print(write(Outcome(wanted, found, assumed), results, wanted.total))

    return cli.guard(body)
