"""Reports: statistics by hand, modelled time, and a page that stands on its own."""

import html.parser
import math
import re

import matplotlib.colors
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from ccl_jax.runs.config import Config
from experiments.report import (
    command,
    comparisons,
    figures,
    outcome,
    page,
    panels,
    statistics,
)
from experiments.study import catalogue, records
from tests.support.reported import STUDY, made_up


def test_a_target_counts_from_the_first_time_that_it_is_reached():
    assert statistics.first_reaching([10, 20, 30, 40], [0.1, None, 0.8, 0.7], 0.75) == 30
    assert statistics.first_reaching([10], [0.7], 0.7) == 10
    assert statistics.first_reaching([10, 20], [0.1, 0.2], 0.75) is None


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "mine.toml"
    path.write_text(STUDY)
    return catalogue.load(str(path))


@pytest.fixture(scope="module")
def found(study):
    return outcome.Outcome(study, [(job, made_up(job)) for job in study.jobs()])


def test_rows_of_the_table(found):
    assert found.header() == [
        "alpha",
        "method",
        "runs",
        "consensus accuracy (%)",
        "mean local accuracy (%)",
        "worst local accuracy (%)",
        "difference [95% interval]",
        "",
        "compared with",
        "MB sent",
    ]
    rows = {tuple(row[:2]): row[2:] for row in found.rows()}
    assert len(rows) == 8
    # 80, 81.01, 82.02 at alpha 0.1: mean 81.01, std 1.01 (in points, 0.01 + 0.0001 a seed).
    assert rows["alpha 0.1", "plain"][:2] == ["3", "81.01 ± 1.01"]
    assert rows["alpha 0.1", "plain"][3:] == ["71.01 ± 1.01", "", "", "", "2.50"]
    assert rows["alpha 0.1", "ccl"][4:7] == ["+2.00 [+2.00, +2.00]", "higher", "plain"]
    assert rows["alpha 1", "both"][4:7] == ["−2.00 [−2.00, −2.00]", "lower", "ccl"]
    # Of `far` at alpha 1 the seeds 0 and 2 are left: 80, 82.2.
    assert rows["alpha 1", "far"][:2] == ["3, 1 diverged", "81.10 ± 1.56"]


def test_over_all_cells_by_hand(found, study):
    whole = found.overall("ccl", "consensus_accuracy")
    assert whole.n == 3 and whole.mean == pytest.approx(0.02)
    assert found.overall("far", "consensus_accuracy").n == 2  # seed 1 diverged in one of the cells
    first, *_, last = found.statements()
    assert first == (
        "ccl compared with plain: higher on average over all cells (+2.00 [+2.00, +2.00], 3 seeds); "
        "cell by cell: higher in 2."
    )
    assert last.endswith("no difference seen in 2; 1 run diverged.")


def test_comparisons_of_the_same_runs_count_once(tmp_path):
    path = tmp_path / "mine.toml"
    # Two methods that have an alpha of their own, so that one run stands in both cells.
    own = '"lone" = { alpha = 1.0 }\n"kept" = { alpha = 1.0, lr = 0.2 }\n[against]\nkept = "lone"'
    path.write_text(STUDY.replace("[against]", own))
    plan = catalogue.load(str(path))
    found = outcome.Outcome(plan, [(job, made_up(job)) for job in plan.jobs()])
    compared = [m for m in plan.methods if plan.reference_of(m)]
    # In the second cell `lone` is `plain` itself, and in both `kept` is compared with the same runs.
    number = 2 * len(compared) - 2
    assert found.comparisons() == (number + 1, number) and len(found.compared()) == number
    assert f"There are {number} comparisons in the table (1 more row shows one of them again)" in (
        command.caution(found)
    )
    # 80, 81.1, 82.2 at its alpha, whichever cells it stands in.
    (line,) = [text for text in found.statements() if text.startswith("kept")]
    assert line.startswith("kept compared with lone: no difference seen in its one distinct cell (")
    assert found.overall("kept", "consensus_accuracy").n == 3


def test_curves_against_rounds_bytes_and_time(found, study):
    record = found.runs(("alpha 1",), "plain")[0]
    assert found.along(record, "rounds") == [12, 24]
    assert found.along(record, "megabytes") == [1.0, 2.5]
    # 12 rounds of 1 GFLOP at 10 GFLOP/s and 10 ms, and 8 Mbit at 100 Mbit/s.
    assert found.along(record, "seconds") == pytest.approx([12 * 0.11 + 0.08, 24 * 0.11 + 0.2])
    assert found.reached(("alpha 1",), "plain", "megabytes", 0.7) == (3, 3, 2.5)


