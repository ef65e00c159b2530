"""Presets and the CIFAR-10 study, started as a user does, on small files in the true formats."""

import json
import math
import re

import pytest

from ccl_jax.data.photographs import IMAGENETTE_CLASSES
from ccl_jax.runs import runner
from experiments import cifar10, cifar100, cli, fmnist, imagenet, imagenette, presets
from experiments.study import command, records
from tests.support import small_files

pytestmark = pytest.mark.slow

# ImageNet's classes are named as WordNet's synsets; the set is known by there being 1,000.
SYNSETS = [f"n{k:08d}" for k in range(1000)]

LOSSES = (
    *("cross_entropy", "model_variant_loss", "data_variant_loss"),
    *("local_loss_mean", "consensus_loss"),
)


def start(main, write, folder, overrides):
    """Starts a main's preset on small files; returns exit code, config and summary."""
    files, workdir = folder / "files", folder / "run"
    files.mkdir()
    write(files)
    flags = (f"--{name}={value}" for name, value in overrides.items())
    where = (f"--data_dir={files}", f"--workdir={workdir}", "--noprogress")
    argv = ("main", "--preset=ring16/0.1", *flags, *where)
    code = cli.run_main(runner.main, main.DEFAULTS, main.__doc__, argv)
    read = lambda name: json.loads((workdir / name).read_text())
    return code, read("config.json"), read("summary.json")


# Two steps each: of 80 images 16 agents have 5 and 4 agents 20, of CIFAR-100's 160 they have 10, of
# Fashion-MNIST's 1,024 they have 64. ImageNet is known by its 1,000 classes, so it has 1,000 images to
# train and 1,000 to test; they are small, and go to 4 agents, as dealing one image a class to 16 at
# alpha 0.1 does not end in minutes. MobileNet-V2 has 4 agents as well, one a device: its many layers
# are compiled for every agent of a device.
@pytest.mark.parametrize(
    ("main", "write", "overrides", "steps", "found"),
    [
        (cifar10, small_files.cifar10, {"batch_size": 3}, 2, (80, 20)),
        (cifar100, small_files.cifar100, {"batch_size": 5}, 2, (160, 20)),
        (fmnist, lambda d: small_files.fashion_mnist(d, 1024), {}, 2, (1024, 60)),
        (
            imagenette,
            lambda d: small_files.image_folder(d / "imagenette2", IMAGENETTE_CLASSES, 8, 2),
            {"agents": 4, "batch_size": 10},
            2,
            (80, 20),
        ),
        (
            imagenet,
            lambda d: small_files.image_folder(d, SYNSETS, 1, 1),
            {"agents": 4, "image_size": 16},
            8,
            (1000, 1000),
        ),
    ],
    ids=["cifar10", "cifar100", "fmnist", "imagenette", "imagenet"],
)
def test_a_preset_starts(main, write, overrides, steps, found, tmp_path, capsys):
    overrides = {"epochs": 1, **overrides}
    code, config, summary = start(main, write, tmp_path, overrides)
    assert code == 0
    assert "found {:,} training and {:,} test images".format(*found) in capsys.readouterr().err
    assert summary["steps"] == steps and 0 <= summary["consensus_accuracy"] <= 1
    for name in LOSSES:
        assert isinstance(summary[name], float) and math.isfinite(summary[name]), name
    name = f"{main.DEFAULTS.dataset}/ring16/0.1"
    given = presets.load(name, main.DEFAULTS.dataset)
    assert len(given) == 14
    for setting, value in given.items():
        assert config[setting] == overrides.get(setting, value), setting
    assert config["dataset"] == main.DEFAULTS.dataset
    assert config["augment"] == main.DEFAULTS.augment
    # What a step sends is what the preset says; it does not depend on the number of agents in a ring.
    said = re.search(
        r"each agent sends ([\d,]+) bytes a step to 2 neighbours", presets.describe(name)
    )
    assert summary["bytes_sent_per_agent"] == steps * int(said[1].replace(",", ""))


def test_first_three_starts_on_cifar10(tmp_path, capsys, monkeypatch):
    small_files.cifar10(tmp_path, a_batch=103)  # 515 images: one batch of 32 for each of 16 agents.
    prepare = runner.prepare
    monkeypatch.setattr(  # It keeps the compile cache that all tests share.
        runner, "prepare", lambda config, *rest: prepare(config.replace(compile_cache=None), *rest)
    )
    results = tmp_path / "results"
    flags = ("--study=first_three", "--data=cifar10", "--epochs=1", "--seeds=0")
    where = (f"--data_dir={tmp_path}", f"--results={results}")
    assert command.main(["study", *flags, *where]) == 0
    error = capsys.readouterr().err
    assert error.count("note: cifar10: found 515 training and 20 test images") == 4
    assert "4 of 4 runs are in" in error
    made = records.read(results / "first_three-cifar10-1-epochs" / "runs.jsonl")
    weights = [(records.value(r, "lambda_m"), records.value(r, "lambda_d")) for r in made]
    assert weights == [(0.0, 0.0), (0.01, 0.01), (0.01, 0.0), (0.0, 0.01)]
    for record in made:
        assert (record["status"], record["seed"], record["summary"]["steps"]) == ("done", 0, 1)
        settings = {name: records.value(record, name) for name in ("model", "agents", "algorithm")}
        assert settings == {"model": "resnet20", "agents": 16, "algorithm": "dsgdm-n"}
        assert math.isfinite(record["summary"]["cross_entropy"])
        # L_mv is measured where either loss is used, L_dv where it is.
        lambda_m, lambda_d = (records.value(record, name) for name in ("lambda_m", "lambda_d"))
        assert ("model_variant_loss" in record["summary"]) == (lambda_m + lambda_d > 0)
        assert ("data_variant_loss" in record["summary"]) == (lambda_d > 0)
