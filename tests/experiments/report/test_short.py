"""What a page opens with, one comparison a panel, and what is said of how it was made."""

import types

import matplotlib.figure
import numpy as np
import pytest

from experiments.report import command, comparisons, figures, made, outcome
from experiments.report.statistics import Difference
from experiments.study import catalogue, records
from tests.support.reported import STUDY, made_up


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "mine.toml"
    path.write_text(STUDY)
    return catalogue.load(str(path))


@pytest.fixture(scope="module")
def found(study):
    return outcome.Outcome(study, [(job, made_up(job)) for job in study.jobs()])


def test_a_panel_a_comparison_and_all_of_one_scale(found, monkeypatch):
    drawn = {}

    def keep(draw, salt, height, title):
        axes = matplotlib.figure.Figure().subplots()
        draw(axes)
        drawn[title] = axes

    monkeypatch.setattr(comparisons, "panel", keep)
    comparisons.differences(found)
    assert list(drawn) == ["ccl\nagainst plain", "both\nagainst ccl", "far\nagainst plain"]
    assert len({axes.get_xlim() for axes in drawn.values()}) == 1
    at = [
        line.get_xdata()[0] for line in drawn["both\nagainst ccl"].lines if line.get_marker() == "o"
    ]
    np.testing.assert_allclose(at, [-2, -2], atol=1e-9)
    names = [text.get_text() for text in drawn["both\nagainst ccl"].get_yticklabels()]
    assert names == ["alpha 0.1", "alpha 1"]


def test_a_row_of_which_runs_diverged_says_so(study, monkeypatch):
    made = [(job, made_up(job)) for job in study.jobs()]
    for job, record in made:
        if job.method == "both" and job.config.alpha == 1:
            record |= {"status": "diverged", "step": 17, "reason": "NaN"}
    drawn = {}

    def keep(draw, salt, height, title):
        draw(axes := matplotlib.figure.Figure().subplots())
        drawn[title.splitlines()[0]] = [(t.get_text(), t.get_position()[1]) for t in axes.texts]

    monkeypatch.setattr(comparisons, "panel", keep)
    comparisons.differences(outcome.Outcome(study, made))
    # Of `far` the two other runs are drawn, too.
    assert drawn == {"ccl": [], "both": [("diverged", 1)], "far": [("1 of 3 diverged", 1)]}


def test_an_interval_that_would_hide_the_others_ends_in_an_arrow(study, monkeypatch):
    made = [(job, made_up(job)) for job in study.jobs()]
    for job, record in made:
        seed, values = job.config.seed, record["summary"]
        if job.method in ("both", "far") and record["status"] == "done":
            values["consensus_accuracy"] += 0.001 * seed**2
        if job.method == "both" and job.config.alpha == 1:
            values["consensus_accuracy"] += (0, 0.5, 0)[seed]
    found = outcome.Outcome(study, made)
    drawn = {}

    def keep(draw, salt, height, title):
        draw(axes := matplotlib.figure.Figure().subplots())
        drawn[title.splitlines()[0]] = axes

    monkeypatch.setattr(comparisons, "panel", keep)
    comparisons.differences(found)
    left, right = drawn["both"].get_xlim()
    wide = next(cell for cell in study.cells if "alpha 1" in cell)
    mean, low, high = 100 * np.array(found.difference(wide, "both", "consensus_accuracy")[1:])
    # Its mean is seen, its ends are not; all other intervals are.
    assert low < left < 0 < mean < right < high and right < 1.1 * mean - 0.1 * left
    others = [
        100 * np.array(found.difference(cell, method, "consensus_accuracy")[2:])
        for cell in study.cells
        for method in ("ccl", "both", "far")
        if (cell, method) != (wide, "both")
    ]
    assert left < np.min(others) and np.max(others) < right
    arrows = {
        name: [
            (line.get_marker(), line.get_xdata()[0], line.get_ydata()[0])
            for line in axes.lines
            if line.get_marker() in ("<", ">")
        ]
        for name, axes in drawn.items()
    }
    row = study.cells.index(wide)
    assert arrows == {"ccl": [], "both": [("<", left, row), (">", right, row)], "far": []}
    strokes = [path for c in drawn["both"].collections for path in c.get_segments()]
    assert min(path[0, 0] for path in strokes) == pytest.approx(left)
    assert max(path[-1, 0] for path in strokes) == pytest.approx(right)


def test_of_two_intervals_the_wide_one_does_not_count(monkeypatch):
    found = [Difference(3, 0.001, 0, 0.002), Difference(2, 0.01, -1, 1.02)]
    cells = types.SimpleNamespace(cells=[0, 1])
    difference = lambda cell, method, metric: found[cell]
    fake = types.SimpleNamespace(study=cells, metric="consensus_accuracy", difference=difference)
    monkeypatch.setattr(comparisons, "_compared", lambda outcome: ["x"])
    np.testing.assert_allclose(comparisons._limits(fake), [-0.05, 1.05])
    found[1] = Difference(2, 0.01, -0.009, 0.01)  # Not ten times as wide.
    np.testing.assert_allclose(comparisons._limits(fake), [-0.995, 1.095])