def test_runs_with_one_evaluation_are_seen_in_the_curves(study, monkeypatch):
    made = [(job, made_up(job)) for job in study.jobs()]
    for _, record in made:
        record["rows"] = {name: values[-1:] for name, values in record["rows"].items()}
    drawn = []
    monkeypatch.setattr(figures, "panel", lambda draw, *_, **__: drawn.append(draw))
    figures.curves(outcome.Outcome(study, made), "rounds")
    axes = matplotlib.figure.Figure().subplots()
    drawn[0](axes)
    assert [line.get_marker() for line in axes.lines] == ["o"] * 4
    dots = [line.get_xydata()[0] for line in axes.lines]
    np.testing.assert_allclose(dots, [(24, y) for y in (81.01, 83.01, 81.01, 81.01)])
    (stroke,) = axes.collections[0].get_segments()
    np.testing.assert_allclose(stroke, [(24, 80), (24, 82.02)])


def test_what_is_known_at_the_end_only_has_no_curves(study, tmp_path):
    made = [(job, made_up(job)) for job in study.jobs()]
    for _, record in made:
        del record["rows"]["consensus_accuracy"]
    found = outcome.Outcome(study, made)
    assert [figures.curves(found, axis) for axis in outcome.AXES] == [[], [], []]
    command.write(found, tmp_path, total=24)
    text = (tmp_path / "mine-digits" / "report.html").read_text()
    assert "against rounds" not in text and "The agents of a run" in text


