"""Makes report.html, and results.md with a picture, of what has been run of a study.

    python -m experiments.report --study=first_three
    python -m experiments.report --study=rounds --bandwidth_mbps=10 --latency_ms=50 --gflops=2

    python -m experiments.report --all

They lie in RESULTS/STUDY-DATA beside runs.jsonl. A file finding.md that lies there is taken in: its
first paragraph is the verdict, a sentence of at most 25 words, and then come at most five bullets. --all
makes the pages of all results that have been reported before, each with the command in its results.md.
"""

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ccl_jax.runs import plots
from experiments import cli
from experiments.report import comparisons, figures, made, page
from experiments.report.outcome import AXES, Outcome, heading
from experiments.report.panels import COLORS, css_color
from experiments.report.wall_clock import Link
from experiments.study import command, records, tuning

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
    verdict, found = _finding(outcome, where / "finding.md")
    tuned, second, tuning_runs = None, None, []
    if outcome.study.tune is not None:
        known = records.known(results)
        tuned = tuning.table_of_tuning(outcome.study, known)
        second = tuning.table_of_runners_up(outcome.study, known)
        jobs = tuning.wanted(outcome.study, known)
        tuning_runs = [known[job.identity] for job in jobs if job.identity in known]
    facts = made.facts(outcome, tuning_runs)
    short = outcome.short_header(), outcome.short_rows()
    text = lambda words: page.element("p", words, "soft")
    tables = [
        ("All results", (outcome.header(), outcome.rows()), _reading(outcome)),
        ("To the target", _to_target(outcome), _when_reached(outcome)),
        ("Runs that diverged", _diverged(outcome), ""),
        ("Learning rates", tuned, _how_tuned(outcome) if tuned else ""),
        (
            "Runners-up of tuning, on the test set",
            second,
            "As good as what was chosen, on held-out data.",
        ),
    ]
    tables = [(title, table, note) for title, table, note in tables if table and table[1]]
    methods = [*outcome.statements(), caution(outcome)]
    lead, figures_ = _figures(outcome)
    study_ = outcome.study
    asked = [
        f"Asked: {study_.question}" if study_.question else "",
        f"{'The claim' if study_.file else 'The paper'}: {study_.claim}" if study_.claim else "",
    ]
    parts = [
        *_opening(outcome, total, verdict),
        lead,
        *([_table(short), text(outcome.short_note())] if short[1] else []),
        *([f'<div class="finding">{page.markdown(found)}</div>'] if found else []),
        *(text(words) for words in asked if words),
        page.folded("Method by method", page.bullets(methods)),
        *(page.folded(title, _table(table) + text(note)) for title, table, note in tables),
        page.folded(
            "Figures", f'<div class="figures">{"".join(figures_)}</div>' + _left_out(outcome)
        ),
        page.folded("How it was made", page.facts(facts)),
    ]
    where.mkdir(parents=True, exist_ok=True)
    title = f"{study_.title} ({study_.label})"
    fold = lambda name, *inside: "\n\n".join(
        [f"<details><summary>{name}</summary>", *filter(None, inside), "</details>"]
    )
    texts = [
        f"# {title}",
        f"**{verdict}**",
        f"![Differences]({_PICTURE})",
        *([page.markdown_table(*short)] if short[1] else []),
        outcome.short_note(),
        found,
        *asked,
        f"{len(outcome.records)} of {total} runs.",
        fold("Method by method", "\n".join(f"- {line}" for line in methods)),
        *(fold(name, page.markdown_table(*table), note) for name, table, note in tables),
        fold("How it was made", "\n".join(f"- {name}: {words}" for name, words in facts)),
    ]
    (where / "results.md").write_text("\n\n".join(filter(None, texts)) + "\n")
    (where / "report.html").write_text(page.page(title, parts))
    with plots.attempt(_PICTURE):
        (where / _PICTURE).write_bytes(comparisons.picture(outcome))
    return where


def _table(table: tuning.Table) -> str:
    """A table as HTML: a row is named by its columns up to the method, and what it is compared with."""
    header, rows = table
    against = header.index("compared with") if "compared with" in header else None
    return page.table(header, rows, header.index("method") + 1, against)


def _finding(outcome: Outcome, file: Path) -> tuple[str, str]:
    """The verdict, and what follows it: the first paragraph of finding.md, and its bullets.

    Without that file the first statement on a method.
    """
    if not file.exists():
        return next(iter(outcome.statements()), "Nothing is compared."), ""
    verdict, _, rest = file.read_text().strip().partition("\n\n")
    return verdict, rest.strip()


def caution(outcome: Outcome) -> str:
    """What so many comparisons are worth."""
    shown, number = outcome.comparisons()
    repeated = shown - number
    are = "are" if number != 1 else "is"
    rows = "rows show" if repeated > 1 else "row shows"
    same = f" ({repeated} more {rows} one of them again)" if repeated else ""
    return (
        f"A difference whose 95% interval contains 0 is called “no difference seen”. There {are} "
        f"{number} comparison{'s' * (number != 1)} in the table{same}; of comparisons without any true "
        "difference about one in twenty shows one by chance."
    )


def _opening(outcome: Outcome, total: int, verdict: str) -> list[str]:
    study_ = outcome.study
    count = f"{len(outcome.records)} of {total} runs"
    return [
        page.element("p", f"ccl_jax · study {study_.name} · {study_.label} · {count}", "soft"),
        page.element("h1", study_.title),
        page.element("p", verdict, "verdict"),
    ]


