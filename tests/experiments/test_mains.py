"""The mains, end to end for an epoch or two: what they print, write and count."""

import dataclasses
import json
import re
import subprocess
import sys

import matplotlib.image
import pytest

from ccl_jax import algorithms
from ccl_jax.runs import plots, runner
from ccl_jax.runs.config import Config
from experiments import cli, digits, fmnist
from tests.support import small_files
from tests.support.events import scalars

# The keys that a summary has at least.
SUMMARY = {
    *("algorithm", "topology", "agents", "alpha", "seed", "epochs", "steps", "parameters"),
    *("local_accuracy_mean", "local_accuracy_min", "local_accuracy_max", "local_accuracy_std"),
    *("consensus_accuracy", "consensus_distance", "bytes_sent_per_agent", "seconds_training"),
    *("seconds_compile", "steps_per_second", "device"),
}
# Names of flags that scripts rely on.
FLAGS = {
    *("agents", "topology", "alpha", "algorithm", "lambda_m", "lambda_d", "gossip_rate", "lr"),
    *("momentum", "weight_decay", "batch_size", "epochs", "seed", "model", "norm", "data_dir"),
    "workdir",
}
# Few agents and large batches, so that an epoch is a few steps.
QUICK = ("--agents=4", "--batch_size=64", "--noprogress")


def run(main, *argv):
    """Runs a main in this process; returns its exit code."""
    body = getattr(main, "main", runner.main)
    return cli.run_main(body, main.DEFAULTS, main.__doc__, ["main", *argv])


def read(path):
    return json.loads(path.read_text())


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def untimed(values):
    """Without what a clock says."""
    return {k: v for k, v in values.items() if "seconds" not in k and "second" not in k}


def is_picture(path):
    return matplotlib.image.imread(path).std() > 0


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """`python -m experiments.digits`, cut to two epochs of fewer, larger steps."""
    workdir = tmp_path_factory.mktemp("digits") / "comparison"
    code = run(digits, *QUICK, "--epochs=2", "--eval_every=1", f"--workdir={workdir}")
    assert code == 0
    return workdir


def test_digits_compares_three_methods(comparison):
    together = read(comparison / "comparison.json")
    assert list(together) == ["dsgdm-n", "qg-dsgdm-n", "CCL + qg-dsgdm-n"]
    for name in ("dsgdm-n", "qg-dsgdm-n", "ccl"):
        summary = read(comparison / name / "summary.json")
        assert together[summary["label"]] == summary
        assert set(summary) >= SUMMARY
        assert is_picture(comparison / name / "figures" / "partition.png")
        assert is_picture(comparison / name / "figures" / "accuracy.png")
    assert is_picture(comparison / "figures" / "accuracy.png")


def test_curves_have_points_where_all_methods_were_evaluated(tmp_path, monkeypatch):
    """CCL computes more, so by default it is evaluated more often."""
    seen = []
    monkeypatch.setattr(plots, "accuracy_curves", lambda curves, *_: seen.append(curves))
    monkeypatch.setattr(runner, "execute", lambda run: _pretend(run, 0.9))
    flags = (*QUICK, "--epochs=20", "--nofigures", f"--workdir={tmp_path / 'c'}")
    assert run(digits, *flags) == 0
    (curves,) = seen
    known = {name: [row["epoch"] for row in rows] for name, rows in curves.items()}
    # Two by every tenth epoch, CCL by every fifth, in which it stopped after the fifteenth.
    assert known == {"dsgdm-n": [1, 10, 20], "qg-dsgdm-n": [1, 10, 20], "CCL + qg-dsgdm-n": [1, 10]}


