"""Data and model flags end to end, for one short epoch each; preparing with TFDS."""

import contextlib
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ccl_jax.runs import runner
from experiments import cifar10, cli, digits, imagenet, prepare, presets
from tests.support import small_files

TFDS_ZIP = pathlib.Path(__file__).parents[1] / "fixtures" / "tfds.zip"


def run(main, workdir, *flags):
    """Runs a main in this process for an epoch; returns its exit code."""
    argv = ("main", "--noprogress", "--epochs=1", f"--workdir={workdir}", *flags)
    return cli.run_main(runner.main, main.DEFAULTS, main.__doc__, argv)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A folder with a small cifar-10-binary.tar.gz."""
    folder = tmp_path_factory.mktemp("cifar")
    small_files.cifar10(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder, of which one training image cannot be read."""
    root = tmp_path_factory.mktemp("images")
    small_files.image_folder(root, ("ant", "bee"), train=8, test=3)
    (root / "train" / "ant" / "3.jpg").write_bytes(b"")
    return root


@pytest.mark.parametrize("model", ["lenet5", pytest.param("resnet8", marks=pytest.mark.slow)])
def test_cifar10_from_its_archive(archive, tmp_path, model, capsys):
    flags = ("--agents=2", "--batch_size=20", f"--model={model}", "--partition=iid", "--lr=0.01")
    code = run(
        cifar10,
        tmp_path / "run",
        *flags,
        f"--data_dir={archive}",
        "--lambda_m=0.05",
        "--lambda_d=0.1",
    )
    assert code == 0
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["steps"] == 2 and summary["images_per_second"] > 0
    split = read(tmp_path / "run" / "partition.json")
    assert np.sum(split["samples_by_agent_and_class"], axis=0).tolist() == [10] * 6 + [5] * 4
    assert split["samples_by_agent"] == [40, 40] and split["classes"][0] == "airplane"
    # A small archive in the true format trains, and is not mistaken for the published one.
    assert capsys.readouterr().err == (
        "note: cifar10: found 80 training and 20 test images, the published set has 50,000 training "
        "and 10,000 test images: this is a part of it, or not whole.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("topology, agents", [("ring", 4), ("dyck", 32), ("circulant-torus", 32)])
def test_resnet20_with_ccl_on_the_published_graphs(archive, tmp_path, topology, agents):
    flags = (f"--agents={agents}", f"--topology={topology}", "--batch_size=2", "--partition=iid")
    ccl = ("--lambda_m=0.1", "--lambda_d=0.1", "--model=resnet20", f"--data_dir={archive}")
    assert run(cifar10, tmp_path / "run", *flags, *ccl) == 0
    summary = read(tmp_path / "run" / "summary.json")
    degree = {"ring": 2, "dyck": 3, "circulant-torus": 4}[topology]
    sent = degree * presets.message_bytes(presets.SETTINGS[0])
    assert summary["bytes_sent_per_agent"] == summary["steps"] * sent
    assert summary["parameters"] == 272_474 and np.isfinite(summary["model_variant_loss"])


@pytest.mark.slow
def test_folders_stream_into_resnet18(folder, tmp_path):
    flags = ("--dataset=folder-full", "--model=resnet18", "--agents=2", "--batch_size=2")
    more = ("--partition=iid", "--lambda_m=0.1", "--lambda_d=0.1", f"--data_dir={folder}")
    assert run(imagenet, tmp_path / "run", *flags, *more) == 0
    assert read(tmp_path / "run" / "summary.json")["steps"] == 4


def test_cifar10_from_tfds(tmp_path, capsys):
    with zipfile.ZipFile(TFDS_ZIP) as file:
        file.extractall(tmp_path)
    flags = ("--agents=2", "--batch_size=20", "--model=lenet5", "--partition=iid", "--lr=0.01")
    assert run(cifar10, tmp_path / "run", *flags, f"--data_dir={tmp_path}") == 0
    note = "found 40 training and 10 test images, the published set has 50,000"
    assert capsys.readouterr().err.count(note) == 1
    assert read(tmp_path / "run" / "summary.json")["steps"] == 1


def test_streamed_folder(folder, tmp_path, capsys):
    flags = ("--dataset=folder-full", "--image_size=32", "--model=lenet5", "--agents=2")
    more = ("--batch_size=4", "--partition=iid", "--lr=0.01", "--label_noise=0.25", "--workers=2")
    shift = "--feature_shift=colour:0.3"
    code = run(imagenet, tmp_path / "run", *flags, *more, shift, f"--data_dir={folder}")
    assert code == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["unreadable_images"] == 1 and row["seconds_per_step"] > 0
    assert read(tmp_path / "run" / "partition.json")["wrong_labels_by_agent"] == [0.25, 0.25]

    whole = ("--dataset=folder", "--agents=2", f"--data_dir={folder}")
    assert run(imagenet, tmp_path / "whole", *whole) == 2
    assert "train/ant/3.jpg: cannot be decoded" in capsys.readouterr().err


def stop_after_an_epoch(workdir):
    """In place of `stop_signals`: asks a run to stop once it has a row of metrics."""
    metrics = workdir / "metrics.jsonl"

    @contextlib.contextmanager
    def signals():
        yield lambda: signal.SIGTERM if metrics.exists() and metrics.read_text() else 0

    return signals


@pytest.fixture
def interrupted(folder, tmp_path, monkeypatch):
    """A run that was stopped after its first of two epochs, in which one image could not be read.

    `again(flags)` goes on with it; `bad` are that image, which has been mended meanwhile, and another.
    """
    root, workdir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(folder, root)
    bad = [root / "train" / name / "3.jpg" for name in ("ant", "bee")]
    flags = ("--dataset=folder-full", "--image_size=8", "--model=digits-cnn", "--agents=2")
    more = ("--batch_size=4", "--partition=iid", "--lr=0.01", "--epochs=2", "--workers=2")
    again = lambda *others: run(imagenet, workdir, *flags, *more, f"--data_dir={root}", *others)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "stop_signals", stop_after_an_epoch(workdir))
        assert again("--max_unreadable=1") == 143
    shutil.copy(bad[1], bad[0])
    return again, bad, workdir


