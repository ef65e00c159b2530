"""Data and model flags end to end, for one short epoch each; the presets; preparing with TFDS."""

import io
import json
import pathlib
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import (
    cifar10,
    cifar100,
    cli,
    digits,
    fmnist,
    imagenet,
    imagenette,
    make_presets,
    prepare,
    runner,
)

RNG = np.random.default_rng(0)
TFDS_ZIP = pathlib.Path(__file__).with_name("data") / "tfds.zip"
MAINS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fmnist": fmnist,
    "imagenette": imagenette,
    "imagenet": imagenet,
}


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
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, count in [(f"data_batch_{k}", 16) for k in range(1, 6)] + [("test_batch", 20)]:
            records = [struct.pack("B", k % 10) + RNG.bytes(3072) for k in range(count)]
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = count * 3073
            tar.addfile(info, io.BytesIO(b"".join(records)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder, of which one training image cannot be read."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 8), ("val", 3)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = RNG.integers(0, 256, (40, 36, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.jpg")
    (root / "train" / "ant" / "3.jpg").write_bytes(b"")
    return root


def test_cifar10_from_its_archive(archive, tmp_path):
    flags = ("--agents=2", "--batch_size=20", "--model=lenet5", "--partition=iid", "--lr=0.01")
    code = run(
        cifar10,
        tmp_path / "run",
        *flags,
        f"--data_dir={archive}",
        "--lambda_m=0.1",
        "--lambda_d=0.1",
    )
    assert code == 0
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["steps"] == 2 and summary["images_per_second"] > 0
    split = read(tmp_path / "run" / "partition.json")
    assert np.sum(split["samples_by_agent_and_class"], axis=0).tolist() == [10] * 6 + [5] * 4
    assert split["samples_by_agent"] == [40, 40] and split["classes"][0] == "airplane"


@pytest.mark.slow
@pytest.mark.parametrize("topology, agents", [("ring", 4), ("dyck", 32), ("circulant-torus", 32)])
def test_resnet20_with_ccl_on_the_published_graphs(archive, tmp_path, topology, agents):
    flags = (f"--agents={agents}", f"--topology={topology}", "--batch_size=2", "--partition=iid")
    ccl = ("--lambda_m=0.1", "--lambda_d=0.1", "--model=resnet20", f"--data_dir={archive}")
    assert run(cifar10, tmp_path / "run", *flags, *ccl) == 0
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["parameters"] == 272_474 and np.isfinite(summary["model_variant_loss"])


@pytest.mark.slow
def test_folders_stream_into_resnet18(folder, tmp_path):
    flags = ("--dataset=folder-full", "--model=resnet18", "--agents=2", "--batch_size=2")
    more = ("--partition=iid", "--lambda_m=0.1", "--lambda_d=0.1", f"--data_dir={folder}")
    assert run(imagenet, tmp_path / "run", *flags, *more) == 0
    assert read(tmp_path / "run" / "summary.json")["steps"] == 4


def test_cifar10_from_tfds(tmp_path):
    with zipfile.ZipFile(TFDS_ZIP) as file:
        file.extractall(tmp_path)
    flags = ("--agents=2", "--batch_size=20", "--model=lenet5", "--partition=iid", "--lr=0.01")
    assert run(cifar10, tmp_path / "run", *flags, f"--data_dir={tmp_path}") == 0
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
        (("--batch_size=500",), "larger than the shard of agent"),
        (("--dataset=cifar10",), "no data_dir is given"),
    ],
)
def test_wrong_data_flags(flags, message, tmp_path, capsys):
    assert run(digits, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


def test_presets_are_what_their_maker_writes():
    files = {path.name: path.read_text() for path in make_presets.FOLDER.glob("*.flags")}
    assert files == make_presets.presets() and len(files) == 40


@pytest.mark.parametrize("path", sorted(make_presets.FOLDER.glob("*.flags")), ids=lambda p: p.stem)
def test_presets_are_published_settings(path):
    dataset, graph, alpha = path.stem.split("_")
    seen = []
    main = MAINS[dataset]
    argv = ("main", f"--flagfile={path}")
    assert cli.run_main(lambda c, given: seen.append(c), main.DEFAULTS, main.__doc__, argv) == 0
    config = seen[0]
    agents, topology, gamma = {
        "ring16": (16, "ring", 1.0),
        "ring32": (32, "ring", 1.0),
        "dyck32": (32, "dyck", 0.9),
        "torus32": (32, "circulant-torus", 0.9),
    }[graph]
    assert (config.agents, config.topology, config.gossip_rate) == (agents, topology, gamma)
    assert config.dataset == dataset and f"alpha{config.alpha:g}" == alpha
    assert (config.lr, config.epochs, config.batch_size) == (0.1, 200, 32)
    assert (config.lambda_m, config.lambda_d, config.momentum) == (0.1, 0.1, 0.9)
    assert (
        config.model
        == {
            "cifar10": "resnet20",
            "cifar100": "resnet20",
            "fmnist": "lenet5",
            "imagenette": "mobilenetv2",
            "imagenet": "resnet18",
        }[dataset]
    )
    assert (
        config.augment
        == {
            "cifar10": "flip-crop",
            "cifar100": "flip-crop",
            "fmnist": "none",
            "imagenette": "resized-crop-flip",
            "imagenet": "resized-crop-flip",
        }[dataset]
    )


def test_the_cost_in_a_preset_by_hand():
    content = (make_presets.FOLDER / "cifar10_ring16_alpha0.1.flags").read_text()
    # 50,000 / 16 = 3,125 images are 98 steps of 32; 272,474 parameters, 10 sums of 64, 10 counts.
    steps, bytes_a_step = 200 * 98, 2 * 4 * (272_474 + 10 * 64 + 10)
    assert f"Cost: {steps:,} steps; each agent sends {bytes_a_step:,} bytes a step to 2" in content


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