def test_many_rows_are_closer_to_each_other(tmp_path, monkeypatch):
    heights = []
    monkeypatch.setattr(
        comparisons, "panel", lambda draw, salt, height, title: heights.append(height)
    )
    for number in (12, 43):
        path = tmp_path / "mine.toml"
        cells = "".join(f'"alpha {k}" = {{ alpha = {k}.0 }}\n' for k in range(2, number))
        path.write_text(STUDY.replace('"alpha 1" =', cells + '"alpha 1" ='))
        plan = catalogue.load(str(path))
        jobs = [job for job in plan.jobs() if job.config.seed == 0]
        comparisons.differences(outcome.Outcome(plan, [(job, made_up(job)) for job in jobs]))
    first, second = heights[0], heights[-1]
    assert (first - 1.05) / 12 == pytest.approx(0.28)
    assert (second - 1.05) / 43 == pytest.approx(0.2)


def test_a_page_opens_with_eight_rows_at_most(tmp_path):
    path = tmp_path / "mine.toml"
    cells = "".join(f'"alpha {k}" = {{ alpha = {k}.0 }}\n' for k in range(2, 4))
    path.write_text(STUDY.replace('"alpha 1" =', cells + '"alpha 1" ='))
    plan = catalogue.load(str(path))
    many = outcome.Outcome(plan, [(job, made_up(job)) for job in plan.jobs()])
    # Three comparisons in four cells: averages.
    rows = many.short_rows()
    assert many.short_header()[:2] == ["method", "compared with"] and len(rows) == 3
    assert rows[0] == [
        *("ccl", "plain", "83.15 ± 1.15", "+2.00 [+2.00, +2.00]", "higher", "3")
    ]  # 82 points, and 1 + 0.1 * (0.1 + 1 + 2 + 3) / 4 more from seed to seed.
    assert many.short_note() == "Averages over 4 cells for each seed."