def _pretend(run, accuracy):
    """A run that is evaluated and does nothing else; CCL ends early."""
    ccl = run.config.lambda_m > 0
    every, last = (5, 15) if ccl else (10, 20)
    epochs = [k for k in range(1, last + 1) if k == 1 or k % every == 0]
    run.directory.create(dataclasses.asdict(run.config))
    local = dict.fromkeys(("local_accuracy_mean", "local_accuracy_min"), accuracy)
    local["local_accuracy_max"] = accuracy
    for k in epochs:
        run.directory.log({"epoch": k, "step": 7 * k, "consensus_accuracy": accuracy, **local})
    numbers = {"consensus_accuracy": accuracy, "consensus_distance": 0.0, **local}
    return {"label": run.config.label, "bytes_sent_per_agent": 1, **numbers}


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--image_size=64",), "image_size is for"),
        (("--verify_checksums",), "verify_checksums is for fmnist"),
        (
            ("--lambda_m=0",),
            "a comparison has CCL beside the methods alone, and its losses are off",
        ),
    ],
)
def test_what_a_comparison_refuses_before_it_begins(flags, message, tmp_path, capsys):
    assert run(digits, *flags, f"--workdir={tmp_path / 'c'}") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_comparison_says_how_to_go_on(tmp_path, capsys):
    flags = (*QUICK, "--epochs=1", "--batch_size=256", "--nofigures", "--quiet")
    assert run(digits, *flags, f"--workdir={tmp_path / 'c'}") == 0
    assert "next:" not in capsys.readouterr().out
    flags = (*QUICK, "--epochs=2", "--batch_size=256", "--nofigures", "--resume")
    assert run(digits, *flags, f"--workdir={tmp_path / 'c'}") == 0
    out, err = capsys.readouterr()
    assert err.count("goes on from 1 to 2 epochs") == 3
    _, predict, export, compare, _ = out.splitlines()[-5:]
    assert predict.endswith(f"experiments.predict --run={tmp_path}/c/ccl")
    assert export.endswith(f"experiments.export --run={tmp_path}/c/ccl --format=npz")
    assert compare.endswith(f"experiments.compare {tmp_path}/c")
    for name in ("dsgdm-n", "qg-dsgdm-n", "ccl"):
        assert [row["epoch"] for row in rows(tmp_path / "c" / name)] == [1, 2]


def test_a_comparison_goes_on_only_where_there_is_one(comparison, tmp_path, capsys):
    single = comparison / "ccl"
    for there, remedy in ((single, "it is a single run"), (tmp_path, "leave out --resume")):
        assert run(digits, *QUICK, "--resume", f"--workdir={there}") == 2
        assert f"{there} holds no comparison; {remedy}" in capsys.readouterr().err


def test_the_methods_share_data_and_start(comparison):
    configs = [read(comparison / name / "config.json") for name in ("dsgdm-n", "qg-dsgdm-n", "ccl")]
    chosen = {"workdir", "algorithm", "lambda_m", "lambda_d"}
    for config in configs[1:]:
        assert {k: v for k, v in config.items() if k not in chosen} == {
            k: v for k, v in configs[0].items() if k not in chosen
        }
    assert [c["algorithm"] for c in configs] == ["dsgdm-n", "qg-dsgdm-n", "qg-dsgdm-n"]
    assert [c["lambda_m"] for c in configs] == [0.0, 0.0, 0.1]
    assert [c["lambda_d"] for c in configs] == [0.0, 0.0, 0.1]


def test_bytes_are_those_of_the_protocol(comparison):
    """Two neighbours, 4 bytes a number; CCL adds class sums and counts: 10 x 64 + 10."""
    for name, extra in (("dsgdm-n", 0), ("qg-dsgdm-n", 0), ("ccl", 10 * 64 + 10)):
        summary = read(comparison / name / "summary.json")
        # 1,437 training images, 359 for each of 4 agents, 6 batches of 64.
        assert summary["steps"] == 2 * 6
        assert summary["parameters"] == 10_250
        assert summary["bytes_sent_per_agent"] == 12 * 2 * 4 * (10_250 + extra)


