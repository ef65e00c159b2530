"""What a run says of itself: at its start, while it trains, and when it has ended."""

import io
import json
import re
import shlex
import sys
import types

import jax
import pytest

from ccl_jax import training
from ccl_jax.runs import forecast, reporter, runner, terminal
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.directory import RunDirectory
from experiments import compare, export, predict
from tests.support import small_run, tiny_main

FLAGS = ("--algorithm=qg-dsgdm-n", "--epochs=3", "--eval_every=2", "--nofigures", "--devices=1")


def run(workdir, *flags) -> int:
    return tiny_main.main(["x", *FLAGS, f"--workdir={workdir}", *flags])


def test_a_line_an_epoch_where_nobody_looks(tmp_path, capsys):
    """1,437 images on three agents, 15 steps of 32; an MLP with 64 x 6 + 6 + 6 x 10 + 10 numbers."""
    assert run(tmp_path, "--progress", "--lambda_d=0.1") == 0
    out, err = capsys.readouterr()
    opening, compiling, *epochs = err.splitlines()
    # To two neighbours in 45 steps: the model, sums of 10 classes of 6 features, and 10 counts.
    sent = 45 * 2 * 4 * (460 + 60 + 10)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bytes_sent_per_agent"] == sent == 190_800
    assert opening == (
        "CCL + qg-dsgdm-n on ring, 3 agents; mlp, 460 parameters; digits; 1 device "
        f"({jax.devices()[0].device_kind}); 45 steps in 3 epochs; an agent will send 0.19 MB"
    )
    assert re.fullmatch(r"compiling the training step \.\.\. \d+ s", compiling)
    rows = RunDirectory(tmp_path).read_metrics()
    for number, (line, row) in enumerate(zip(epochs, rows, strict=True), start=1):
        said = f"loss {row['cross_entropy']:.3f}"
        if number > 1:
            said += f", local {100 * row['local_accuracy_mean']:.1f}%"
            said += f", consensus {100 * row['consensus_accuracy']:.1f}%"
        assert re.fullmatch(
            rf"epoch {number} of 3: {re.escape(said)}; \d\d:\d\d, \d\d:\d\d left", line
        )
    assert epochs[-1].endswith("00:00 left")
    assert "\r" not in err + out


def test_devices_of_a_cpu_are_said_to_be_virtual(tmp_path, capsys):
    assert run(tmp_path, "--progress", "--devices=3", "--epochs=1") == 0
    assert "; 3 virtual devices (" in capsys.readouterr().err.splitlines()[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal_a_bar_that_fits_it(columns, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(terminal, "size", lambda: (columns, 24))
    assert run(tmp_path, "--progress", "--lambda_d=0.1") == 0
    opening, rest = sys.stderr.getvalue().split("\n", 1)
    assert opening.startswith("CCL + qg-dsgdm-n on ring, 3 agents")
    bar = rest.split("\r")[-1].rstrip()
    row = RunDirectory(tmp_path).read_metrics()[-1]
    assert len(bar) <= columns
    assert "100%" in bar and "45/45" in bar
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, ", bar)  # What has passed, and what is left.
    assert f"loss={row['cross_entropy']:.3f}" in bar
    # It ends with the accuracies: where there is room, label and speed come before.
    assert bar.endswith(f", consensus={100 * row['consensus_accuracy']:.1f}%]")
    assert ("step/s" in bar) == bar.startswith("CCL + qg-dsgdm-n:") == (columns == 140)
    assert "epoch 1 of 3" not in rest


@pytest.mark.parametrize("flag", ["--quiet", "--noprogress"])
def test_no_progress(flag, tmp_path, capsys):
    assert run(tmp_path, "--progress", flag) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head, _, row, where, *others = out.splitlines()
    assert head.startswith("method") and row.startswith("qg-dsgdm-n")
    assert where == f"run directory: {tmp_path}"
    assert len(others) == (0 if flag == "--quiet" else 5)


def test_the_next_commands_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/x/digits.py", *FLAGS, f"--workdir={tmp_path}/a"])
    main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="experiments.digits"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "a") == 0
    title, *commands = capsys.readouterr().out.splitlines()[-5:]
    assert title == "next:"
    words = [shlex.split(command) for command in commands]
    assert [each[:3] for each in words] == [
        ["python", "-m", f"experiments.{name}"]
        for name in ("predict", "export", "compare", "digits")
    ]
    assert predict.main(words[0][2:]) == 0
    assert export.main(words[1][2:]) == 0
    assert (tmp_path / "a" / "export" / "consensus.npz").exists()
    assert compare.main(words[2][2:-1]) == 0 and words[2][-1] == "ANOTHER_RUN"
    assert words[3][3:] == [
        *("--algorithm=qg-dsgdm-n", "--eval_every=2", "--nofigures", "--devices=1"),
        *(f"--workdir={tmp_path}/a", "--resume", "--epochs=6"),
    ]
    assert tiny_main.main(words[3][2:]) == 0
    assert len(RunDirectory(tmp_path / "a").read_metrics()) == 6


def test_of_a_file_that_was_run_the_next_command_is_that_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=None))
    argv = ["mine.py", "--lr=1", "--epochs", "3", "--resume", "-workdir=a", "--hparam=epochs=2"]
    assert reporter.program(argv) == ["python", "mine.py", "--lr=1", "--hparam=epochs=2"]