def test_a_run_is_not_compared_with_itself(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    own = '"same" = { lr = 0.2 }\n"one" = { alpha = 1.0 }\n[against]'
    path.write_text(STUDY.replace("[against]", own))
    plan = catalogue.load(str(path))
    jobs = plan.jobs()
    made = {(job.method, job.cell, job.config.seed): (job, made_up(job)) for job in jobs}
    # A control for which tuning chose what it chose for `plain`; `one` is `plain` in the second cell.
    for (method, *where), (job, _) in made.items():
        if method == "same":
            made[method, *where] = (job, made["plain", *where][1])
    found = outcome.Outcome(plan, list(made.values()))
    named = [tuple(row[:2]) for row in found.short_rows()]
    assert named == [
        *(("alpha 0.1", method) for method in ("ccl", "both", "far", "one")),
        *(("alpha 1", method) for method in ("ccl", "both", "far")),
    ]
    assert found.short_note() == "Left out: 3 comparisons of runs with themselves, of controls."
    rows = {tuple(row[:2]): row for row in found.rows()}
    assert len(rows) == 2 * 6  # All results are below.
    assert rows["alpha 1", "one"][6:9] == ["", "the same runs", "plain"]
    assert found.comparisons() == (7, 7)
    # It is no comparison of no difference either.
    said = {line.partition(" compared")[0]: line for line in found.statements()}
    assert said["same"] == "same compared with plain: the same runs."
    alone = found.difference(("alpha 0.1",), "one", found.metric)
    assert found.overall("one", found.metric) == alone
    shown = outcome.show_difference(alone, found.metric)
    verdict = f"{alone.verdict} in its one distinct cell ({shown}, 3 seeds)"
    assert said["one"] == f"one compared with plain: {verdict}."
    drawn = {}

    def keep(draw, salt, height, title):
        draw(axes := matplotlib.figure.Figure().subplots())
        dots = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"]
        drawn[title.splitlines()[0]] = dots, [text.get_text() for text in axes.texts]

    monkeypatch.setattr(comparisons, "panel", keep)
    comparisons.differences(found)
    assert list(drawn) == ["ccl", "both", "far", "one"]
    assert drawn["ccl"] == ([0, 1], []) and drawn["one"] == ([0], ["the same runs"])


def test_of_too_many_methods_those_that_differ_most_clearly(tmp_path):
    path = tmp_path / "mine.toml"
    more = "".join(f'"m{k}" = {{ lr = {0.2 + k / 100} }}\n' for k in range(10))
    path.write_text(STUDY.replace("[against]", more + "[against]"))
    plan = catalogue.load(str(path))

    def shifted(job):
        record = made_up(job)
        if job.method.startswith("m"):
            number = int(job.method[1:])
            values = {k: v + 0.001 * number for k, v in record["summary"].items() if "acc" in k}
            record["summary"] |= values
        return record

    many = outcome.Outcome(plan, [(job, shifted(job)) for job in plan.jobs()])
    shown = [row[0] for row in many.short_rows()]
    # ccl is 2 points ahead, both 2 behind, far level as m0: 13 comparisons, of which eight are shown.
    assert len(shown) == 8 and {"ccl", "both", "m9", "m8", "m7"} < set(shown)
    assert "The 8 that differ most clearly, of 13; all are below." in many.short_note()


def test_records_whose_dirt_may_be_results_are_marked(study):
    jobs = study.jobs()[:2]
    commits = lambda *given: [
        (job, made_up(job) | {"made_with": {"date": date, "git_commit": commit}})
        for job, (commit, date) in zip(jobs, given, strict=True)
    ]
    old, new = ("abc-dirty", "2026-11-22"), ("abc-dirty", "2026-11-24")
    facts = lambda *given: dict(made.facts(outcome.Outcome(study, commits(*given)), []))
    assert "counts any changed file" in facts(old, new)["of -dirty commits"]
    assert "of -dirty commits" not in facts(new, ("abc", "2026-11-22"))
    assert facts(old, new)["git commit"] == "abc-dirty"


def test_what_is_found_is_short():
    """The verdict of every committed page has at most 25 words, and at most five bullets follow."""
    files = sorted(catalogue.FOLDER.parents[1].glob("results/*/finding.md"))
    assert len(files) >= 22
    for file in files:
        verdict, *rest = file.read_text().strip().split("\n\n")
        assert len(verdict.split()) <= 25 and "\n" not in verdict, file
        (bullets,) = rest
        lines = bullets.splitlines()
        assert len(lines) <= 5 and all(line.startswith("- ") for line in lines), file


def test_all_pages_are_made_again_by_the_commands_they_name(tmp_path, capsys):
    plan = catalogue.load("first_three")
    where = tmp_path / "first_three-digits"
    records.write(where / "runs.jsonl", [made_up(job) for job in plan.jobs()[:8]])
    flags = ["--study=first_three", "--seeds=0", f"--results={tmp_path}", "--gflops=3"]
    assert command.main(["report", *flags]) == 0
    before = {name: (where / name).read_text() for name in ("results.md", "report.html")}
    (where / "report.html").unlink()
    assert command.main(["report", "--all", f"--results={tmp_path}"]) == 0
    assert {name: (where / name).read_text() for name in before} == before
    assert "3 GFLOP/s" in before["report.html"] and "4 of 4 runs" in before["report.html"]
    (where / "results.md").write_text("# no command\n")
    assert command.main(["report", "--all", f"--results={tmp_path}"]) == 2
    assert "does not say by which command it was made" in capsys.readouterr().err
    assert command.main(["report", "--all", f"--results={tmp_path}/none"]) == 2


def test_disagreement_is_a_column_and_explained(found, tmp_path):
    path = tmp_path / "mine.toml"
    names = '["consensus_accuracy", "consensus_distance"]'
    path.write_text(STUDY.replace("[axes.alpha]", f"metrics = {names}\n[axes.alpha]"))
    plan, made_of = catalogue.load(str(path)), []
    for job in plan.jobs():
        record = made_up(job)
        record["summary"]["consensus_distance"] = 0.25 + 0.01 * record["seed"]
        made_of.append((job, record))
    command.write(outcome.Outcome(plan, made_of), tmp_path, total=24)
    text = (tmp_path / "mine-digits" / "results.md").read_text()
    assert "| consensus accuracy (%) | disagreement | difference" in text
    assert "| alpha 0.1 | plain | 3 | 81.01 ± 1.01 | 0.260 ± 0.0100 |" in text
    explained = (
        "Disagreement: root mean square l2 distance of the agents' models to their mean. MB:"
    )
    assert explained in text
    command.write(found, tmp_path / "without", total=24)
    assert "Disagreement:" not in (tmp_path / "without/mine-digits/results.md").read_text()


def test_a_heat_map_says_diverged_only_of_runs_that_did(study):
    jobs = study.jobs()
    empty = outcome.Outcome(study, [(jobs[0], made_up(jobs[0]))])
    assert "diverged" not in "".join(figures.heatmap(empty, "lambda_d", "lambda_m"))
    lost = next(job for job in jobs if made_up(job)["status"] == "diverged")
    alone = outcome.Outcome(study, [(lost, made_up(lost))])
    assert "".join(figures.heatmap(alone, "lambda_d", "lambda_m")).count(">diverged<") == 1