def test_metrics_have_one_object_an_epoch(comparison):
    for name in ("dsgdm-n", "ccl"):
        first, last = rows(comparison / name)
        summary = read(comparison / name / "summary.json")
        assert (first["epoch"], last["epoch"]) == (1, 2)
        assert (first["step"], last["step"]) == (6, 12)
        assert 2 * first["bytes_sent_per_agent"] == last["bytes_sent_per_agent"]
        for key in ("cross_entropy", "lr", "consensus_distance", "local_accuracy_std"):
            assert isinstance(last[key], float)
            assert summary[key] == last[key]
        losses = {"model_variant_loss", "data_variant_loss"}
        assert losses & set(last) == (losses if name == "ccl" else set())
        low, mean, high = (last[f"local_accuracy_{k}"] for k in ("min", "mean", "max"))
        assert 0 <= low <= mean <= high <= 1
        # 360 test images: every accuracy of one model is a multiple of 1/360.
        for accuracy in (low, high, last["consensus_accuracy"]):
            assert 360 * accuracy == pytest.approx(round(360 * accuracy), abs=1e-6)


@pytest.mark.slow
def test_one_method_alone_prints_its_table_and_learns(tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = ("--algorithm=qg-dsgdm-n", "--lambda_m=0.1", "--lambda_d=0.1", "--alpha=10", "--lr=0.3")
    code = run(digits, *QUICK, *flags, "--epochs=6", "--batch_size=32", f"--workdir={workdir}")
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    head, rule, row, where, *others = out.splitlines()
    assert " ".join(head.split()) == "method local mean min max consensus disagreement MB sent"
    assert set(rule) == {"-", " "}
    summary = read(workdir / "summary.json")
    mean, low, high, consensus, disagreement, sent = row.removeprefix("CCL + qg-dsgdm-n").split()
    for text, key in (
        (mean, "local_accuracy_mean"),
        (low, "local_accuracy_min"),
        (high, "local_accuracy_max"),
        (consensus, "consensus_accuracy"),
    ):
        assert text == f"{100 * summary[key]:.2f}%"
    assert disagreement == f"{summary['consensus_distance']:.4f}"
    assert sent == f"{summary['bytes_sent_per_agent'] / 1e6:.2f}"
    assert where == f"run directory: {workdir}" and others[0] == "next:"
    # Chance is 0.1; in the evaluations of epochs 1, 5 and 6 it must be clearly better in the end.
    assert [row["epoch"] for row in rows(workdir) if "consensus_accuracy" in row] == [1, 5, 6]
    assert summary["consensus_accuracy"] > 0.4


@pytest.mark.slow
def test_a_run_is_repeated_to_the_bit_and_another_seed_is_another_run(comparison, tmp_path):
    def results(workdir):
        return [untimed(row) for row in rows(workdir)], untimed(read(workdir / "summary.json"))

    flags = ("--algorithm=qg-dsgdm-n", "--lambda_m=0.1", "--lambda_d=0.1", *QUICK, "--epochs=2")
    for name, seed in (("again", 0), ("other", 1)):
        more = ("--eval_every=1", f"--seed={seed}", f"--workdir={tmp_path / name}")
        assert run(digits, *flags, *more) == 0
    assert results(tmp_path / "again") == results(comparison / "ccl")
    assert results(tmp_path / "other")[0] != results(comparison / "ccl")[0]


@pytest.mark.slow
def test_heterogeneity_is_measured_for_a_baseline_without_traffic(comparison, tmp_path):
    flags = ("--algorithm=dsgdm-n", "--measure_heterogeneity", "--epochs=2", "--eval_every=1")
    assert run(digits, *QUICK, *flags, f"--workdir={tmp_path / 'measured'}") == 0
    plain, measured = rows(comparison / "dsgdm-n"), rows(tmp_path / "measured")
    for without, row in zip(plain, measured, strict=True):
        assert "model_variant_loss" not in without
        assert row["model_variant_loss"] > 0
        assert row["data_variant_loss"] > 0
        assert row["bytes_sent_per_agent"] == without["bytes_sent_per_agent"]
        assert row["cross_entropy"] == pytest.approx(without["cross_entropy"], rel=1e-4)


def test_a_flagfile_gives_flags_that_the_command_line_overrides(tmp_path):
    file = tmp_path / "settings.flags"
    file.write_text("--algorithm=dsgd\n# a comment\n--epochs=3\n--hparam=a=1\n--hparam=b=2\n")
    seen = []
    argv = ["main", f"--flagfile={file}", "--epochs=1"]
    code = cli.run_main(lambda *args: seen.append(args), digits.DEFAULTS, "", argv)
    assert code == 0
    ((config, given),) = seen
    assert (config.algorithm, config.epochs, config.agents) == ("dsgd", 1, 8)
    assert config.hparam == ("a=1", "b=2")
    assert given == {"algorithm", "epochs", "hparam"}


@pytest.mark.parametrize("main", [digits, fmnist], ids=["digits", "fmnist"])
def test_help_is_grouped_and_complete(main, capsys):
    assert run(main, "--help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert len(groups) >= 4
    shown = {line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")}
    assert {name.removeprefix("[no]") for name in shown} >= FLAGS
    assert {name for name in shown if name.startswith("[no]")} == {"[no]progress", "[no]figures"}
    assert f"[{main.DEFAULTS.lr}]" in out
    assert set(re.split(r"[\s,]+", out)) >= set(algorithms.REGISTRY)  # Names stay whole.


def test_every_flag_of_one_main_works_in_the_other():
    flags = [set(cli.define(main.DEFAULTS)) for main in (digits, fmnist)]
    assert flags[0] == flags[1] >= FLAGS


def test_the_digits_main_is_what_the_readme_shows():
    assert digits.DEFAULTS.agents == 8
    assert digits.DEFAULTS.topology == "ring"
    assert digits.DEFAULTS.partition == "dirichlet"
    assert digits.DEFAULTS.alpha <= 0.1
    assert Config().lr == 0.1 and Config().weight_decay is None


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """400 + 60 digits, scaled up to 28 x 28, in Fashion-MNIST's own files."""
    folder = tmp_path_factory.mktemp("fashion")
    small_files.fashion_mnist(folder)
    return folder


def test_fmnist_trains_from_the_original_files(fashion, tmp_path, capsys):
    workdir = tmp_path / "run"
    code = run(
        fmnist,
        f"--data_dir={fashion}",
        f"--workdir={workdir}",
        "--agents=5",
        "--batch_size=16",
        "--epochs=1",
        "--lambda_m=0.01",
        "--lambda_d=0.01",
        "--noprogress",
        "--tensorboard",
    )
    out, err = capsys.readouterr()
    assert (code, err) == (
        0,
        "note: fmnist: found 400 training and 60 test images, the published set has 60,000 training "
        "and 10,000 test images: this is a part of it, or not whole.\n",
    )
    assert f"run directory: {workdir}" in out
    summary = read(workdir / "summary.json")
    assert set(summary) >= SUMMARY
    assert summary["steps"] == 5  # 400 / 5 agents / 16
    assert summary["parameters"] == 61_706
    # LeNet-5 and, back, 10 class sums of 84 features and 10 counts.
    assert summary["bytes_sent_per_agent"] == 5 * 2 * 4 * (61_706 + 850)
    assert summary["algorithm"] == "qg-dsgdm-n"
    assert 60 * summary["consensus_accuracy"] == pytest.approx(
        round(60 * summary["consensus_accuracy"]), abs=1e-6
    )
    (events,) = (workdir / "tensorboard").iterdir()
    shown = scalars(events)
    for name in ("local_accuracy_mean", "consensus_accuracy"):
        assert shown[name] == [(5, pytest.approx(summary[name], rel=1e-6))]  # It holds float32.


def test_the_command_line_runs(tmp_path):
    """One real process: a module that can be run, and says how far it is."""
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "experiments.digits", f"--workdir={workdir}"]
    flags = ["--algorithm=dsgd", "--agents=2", "--batch_size=512", "--epochs=1", "--alpha=100"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 steps in 1 epoch" in done.stderr and "epoch 1 of 1: loss" in done.stderr
    assert f"run directory: {workdir}" in done.stdout
    assert read(workdir / "summary.json")["device"]