def _reading(outcome: Outcome) -> str:
    apart = "Disagreement: root mean square l2 distance of the agents' models to their mean. "
    return (
        "Mean ± standard deviation over seeds, of the runs that did not diverge, on the test set at the "
        "end. Differences are paired by seed (same split, same start, same order of data), with "
        f"Student's t; in points for accuracies; of {heading(outcome.metric, unit=False)}. Worst: of a "
        f"run's agents. {apart if 'consensus_distance' in outcome.study.metrics else ''}"
        "MB: what one agent sent."
    )


def _when_reached(outcome: Outcome) -> str:
    """How finely rounds to the target are known, and how time is modelled."""
    # The longest of a run: the first evaluation may come early, and the last one soon after another.
    every = sorted(
        max(b - a for a, b in itertools.pairwise(at if len(at) > 1 else [0, *at]))
        for record in outcome.records
        if record["rows"].get("step") and (at := outcome.along(record, "rounds"))
    )
    between = " to ".join(f"{n:g}" for n in dict.fromkeys(every[:1] + every[-1:])) or "no"
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


def _diverged(outcome: Outcome) -> tuning.Table:
    rows = [
        [*cell, method, str(record["seed"]), str(record["step"]), record["reason"]]
        for cell in outcome.study.cells
        for method in outcome.study.methods
        for record in outcome.diverged(cell, method)
    ]
    return [*outcome.study.axes, "method", "seed", "step", "what happened"], rows


def _figures(outcome: Outcome) -> tuple[str, list[str]]:
    """The figure that a page opens with, and the others.

    It is the first one that the study asks for, or the differences if that is of dots.
    """
    study_ = outcome.study
    names = list(study_.methods)
    colors = [css_color(index) for index in range(len(names))]
    dashed = [index >= len(COLORS) for index in range(len(names))]
    legend = page.legend(list(zip(names, colors, dashed, strict=True)))
    own = []
    for spec in study_.figures:
        title = spec.get("title") or heading(spec.get("metric", outcome.metric))
        shown = "" if spec["kind"] == "heatmap" else legend
        panels = figures.of_study(outcome, spec)
        own.append(page.figure(_capital(title), _CAPTIONS[spec["kind"]], panels, shown))
    differences = page.figure(
        "Differences",
        "Mean and 95% interval, paired by seed; 0 is what the method is compared with; an arrow where "
        "an interval goes on.",
        comparisons.differences(outcome),
    )
    if study_.figures and study_.figures[0]["kind"] != "dots":
        lead, *parts = [*own, differences]
    else:
        lead, parts = differences, own
    for axis, unit in AXES.items():
        caption = "Line or dot: mean over seeds; band or stroke: lowest to highest seed."
        caption += " " + _model(outcome) if axis == "seconds" else ""
        if panels := figures.curves(outcome, axis):
            name = _capital(heading(outcome.metric, unit=False))
            parts.append(page.figure(f"{name} against {unit}", caption, panels, legend))
    parts.append(
        page.figure(
            "The agents of a run",
            "Test accuracy of the worst, the mean and the best agent, averaged over seeds.",
            figures.agents(outcome),
            legend,
        )
    )
    if panels := figures.splits(outcome):
        caption = "The area of a bubble is the number of samples of a class that an agent holds."
        parts.append(page.figure("Who holds which classes", caption, panels))
    return lead, parts


def _capital(title: str) -> str:
    """With a capital letter; the others stay, as those of L_mv."""
    return title[:1].upper() + title[1:]


def _left_out(outcome: Outcome) -> str:
    more = len(outcome.study.cells) - figures.MOST_CELLS
    text = f"Curves and splits of {more} more cells are not drawn; runs.jsonl has them."
    return page.element("p", text, "soft") if more > 0 else ""


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


def _all(results: Path) -> None:
    """Makes the pages of all results that have a results.md, with the command that it names.

    Raises:
      ValueError: Some of them cannot be made; all others are.
    """
    files = sorted(results.glob("*/results.md"))
    if not files:
        raise ValueError(f"no results.md is in a folder of {results}; report a study first")
    failed = []
    for file in files:
        lines = file.read_text().splitlines()
        said = next((line for line in lines if line.startswith("- this page: ")), None)
        if said is None:
            failed.append(f"{file} does not say by which command it was made")
            continue
        own = shlex.split(said.partition("experiments.report ")[2])
        try:
            _make(["report", *own, f"--results={results}"])
        except (flags.Error, ValueError, OSError) as error:
            failed.append(f"{file}: {error}")
    if failed:
        raise ValueError("; ".join(failed))


def _define() -> flags.FlagValues:
    values = command.define()
    link = Link()
    for name, text in (
        ("bandwidth_mbps", "megabits a second that an agent can send"),
        ("latency_ms", "milliseconds until a message arrives"),
        ("gflops", "billions of floating-point operations a second, of an agent"),
    ):
        default = getattr(link, name)
        flags.DEFINE_float(name, default, text, lower_bound=1e-9, flag_values=values)
    text = "computing time of a step, as measured, in place of --gflops"
    flags.DEFINE_float("seconds_per_step", None, text, lower_bound=0, flag_values=values)

    flags.DEFINE_bool("all", False, "all that have been reported before", flag_values=values)
    return values


def _make(argv: Sequence[str] | None) -> None:
    """What a command line asks for.

    Raises:
      flags.Error, OSError, ValueError: It cannot be made.
    """
    values = _define()
    cli.parse(values, argv)
    if values["help"].value:
        print(cli.page(__doc__, values))
        return
    if values["all"].value:
        _all(Path(values["results"].value))
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


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a report; returns the exit code."""
    return cli.guard(lambda: _make(argv))
