"""Runs side by side: what differs, what came of it, and every number in the CSV file."""

import csv
import dataclasses
import json

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import RunDirectory
from experiments import compare


def row(epoch: int, accuracy: float | None) -> dict:
    known = {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "cross_entropy": 2.0 / epoch}
    known |= {"bytes_sent_per_agent": 1_500_000 * epoch, "seconds_training": 1.25 * epoch}
    if accuracy is None:
        return known
    return known | {
        "local_accuracy_mean": accuracy,
        "local_accuracy_min": accuracy - 0.1,
        "local_accuracy_max": accuracy + 0.1,
        "consensus_accuracy": accuracy + 0.05,
        "consensus_distance": 0.5,
    }


def make(path, rows, ended=False, **settings):
    directory = RunDirectory(path)
    directory.create(dataclasses.asdict(Config(epochs=2, workdir=str(path), **settings)))
    directory.replace_metrics(rows)
    if ended:
        directory.write_json("summary.json", {"epochs": 2})
    return path


@pytest.fixture
def runs(tmp_path):
    """One that has ended, one within its epochs, one that diverged, one that has just begun."""
    diverged = [row(1, 0.3), row(2, None) | {"diverged": "the loss is no longer finite"}]
    return [
        make(tmp_path / "a", [row(1, None), row(2, 0.5)], True, lr=0.1, progress=False),
        make(tmp_path / "b", [row(1, 0.25)], lr=0.2, hparam=("x=1", "y=2"), keep=5),
        make(tmp_path / "c", diverged, lr=0.1, algorithm="dsgd"),
        make(tmp_path / "d", [], lr=0.1),
    ]


def main(*argv) -> int:
    return compare.main(["compare", *map(str, argv)])


TITLES = "local mean min max consensus disagreement MB sent seconds status"


def words(text: str) -> list[str]:
    """Lines with single spaces, those that are rules left out."""
    return [" ".join(line.split()) for line in text.splitlines() if not line.startswith("--")]


def test_the_table_has_what_differs_and_what_came_of_it(runs, tmp_path, capsys):
    assert main(*runs, f"--output={tmp_path}/out/x.csv") == 0
    out, err = capsys.readouterr()
    *tables, figure, metrics = words(out)
    assert err == ""
    # In one it would have 115 characters.
    assert max(map(len, out.splitlines()[:-2])) <= 100
    assert tables == [
        "run algorithm hparam lr",
        "a qg-dsgdm-n 0.1",
        "b qg-dsgdm-n x=1 y=2 0.2",
        "c dsgd 0.1",
        "d qg-dsgdm-n 0.1",
        "",
        f"run {TITLES}",
        "a 50.00% 40.00% 60.00% 55.00% 0.5000 3.00 2.5 done",
        "b 25.00% 15.00% 35.00% 30.00% 0.5000 1.50 1.2 1 of 2 epochs",
        "c 30.00% 20.00% 40.00% 35.00% 0.5000 3.00 2.5 diverged",
        "d – – – – – – – 0 of 2 epochs",
    ]
    assert figure == f"accuracy against rounds: {tmp_path}/out/x.png"
    assert metrics == f"all metrics: {tmp_path}/out/x.csv"


def test_where_it_fits_one_table_has_both(runs, tmp_path, capsys):
    other = make(tmp_path / "e", [row(1, 0.5), row(2, 0.5)], True, lr=0.2)
    assert main(runs[0], other, f"--output={tmp_path}/x.csv") == 0
    assert words(capsys.readouterr().out)[:-2] == [
        f"run lr {TITLES}",
        "a 0.1 50.00% 40.00% 60.00% 55.00% 0.5000 3.00 2.5 done",
        "e 0.2 50.00% 40.00% 60.00% 55.00% 0.5000 3.00 2.5 done",
    ]


def test_the_csv_has_a_line_for_each_run_and_epoch(runs, tmp_path):
    assert main(*runs, f"--output={tmp_path}/x.csv") == 0
    with (tmp_path / "x.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(x["run"], x["epoch"], x["status"]) for x in lines] == [
        ("a", "1", "done"),
        ("a", "2", "done"),
        ("b", "1", "1 of 2 epochs"),
        ("c", "1", "diverged"),
        ("c", "2", "diverged"),
    ]
    head = list(lines[0])
    assert head[:5] == ["run", "status", "config.algorithm", "config.hparam", "config.lr"]
    assert len(set(head)) == len(head)
    assert [x["config.lr"] for x in lines] == ["0.1", "0.1", "0.2", "0.1", "0.1"]
    assert lines[2]["config.hparam"] == "x=1 y=2"
    assert lines[0]["consensus_accuracy"] == ""
    assert float(lines[1]["consensus_accuracy"]) == 0.5 + 0.05
    assert lines[4]["diverged"] == "the loss is no longer finite" and lines[3]["diverged"] == ""
    # Whatever reads CSV has the numbers of metrics.jsonl.
    for run in runs:
        kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        mine = [x for x in lines if x["run"] == run.name]
        for before, after in zip(kept, mine, strict=True):
            numbers = {k: float(after[k]) for k, v in before.items() if k != "diverged"}
            assert numbers == {k: v for k, v in before.items() if k != "diverged"}