def test_a_run_that_has_ended_goes_on_with_more_epochs(tmp_path, capsys):
    """At a constant learning rate it is the longer run, to the bit."""
    same = ("--schedule=constant", "--eval_every=1")
    assert run(tmp_path / "short", *same) == 0
    assert run(tmp_path / "long", *same, "--epochs=5") == 0
    capsys.readouterr()
    assert run(tmp_path / "short", *same, "--epochs=5", "--resume") == 0
    err = capsys.readouterr().err
    assert f"{tmp_path}/short goes on from 3 to 5 epochs, from here on at the learning" in err
    short, long = (RunDirectory(tmp_path / name) for name in ("short", "long"))
    rows = [small_run.without_seconds(each.read_metrics()) for each in (short, long)]
    small_run.same_rows(*rows)
    assert [row["epoch"] for row in rows[0]] == [1, 2, 3, 4, 5]
    assert short.settings()["epochs"] == short.summary()["epochs"] == 5
    arrays = [Checkpoints(each.checkpoints).arrays(75) for each in (short, long)]
    assert arrays[0].keys() == arrays[1].keys()
    assert all((arrays[0][name] == x).all() for name, x in arrays[1].items())
    # It has ended with these; there is no way back; and all else is as it was.
    assert run(tmp_path / "short", *same, "--epochs=5", "--resume") == 0
    assert "has ended already; this is its result" in capsys.readouterr().err
    assert run(tmp_path / "short", *same, "--epochs=3", "--resume") == 2
    assert "epochs was 5, now 3; one that goes on can only have more" in capsys.readouterr().err
    assert run(tmp_path / "short", *same, "--epochs=7", "--lr=0.3", "--resume") == 2
    err = capsys.readouterr().err
    assert "lr was 0.1, now 0.3" in err and "epochs" not in err
    assert short.settings()["epochs"] == 5


SENT = {
    "plain": {"algorithm": "dsgd"},
    "ccl": {"algorithm": "qg-dsgdm-n", "lambda_m": 0.1, "lambda_d": 0.1},
    "measured, which is free": {"algorithm": "dsgd", "measure_heterogeneity": True},
    "models that are sent for a loss": {"algorithm": "fedavg", "topology": "star", "lambda_m": 0.1},
    "prototypes": {"algorithm": "dsgd", "feature_loss": ("prototype:0.1",)},
    "compressed": {"algorithm": "dsgd", "compression": "top-k:0.1", "gossip_rate": 0.3},
    "sometimes": {"algorithm": "dsgd", "local_steps": 4},
    "by chance": {"algorithm": "proxskip", "local_steps": 3, "lambda_d": 0.1, "lambda_m": 0.1},
    "often": {"algorithm": "dsgd", "gossip_steps": 3},
    "over time": {"algorithm": "sgp", "topology": "one-peer-exponential", "agents": 5},
    "relayed": {"algorithm": "relaysgd", "topology": "chain"},
    "two variables": {"algorithm": "dsgt"},
    "cross-gradients": {"algorithm": "comp-cga", "compression": "sign"},
    "lost": {"algorithm": "dsgd", "drop": 0.5},
    "late": {"algorithm": "dsgd", "straggle": "0.5:2"},
    "merged": {"algorithm": "dsgd", "local_steps": 4, "final_merge": True},
    "averaged": {"algorithm": "sgp", "topology": "one-peer-exponential", "agents": 5}
    | {"local_steps": 4, "epochs": 3, "merge_at": 2, "lambda_d": 0.1, "model": "mlp"},
    "nothing": {"algorithm": "isolated"},
}


@pytest.mark.parametrize("case", SENT)
def test_what_will_be_sent_is_what_is_sent(case, tmp_path):
    """Exactly, where it is not a matter of chance; 13 steps are no multiple of what repeats."""
    config = tiny_main.DEFAULTS.replace(
        **{"epochs": 1, "batch_size": 37, "devices": 1, "figures": False, **SENT[case]},
        workdir=str(tmp_path / "run"),
    )
    ready = runner.prepare(config)
    state = training.init_state(
        ready.model,
        ready.algorithm,
        ready.network,
        ready.objective,
        (8, 8, 1),
        jax.random.key(0),
    )
    summary = runner.execute(ready)
    assert forecast.bytes_sent(ready, state, summary["steps"]) == summary["bytes_sent_per_agent"]
    assert (summary["bytes_sent_per_agent"] > 0) == (case != "nothing")


def test_of_agents_that_are_offline_it_is_about_what_is_sent(tmp_path):
    config = tiny_main.DEFAULTS.replace(
        algorithm="dsgd", epochs=20, devices=1, figures=False, offline="0.5:1", eval_every=20,
        workdir=str(tmp_path / "run"),
    )  # fmt: skip
    ready = runner.prepare(config)
    state = training.init_state(
        ready.model, ready.algorithm, ready.network, ready.objective, (8, 8, 1), jax.random.key(0)
    )
    sent = runner.execute(ready)["bytes_sent_per_agent"]
    assert forecast.bytes_sent(ready, state, 300) == pytest.approx(sent, rel=0.1)