class Page(html.parser.HTMLParser):
    """Collects what a page asks for from elsewhere, and checks that its elements are closed."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.used, self.tags, self.ids = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        names = ("src", "href", "xlink:href", "srcset", "data", "poster")
        self.used += [values[name] for name in names if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_on_its_own(found, study, tmp_path):
    folder = tmp_path / "mine-digits"
    folder.mkdir()
    (folder / "finding.md").write_text(
        "It helps & hurts.\n\n- It **does**.\n\n<script>no()</script>\n\n| a |\n|---|\n| 1 |"
    )
    assert command.write(found, tmp_path, total=24) == folder
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and text.startswith("<!doctype html>")
    # Heat maps are pictures within the page.
    own = [target for target in page.used if not target.startswith("data:image/png;base64,")]
    assert {target[0] for target in own} == {"#"} and {target[1:] for target in own} <= set(
        page.ids
    )
    assert len(page.ids) == len(set(page.ids))
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert "#010203" not in text  # all ink has become the page's
    assert "The claim: It helps." in text and "The paper: " not in text  # One's own study.
    # Two cells of curves for three axes, dots of three comparisons, a line, two heat maps, a scatter,
    # three panels of differences, two of agents, and two different splits.
    assert page.tags.count("svg") == 6 + 3 + 1 + 2 + 1 + 3 + 2 + 2
    for part in (
        "A &lt;small&gt; study",
        "<h3>Consensus accuracy against rounds</h3>",
        "24 of 24 runs",
        '<p class="verdict">It helps &amp; hurts.</p>',
        "It <strong>does</strong>.",
        "&lt;script&gt;no()",
        "<td>1</td>",
        "the loss is &lt;b&gt;no&lt;/b&gt; longer finite",
        "no difference seen",
        "about one in twenty",
        "10 GFLOP/s",
        "100 Mbit/s",
        f"python -m experiments.study --study={study.file}",
        "a &lt;chip&gt;",
        "<dt>git commit</dt><dd>unknown</dd>",
        "2026-01-02",
        "24 min in 24 runs",
        "at the first evaluation that does, of one every 12 rounds",
        "<dt>settings that differ</dt><dd>alpha 0.1, 1.0</dd>",
    ):
        assert part in text, part
    markdown = (folder / "results.md").read_text()
    assert "| alpha 1 | far | 3, 1 diverged | 81.10 ± 1.56 |" in markdown
    assert (
        markdown.splitlines()[2] == "**It helps & hurts.**" and markdown.count("It **does**.") == 1
    )
    # The verdict, the figure, the table of the six comparisons, what was found, what was asked; and then
    # what is folded.
    table = "<td>+2.00 [+2.00, +2.00]</td>"
    order = ('"verdict"', "<svg", table, '"finding"', "Asked: Does it?", "<details>")
    at = [text.index(part) for part in order]
    assert at == sorted(at) and text.index("All results") > at[-1]
    assert text.count("<details>") == text.count("</details>") == markdown.count("<details>") + 1
    assert "| alpha 1 | both | ccl | 81.10 ± 1.10 | −2.00 [−2.00, −2.00] | lower | 3 |" in markdown
    # 24 rounds of 0.11 s and 20 Mbit at 100 Mbit/s.
    assert "| 80% | alpha 0.1 | plain | 3 of 3 | 24 | 2.5 | 2.84 |" in markdown
    assert "| 80% | alpha 1 | far | 2 of 3 | 24 | 2.5 | 2.84 |" in markdown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.838, "2.84"), (24, "24"), (99.94, "99.9"), (641.3, "641"), (1888, "1888")],
)
def test_amounts_have_no_exponents(value, shown):
    assert command._amount(value) == shown


def test_a_study_that_is_half_run(study, tmp_path):
    jobs = study.jobs()
    part = outcome.Outcome(study, [(jobs[0], made_up(jobs[0]))])
    command.write(part, tmp_path, total=24)
    text = (tmp_path / "mine-digits" / "report.html").read_text()
    assert "1 of 24 runs" in text and "too few seeds to say" in text
    assert Page(text).open == []


def test_a_method_without_a_run_of_its_reference_is_no_comparison(tmp_path):
    study = catalogue.load("first_three")
    first = next(job for job in study.jobs() if job.method != study.reference)
    part = outcome.Outcome(study, [(first, made_up(first))])
    assert part.comparisons() == (0, 0) and part.short_note() == ""


def test_all_pages_are_made_but_those_that_cannot_be(study, tmp_path, capsys):
    plan = catalogue.load("first_three")
    where = tmp_path / "first_three-digits"
    records.write(where / "runs.jsonl", [made_up(job) for job in plan.jobs()[:8]])
    assert command.main(["report", "--study=first_three", f"--results={tmp_path}"]) == 0
    (where / "report.html").unlink()
    for name, text in (("a", "- this page: python -m experiments.report --study=gone"), ("b", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.md").write_text(text + "\n")
    assert command.main(["report", "--all", f"--results={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "a/results.md: unknown study 'gone': did you mean" in said
    assert "b/results.md does not say by which command" in said
    assert (where / "report.html").exists()


def test_ctrl_c_ends_all_pages(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        line = "- this page: python -m experiments.report --study=agents\n"
        (tmp_path / name / "results.md").write_text(line)
    monkeypatch.setattr(command.command, "requested", interrupted)
    assert command.main(["report", "--all", f"--results={tmp_path}"]) == 130


def test_what_differs_and_what_was_tuned_is_said(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(STUDY + "[tune]\nlr = [0.1, 0.3]\nvalidation = 0.25\nseeds = [9]\n")
    plan = catalogue.load(str(path))
    records.write(tmp_path / "tuned-digits/runs.jsonl", map(made_up, plan.tuning_jobs()))
    jobs = plan.jobs({pair: {"lr": 0.3} for pair in catalogue._any_choices(plan)})[:2]
    command.write(outcome.Outcome(plan, [(job, made_up(job)) for job in jobs]), tmp_path, total=24)
    markdown = (tmp_path / "tuned-digits" / "results.md").read_text()
    assert "on 25% of the training data, held out, after training on the rest; seeds 9." in markdown
    tuning_runs = len(plan.tuning_jobs())
    assert f"- time of tuning: {tuning_runs} min in {tuning_runs} runs" in markdown
    # All learning rates are equal in made-up records: the smaller one.
    assert markdown.count("0.1 (edge of the grid) |") == len(plan.tuning_jobs()) / 2
    settings, *differ = re.findall(r"^- settings.*$", markdown, re.MULTILINE)
    assert ", lr 0.3," in settings and "agents" in settings and not differ


def test_the_command(study, tmp_path, capsys):
    where = tmp_path / "first_three-digits"
    assert command.main(["report", "--study=first_three", f"--results={tmp_path}"]) == 2
    assert "run `python -m experiments.study --study=first_three" in capsys.readouterr().err
    plan = catalogue.load("first_three")
    records.write(where / "runs.jsonl", [made_up(job) for job in plan.jobs()[:8]])
    flags = ["--bandwidth_mbps=3", "--latency_ms=7", "--seconds_per_step=0.5"]
    assert command.main(["report", "--study=first_three", f"--results={tmp_path}", *flags]) == 0
    assert capsys.readouterr().out.strip() == str(where)
    text = (where / "report.html").read_text()
    assert "0.5 s of computing, plus 7 ms" in text and "3 Mbit/s" in text and "8 of 20 runs" in text
    line = "python -m experiments.report --study=first_three "
    assert f"<dd>{line}{' '.join(flags)}</dd>" in text
    assert (
        command.main(["report", "--study=first_three", f"--results={tmp_path}", "--seeds=0"]) == 0
    )
    assert f"{line}--seeds=0<" in (where / "report.html").read_text()
    # A page of some seeds does not lose the others' runs.
    assert len(records.read(where / "runs.jsonl")) == 8
    assert command.main(["report", "--study=first_three", "--gflops=0"]) == 2


def test_the_picture_has_every_method_but_the_reference(found, study, tmp_path):
    (tmp_path / "differences.png").write_bytes(comparisons.picture(found))
    image = matplotlib.image.imread(tmp_path / "differences.png")[..., :3]
    drawn = lambda color: (
        np.isclose(image, matplotlib.colors.to_rgb(color), atol=0.01).all(-1).sum()
    )
    reference, *others = [drawn(color) for color in panels.COLORS[: len(study.methods)]]
    # A dot in each of two cells, of some 30 pixels or more.
    assert reference == 0 and min(others) > 60


def test_names_are_text_in_figures_and_one_that_fails_is_left_out(tmp_path, capsys):
    name = "$x_1$ of $y"
    path = tmp_path / "mine.toml"
    path.write_text(STUDY.replace("plain", name).replace("alpha 1", "$5 or $6"))
    study = catalogue.load(str(path))
    found = outcome.Outcome(study, [(job, made_up(job)) for job in study.jobs()])
    texts = "".join(comparisons.dots(found))
    assert f"against {name}</text>" in texts and ">$5 or $6</text>" in texts
    assert comparisons.picture(found).startswith(b"\x89PNG")

    def fail(axes) -> None:
        raise RuntimeError("no such font")

    assert figures.panel(fail, "of mine") == ""
    said = "warning: the figure of mine could not be drawn: no such font\n"
    assert capsys.readouterr().err == said


def test_heat_map_shows_differences_with_a_star_where_seen(found):
    first, second = figures.heatmap(found, "lambda_d", "lambda_m", difference=True)
    texts = re.findall(r">([^<>]*\d[^<>]*)</text>", first)
    assert "+2.00 *" in texts and "+0.00" in texts
    assert "1 diverged" in second


def test_the_column_that_stays_in_sight_names_the_row():
    header, rows = (
        ["graph", "alpha", "method", "runs"],
        [
            ["ring", "<1", "a", "5"],
            ["ring", "<1", "b", "no difference seen"],
            ["star", "<1", "b", "5"],
        ],
    )
    text = page.table(header, rows, 3)
    assert "<th><small>graph, alpha</small>method</th><th>runs</th>" in text
    assert "<tr><td><small>ring, &lt;1</small>a</td><td>5</td></tr><tr><td><small>ring" in text
    assert '<td class="words">no difference seen</td></tr><tr class=new><td><small>star' in text
    plain = page.table(["seed", "what happened"], [["1", "a" * 12], ["2", "±" * 49]])
    assert "<tr><td>1</td><td>aaaaaaaaaaaa</td></tr><tr><td>2</td>" in plain
    assert '<td class="words long">±' in plain


def test_labels_end_where_their_axis_does(found):
    """One that is longer than its axis would else be cut off at the edge of the panel."""
    (label,) = re.findall(r"<text ([^>]*)>difference in", comparisons.differences(found)[0])
    assert "text-anchor: end" in label


def test_markdown_tables_escape_bars():
    assert page.markdown_table(["a", "b"], [["|", "2"]]).splitlines() == [
        "| a | b |",
        "|---|---|",
        "| \\| | 2 |",
    ]


def test_what_numbers_look_like():
    spread = statistics.Spread
    assert outcome.show_spread(spread(2, 0.93214, 0.0045), "consensus_accuracy") == "93.21 ± 0.45"
    assert outcome.show_spread(spread(1, 0.012345, math.nan), "model_variant_loss") == "0.0123"
    assert outcome.show_spread(spread(0, math.nan, math.nan), "consensus_accuracy") == "–"
    below = statistics.Difference(3, -0.012, -0.02, 0.001)
    assert outcome.show_difference(below, "consensus_accuracy") == "−1.20 [−2.00, +0.10]"
    assert records.value({"summary": {}, "settings": {}}, "agents") == Config().agents