def unreadable(workdir):
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["unreadable_images"] for row in rows]


@pytest.mark.slow
def test_the_limit_of_unreadable_images_holds_where_a_run_goes_on(interrupted, capsys):
    again, bad, _ = interrupted
    bad[1].write_bytes(b"")
    assert again("--max_unreadable=1", "--resume") == 2
    error = capsys.readouterr().err
    assert "bee/3.jpg: " in error and "number 2 that cannot be read, max_unreadable is 1" in error


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "counts"), [(1, [1, 1]), (2, [1, 2])])
def test_the_count_of_unreadable_images_is_kept_where_a_run_goes_on(interrupted, limit, counts):
    again, bad, workdir = interrupted
    if limit == 2:  # As the message above advises; else all can be read again.
        bad[1].write_bytes(b"")
    assert again(f"--max_unreadable={limit}", "--resume") == 0
    assert unreadable(workdir) == counts


@pytest.mark.slow
def test_processes_count_unreadable_images_together(folder, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(folder, root)
    (root / "train" / "bee" / "5.jpg").write_bytes(b"")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    flags = ("--dataset=folder-full", "--image_size=8", "--model=digits-cnn", "--agents=2")
    # Each agent has a class, and each process an agent.
    more = ("--batch_size=4", "--partition=classes", "--classes_per_agent=1", "--epochs=1")
    where = (f"--data_dir={root}", f"--workdir={tmp_path / 'run'}", "--lr=0.01", "--noprogress")
    hosts = (f"--coordinator=localhost:{port}", "--num_processes=2", "--join_seconds=120")
    command = [sys.executable, "-m", "experiments.imagenet", *flags, *more, *where, *hosts]
    processes = [subprocess.Popen([*command, f"--process_id={k}"]) for k in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert unreadable(tmp_path / "run") == [2]
    saved = read(tmp_path / "run" / "checkpoints" / "2" / "progress.json")
    assert saved["unreadable"] == [3, 8 + 5]


def test_every_kind_of_heterogeneity_at_once(tmp_path):
    rng = np.random.default_rng(1)
    np.savez(
        tmp_path / "other.npz",
        train_images=rng.integers(0, 256, (300, 12, 12, 3), np.uint8),
        train_labels=np.arange(300) % 10,
        test_images=rng.integers(0, 256, (20, 12, 12, 3), np.uint8),
        test_labels=np.arange(20) % 10,
    )
    shifts = [f"--feature_shift={kind}:0.2" for kind in ("rotation", "colour", "blur", "noise")]
    code = run(
        digits,
        tmp_path / "run",
        "--agents=4",
        "--batch_size=16",
        "--partition=dirichlet-clean",
        f"--domain=npz:{tmp_path / 'other.npz'}",
        "--quantity_alpha=1",
        "--label_noise=0:0.5",
        "--dtype=bfloat16",
        "--norm=batch",
        "--gossip_batch_stats",
        *shifts,
    )
    assert code == 0
    split = read(tmp_path / "run" / "partition.json")
    assert split["domain_by_agent"] == [0, 1, 0, 1]
    assert split["partition"] == "dirichlet-clean by domain + quantity"
    assert min(split["samples_by_agent"]) >= 16
    assert split["samples"]["total"] == sum(split["samples_by_agent"])
    assert np.sum(split["samples_by_agent_and_class"]) == split["samples"]["total"]
    rates = np.array([0, 1 / 6, 1 / 3, 1 / 2])
    sizes = np.array(split["samples_by_agent"])
    np.testing.assert_allclose(split["wrong_labels_by_agent"], np.round(rates * sizes) / sizes)
    assert len(split["feature_shift rotation:0.2"]) == 4
    assert 0 < split["label_divergence"] <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--feature_shift=twist:1",), "unknown feature_shift 'twist'"),
        (("--label_noise=2",), "label_noise is '2'"),
        (("--quantity_alpha=0",), "quantity_alpha is 0.0; it must be a number > 0"),
        (("--dtype=float16",), "dtype is float16; it must be float32 or bfloat16"),
        (("--verify_checksums",), "digits: verify_checksums is for"),
        (("--image_size=8",), "digits: image_size is for"),
        (("--domain=fmnist:/nowhere",), "/nowhere: data_dir does not exist"),
        (("--domain=digits",), "domain: digits is given 2 times; give it once"),
        (
            ("--feature_shift=blur:1", "--feature_shift=blur:1.0"),
            "feature_shift: blur:1 is given 2",
        ),
        (("--quantity_alpha=1.7e308",), "quantity_alpha must be above 0 and at most 1e+09"),
        (
            ("--algorithm=dsgdm", "--hparam=ema_factor=0.1", "--hparam=ema_factor=0.2"),
            "ema_factor is given twice",
        ),
        (("--batch_size=500",), "larger than the shard of agent"),
        (("--dataset=cifar10",), "no data_dir is given"),
    ],
)
def test_wrong_data_flags(flags, message, tmp_path, capsys):
    assert run(digits, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


def test_prepare_without_tensorflow_and_with_wrong_flags(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    assert prepare.main(["prepare", "--dataset=cifar10", f"--data_dir={tmp_path}"]) == 2
    assert 'pip install "ccl_jax[tfds]"' in capsys.readouterr().err
    assert prepare.main(["prepare", "--dataset=cifra10", f"--data_dir={tmp_path}"]) == 2
    assert "did you mean 'cifar10'" in capsys.readouterr().err
    assert prepare.main(["prepare"]) == 2
    assert "give --dataset=NAME and --data_dir=DIR" in capsys.readouterr().err
    assert prepare.main(["prepare", "--help"]) == 0
    assert "cifar100" in capsys.readouterr().out
