"""What bad input gets: one line that says what was given and what is allowed, and nothing written."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ccl_jax import training
from ccl_jax.devices import hosts
from ccl_jax.runs import runner
from ccl_jax.training import loop
from experiments import cli, digits, fmnist

ROOT = pathlib.Path(__file__).parents[2]
QUICK = ("--algorithm=dsgd", "--noprogress")


def run(main, *argv):
    """Exit code of a main in this process."""
    body = getattr(main, "main", runner.main)
    return cli.run_main(body, main.DEFAULTS, main.__doc__, ["main", *argv])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory to work in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def complaint(capsys, main, *argv):
    """The one line on stderr of a run that is refused."""
    code = run(main, *argv)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


REFUSED = [
    # Unknown names are answered with the nearest right one.
    (["--algorithm=dsgdm_n"], "unknown algorithm 'dsgdm_n'", "did you mean 'dsgdm-n'"),
    (["--algorithm=ccl"], "ccl is no algorithm", "qg-dsgdm-n"),
    (["--topology=rnig"], "'rnig'", "ring"),
    (["--weights=unifrom"], "'unifrom'", "uniform"),
    (["--model=lenet-5"], "'lenet-5'", "did you mean 'lenet5'"),
    (["--norm=evonrom"], "'evonrom'", "did you mean 'evonorm'"),
    (["--partition=dirichlett"], "'dirichlett'", "did you mean 'dirichlet'"),
    (["--distance=l3"], "'l3'", "l1"),
    (["--schedule=stpe"], "'stpe'", "did you mean 'step'"),
    (["--augment=flipcrop"], "'flipcrop'", "did you mean 'flip-crop'"),
    (["--algorithm=dsgdm", "--hparam=ema_fctor=0.5"], "no hyper-parameter ema_fctor", "it takes"),
    (["--hparam=ema_factor"], "'ema_factor'", "NAME=VALUE"),
    (["--hparam=momentum=0.5"], "'momentum=0.5'", "--momentum=0.5"),
    (["--lamda_m=0.1"], "Unknown command line flag 'lamda_m'", "did you mean --lambda_m?"),
    (["--learning_rate=0.1"], "flag 'learning_rate'", "did you mean --lr?"),
    (["--zzz=0.1"], "flag 'zzz'", "--help lists all"),
    (["--run=runs/x"], "flag 'run'", "--help lists all"),
    (["--nofigure"], "flag 'nofigure'", "did you mean --nofigures?"),
    (["--noalfa"], "flag 'noalfa'", "--help lists all"),
    (["ring"], "'ring' is not a flag", "--name=value"),
    # Graphs that do not fit.
    (["--topology=dyck"], "8", "32"),
    (["--topology=torus:3x3"], "3 x 3 is no grid of 8", "rows times columns"),
    (["--topology=hypercube", "--agents=6"], "6", "power of"),
    (["--topology=circulant:2"], "circulant:2", "disconnected"),
    (["--topology=circulant:x"], "circulant:x", "circulant:1,3"),
    (["--topology=file:nowhere.txt"], "nowhere.txt", ""),
    # Numbers out of range.
    (["--alpha=0"], "alpha is 0.0", "> 0"),
    (["--alpha=-1"], "alpha is -1.0", "> 0"),
    (["--alpha=nan"], "alpha is nan", "> 0"),
    (["--alpha=inf"], "alpha is inf", "> 0"),
    (["--agents=0"], "agents is 0", "at least 1"),
    (["--agents=-4"], "agents is -4", "at least 1"),
    (["--agents=many"], "--agents=many", ""),
    (["--epochs=0"], "epochs is 0", "at least 1"),
    (["--eval_every=0"], "eval_every is 0", "at least 1"),
    (["--seeds=1000000000"], "seeds is 1000000000", "1 to 1000"),
    (["--batch_size=0"], "batch_size is 0", "at least 1"),
    (["--local_steps=2147483648"], "local_steps is 2147483648", "at least 1, and below 2**31"),
    (["--gossip_steps=2147483648"], "gossip_steps is 2147483648", "at least 1, and below 2**31"),
    (["--epochs=500000000", "--partition=iid"], "epochs is 500000000", "at most 357913941"),
    (["--lr=-0.1"], "lr is -0.1", "> 0"),
    (["--lr=0"], "lr is 0.0", "> 0"),
    (["--lr=nan"], "lr is nan", "> 0"),
    (["--lambda_m=-0.1"], "lambda_m is -0.1", ">= 0"),
    (["--lambda_d=nan"], "lambda_d is nan", ">= 0"),
    (
        ["--feature_loss=x:1"],
        "unknown feature loss 'x'",
        "Known: model_variant, data_variant, decorrelation, feature_norm, logit_distillation, moon",
    ),
    (["--feature_loss=prototpye:1"], "'prototpye'", "did you mean 'prototype'"),
    (["--feature_loss=prototype"], "feature_loss 'prototype'", "NAME:WEIGHT"),
    (["--feature_loss=prototype:much"], "feature_loss 'prototype:much'", "NAME:WEIGHT"),
    (["--feature_loss=prototype:-1"], "weight of feature loss prototype is -1.0", ">= 0"),
    (["--feature_loss=prototype:nan"], "weight of feature loss prototype is nan", ">= 0"),
    (["--feature_loss=prototype:0.1"] * 2, "feature loss prototype is given twice", "once"),
    (["--feature_loss=moon:1:tau=1"], "moon has no option tau", "takes temperature"),
    (["--feature_loss=moon:1:temperature=0"], "temperature of feature loss moon is 0", "> 0"),
    (["--feature_loss=moon:1:temperature"], "'moon:1:temperature'", "NAME:WEIGHT:OPTION=VALUE"),
    (["--feature_loss=prototype:1:2"], "'prototype:1:2'", "NAME:WEIGHT:OPTION=VALUE"),
    (["--feature_loss=moon:1:temperature=1:temperature=2"], "'moon:1", "NAME:WEIGHT:OPTION=VALUE"),
    (
        [
            "--algorithm=dsgdm",
            "--hparam=gradient_at=unmixed",
            "--local_steps=2",
            "--feature_loss=moon:1",
        ],
        "moon compares with the mixed model",
        "gradient_at=mixed",
    ),
    (
        ["--algorithm=dsgt", "--local_steps=2", "--feature_loss=moon:1"],
        "dsgt takes its gradient before mixing",
        "leave the loss out",
    ),
    (
        ["--algorithm=isolated", "--norm=batch", "--gossip_batch_stats"],
        "isolated does not gossip",
        "leave it out",
    ),
    (["--sam_rho=-0.1"], "sam_rho is -0.1", ">= 0"),
    (["--sam_rho=nan"], "sam_rho is nan", ">= 0"),
    (["--sam_adaptive"], "sam_adaptive is True", "--sam_rho > 0"),
    (["--feature_loss=model_variant:1"], "feature loss model_variant", "its own: lambda_m"),
    (["--feature_loss=data_variant:1"], "feature loss data_variant", "its own: lambda_d"),
    (["--weight_decay=-1e-4"], "weight_decay is -0.0001", ">= 0"),
    (["--momentum=1"], "momentum is 1.0", "[0, 1)"),
    (["--momentum=-0.9"], "momentum is -0.9", "[0, 1)"),
    (["--gossip_rate=0"], "gossip_rate is 0.0", "(0, 1]"),
    (["--gossip_rate=-1"], "gossip_rate is -1.0", "(0, 1]"),
    (["--gossip_rate=1.1"], "gossip_rate is 1.1", "(0, 1]"),
    (["--gossip_rate=fast"], "gossip_rate is fast", "ars:START:GROWTH"),
    (["--gossip_rate=ars:0.1"], "gossip_rate is ars:0.1", "ars:START:GROWTH"),
    (["--gossip_rate=ars:2:1.01"], "the start of ars is 2.0", "(0, 1]"),
    (["--compression_start=zero"], "compression_start is zero", "name a compression"),
    (["--compression=int8", "--compression_start=x"], "compression_start is x", "model or zero"),
    (["--clip_norm=0"], "clip_norm is 0.0", "> 0"),
    (["--seed=-1"], "seed is -1", "2**32"),
    (["--warmup_epochs=61"], "warmup_epochs is 61", "at most 60"),
    (["--lambda_warmup_epochs=61"], "lambda_warmup_epochs is 61", "at most 60"),
    (
        ["--algorithm=dsgd", "--momentum=0.9"],
        "dsgd has no hyper-parameter momentum",
        "weight_decay",
    ),
    # More than the data have. 1,437 training images; 179 for each of 8 agents.
    (["--agents=1438"], "1438 agents", "1437"),
    (["--agents=1000000"], "1000000 agents", "1437"),
    (["--batch_size=180"], "batch_size 180", "at most 179"),
    (["--batch_size=100000"], "batch_size 100000", "at most 179"),
    (["--partition=classes", "--classes_per_agent=11"], "11", "10"),
    (["--model=lenet5"], "images of 8 x 8 x 1", "take a model made for this size (digits-cnn, "),
    # Files.
    (["--flagfile=nowhere.flags"], "nowhere.flags", ""),
    (["--flagfile=~/nowhere.flags"], "/nowhere.flags", ""),
    (["--compile_cache=gs://bucket/x"], "'gs://bucket/x'", "a file system that is mounted here"),
    (["--topology=file:s3://b/g.txt"], "'file:s3://b/g.txt'", "no path on this machine"),
    (["--domain=folder:hf://b/x"], "'folder:hf://b/x'", "no path on this machine"),
]


@pytest.mark.parametrize("flags, given, allowed", REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_one_line_and_nothing_written(flags, given, allowed, here, capsys):
    line = complaint(capsys, digits, f"--workdir={here}/run", *flags)
    assert given in line
    assert allowed in line
    assert list(here.iterdir()) == []
    if not any(flag.startswith("--algorithm") for flag in flags):  # the same for one run
        assert complaint(capsys, digits, "--algorithm=qg-dsgdm-n", *flags) == line
        assert list(here.iterdir()) == []


def test_a_disconnected_graph_of_a_file_is_refused(here, capsys):
    edges = here / "edges.txt"
    edges.write_text("0 1\n2 3\n")
    flags = (f"--topology=file:{edges}", "--agents=4", f"--workdir={here}/run")
    line = complaint(capsys, digits, *flags)
    assert "disconnected" in line
    assert "2 components" in line
    assert list(here.iterdir()) == [edges]


def test_a_work_directory_with_another_run_is_refused_and_left_alone(here, capsys):
    run_directory = here / "comparison" / "dsgd"
    run_directory.mkdir(parents=True)
    (run_directory / "config.json").write_text("{}")
    for workdir in (run_directory, here / "comparison"):
        for flags in ([], ["--algorithm=dsgd"]):
            line = complaint(capsys, digits, f"--workdir={workdir}", *flags)
            assert f"{workdir} already holds a run" in line
            assert "another work directory" in line
    assert [path for path in here.rglob("*") if path.is_file()] == [run_directory / "config.json"]


def test_a_work_directory_that_cannot_be_is_refused(here, capsys):
    file = here / "file"
    file.write_text("mine")
    for flags in ([], ["--algorithm=dsgd"]):
        line = complaint(capsys, digits, f"--workdir={file}", *flags)
        assert f"{file} is a file" in line
        line = complaint(capsys, digits, f"--workdir={file}/below", *flags)
        assert str(file) in line
        assert "choose another work directory" in line
    assert file.read_text() == "mine"
    assert list(here.iterdir()) == [file]


def test_missing_data_files_are_named(here, capsys):
    folder = here / "data"
    folder.mkdir()
    line = complaint(capsys, fmnist, f"--data_dir={folder}", f"--workdir={here}/run")
    assert str(folder) in line
    assert "train-images-idx3-ubyte" in line
    line = complaint(capsys, fmnist, f"--data_dir={here}/nowhere", f"--workdir={here}/run")
    assert f"{here}/nowhere" in line
    assert list(here.iterdir()) == [folder]


def test_damaged_data_files_are_named_with_what_was_expected(here, capsys):
    folder = here / "data"
    folder.mkdir()
    images = bytes([0, 0, 8, 3]) + np.array([20, 28, 28], ">u4").tobytes() + bytes(20 * 28 * 28)
    labels = bytes([0, 0, 8, 1]) + np.array([20], ">u4").tobytes() + bytes(range(10)) * 2
    for kind in ("train", "t10k"):
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(labels)

    def said(name, content):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(content)
        line = complaint(capsys, fmnist, f"--data_dir={folder}", f"--workdir={here}/run")
        path.write_bytes(whole)
        assert name in line
        assert list(here.iterdir()) == [folder]
        return line

    assert "expected 15680" in said("train-images-idx3-ubyte", images[:-1])
    assert "expected 0x00000801" in said("t10k-labels-idx1-ubyte", images)
    assert "20" in said("train-labels-idx1-ubyte", labels[:7] + bytes([19]) + labels[8:-1])
    assert "label 10" in said("t10k-labels-idx1-ubyte", labels[:-1] + bytes([10]))
    assert "cannot be read" in said("train-images-idx3-ubyte", b"\x1f\x8b" + bytes(20))
    # 20 images, whole: what is wrong now is asking for too much of them.
    line = complaint(capsys, fmnist, f"--data_dir={folder}", "--agents=21", "--lr=0.1")
    assert "21 agents cannot share 20 samples" in line


@pytest.mark.parametrize(
    "flag, advice", [("--lr=1e30", "lower lr"), ("--lambda_m=1e30", "lower lambda_m")]
)
def test_a_loss_that_is_not_finite_stops_the_run(flag, advice, here, capsys):
    flags = (*QUICK, "--agents=4", "--batch_size=64", flag, f"--workdir={here}/run")
    code = run(digits, *flags, "--epochs=5", "--eval_every=5")
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert "no longer finite at step" in line
    assert "agent" in line
    assert advice in line
    rows = [json.loads(row) for row in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["diverged"] in line
    assert f"step {rows[-1]['step']}," in line
    assert not (here / "run" / "summary.json").exists()


def test_metrics_up_to_a_divergence_are_on_disk(here, capsys, monkeypatch):
    """A run that is healthy for two epochs of 6 steps, and spoilt in step 15."""
    make_step = training.make_step

    def spoilt(*args, **options):
        step = make_step(*args, **options)

        def spoilt_step(state, batch):
            new, metrics = step(state, batch)
            # Divided by 0 after 14 steps.
            healthy = (state.step != 14).astype("float32")
            return new, metrics._replace(cross_entropy=metrics.cross_entropy / healthy)

        return spoilt_step

    monkeypatch.setattr(training, "make_step", spoilt)
    flags = (*QUICK, "--agents=4", "--batch_size=64", f"--workdir={here}/run")
    code = run(digits, *flags, "--epochs=5", "--eval_every=1")
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "at step 15, agent 0" in line
    rows = [json.loads(row) for row in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [6, 12, 15]
    assert all("consensus_accuracy" in row for row in rows[:2])
    assert rows[2]["diverged"] in line
    assert rows[2]["cross_entropy"] is None  # inf is not JSON


def test_a_real_process_says_one_line_too():
    command = [sys.executable, "-m", "experiments.digits", "--topology=rnig"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "unknown topology 'rnig': did you mean 'ring'" in line


def test_of_several_processes_one_with_such_an_error_leaves_at_once(monkeypatch, capsys):
    """A usual exit would wait for the others, and they for it."""
    left = []
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "leave", left.append)
    with pytest.raises(ZeroDivisionError):  # Where leaving is only written down.
        cli.guard(lambda: 1 / 0)
    assert left == [1] and "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_an_error_of_our_own_is_not_taken_for_bad_input():
    """Only what a user can mend becomes one line; the rest keeps its traceback."""
    with pytest.raises(ZeroDivisionError):
        cli.guard(lambda: 1 / 0)
    assert issubclass(loop.Diverged, ArithmeticError)
    assert not issubclass(loop.Diverged, ValueError)