def test_the_figure_has_a_line_a_run(runs, tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    keep = lambda figure, *args, **options: (figures.append(figure), save(figure, *args, **options))
    monkeypatch.setattr(Figure, "savefig", keep)
    assert main(runs[0], runs[1], f"--output={tmp_path}/x.csv") == 0
    (_, consensus) = figures[0].axes
    assert [line.get_label() for line in consensus.lines] == [
        "a: lr 0.1",
        "b: hparam x=1 y=2, lr 0.2",
    ]
    assert [line.get_ydata().tolist() for line in consensus.lines] == [
        pytest.approx([55.0]),
        pytest.approx([30.0]),
    ]
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0
    # What is too long for a legend is in the table.
    other = make(tmp_path / "e", [row(1, 0.5)], lr=0.2, algorithm="momentum-tracking", alpha=0.05)
    assert main(runs[0], other, f"--output={tmp_path}/x.csv") == 0
    assert [line.get_label() for line in figures[1].axes[1].lines] == ["a", "e"]


def test_a_directory_of_runs_stands_for_all_of_them(tmp_path, monkeypatch, capsys):
    for group in ("x", "y"):
        for name in ("dsgd", "ccl"):
            make(tmp_path / group / name, [row(1, 0.5)])
    monkeypatch.chdir(tmp_path)
    assert main("x", "y/ccl") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert names == ["x/ccl", "x/dsgd", "y/ccl"]
    assert (tmp_path / "comparison.csv").exists() and (tmp_path / "comparison.png").exists()


def test_a_run_of_an_older_version_had_the_default(tmp_path, capsys):
    old = make(tmp_path / "old", [row(1, 0.5)])
    file = old / "config.json"
    there = json.loads(file.read_text())
    del there["gossip_steps"]
    file.write_text(json.dumps(there | {"forgotten": 3}))
    new = make(tmp_path / "new", [row(1, 0.5)])
    assert main(old, new, f"--output={tmp_path}/x.csv") == 0
    head, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["run", "forgotten"]
    assert first.split()[:2] == ["old", "3"] and second.split()[:2] == ["new", "50.00%"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give the directories of runs"),
        (["{0}"], "is no run (no config.json): give the directory of a run"),
        (["{0}/nowhere"], "is no run (no config.json)"),
        (["{0}/a", "{0}/../{1}/a"], "is given twice; give each run once"),
        (["{0}/a", "{0}/broken"], "config.json is damaged; it is no JSON object"),
        (["{0}/a", "{0}/torn"], "torn is damaged (Expecting"),
        (["{0}/a", "{0}/torn"], "(char 10), in line 1 of metrics.jsonl); leave it out"),
        (["{0}/a", "{0}/list"], "list is damaged ([1] is no JSON object)"),
        (
            ["{0}/a", "{0}/word"],
            "word is damaged (metrics.jsonl says that consensus_accuracy is high,",
        ),
        (["{0}/a", "{0}/hasty"], "hasty is damaged (metrics.jsonl has a row without its epoch)"),
        (["{0}/a", "--epochs=3"], "Unknown command line flag 'epochs'"),
        (["{0}/a", "--output="], "output is ''; it must be the name of a file"),
        (["{0}/a", "--output={0}"], "a directory; give the name of a file in it"),
        (["{0}/a", "--output={0}/x.png"], "where the figure goes; give the name of a CSV file, as"),
    ],
)
def test_one_line_and_exit_code_2(given, said, tmp_path, monkeypatch, capsys):
    base = tmp_path / "base"
    monkeypatch.chdir(tmp_path)
    if given != ["{0}"]:
        make(base / "a", [])
        make(base / "torn", [])
        (base / "torn" / "metrics.jsonl").write_text('{"epoch": ')
        make(base / "word", [row(1, 0.5) | {"consensus_accuracy": "high"}])
        make(base / "hasty", [{"step": 10}])
        (make(base / "list", []) / "summary.json").write_text("[1]")
        make(base / "broken", [])
        (base / "broken" / "config.json").write_text("[1")
    assert main(*(text.format(base, base.name) for text in given)) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: ") and said in line
    assert not (tmp_path / "comparison.csv").exists() and not (base / "x.png").exists()


def test_only_a_comparison_is_written_anew(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(*runs) == 0 and main(*runs) == 0
    for foreign in ("mine.csv", "mine.png"):
        (tmp_path / foreign).write_text("precious")
        assert main(*runs, "--output=mine.csv") == 2
        assert f"{foreign} is there, and no comparison made it" in capsys.readouterr().err
        assert (tmp_path / foreign).read_text() == "precious"
        (tmp_path / foreign).unlink()
