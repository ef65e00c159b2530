"""Presets: flag files of the published settings, with what they cost, worked out by hand."""

import pytest

from ccl_jax import graphs
from ccl_jax.devices import parallel
from experiments import cifar10, cifar100, cli, fmnist, imagenet, imagenette, make_presets
from experiments.benchmark.workload import Workload, step_gflop

MAINS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fmnist": fmnist,
    "imagenette": imagenette,
    "imagenet": imagenet,
}


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


def test_the_arithmetic_in_a_preset_by_hand():
    settings = {setting.main: setting for setting in make_presets.SETTINGS}
    # LeNet-5, multiply-adds: 25 for each of 6 x 28 x 28 outputs, 150 for each of 16 x 10 x 10, and
    # three dense layers.
    multiply_adds = 25 * 6 * 784 + 150 * 16 * 100 + 400 * 120 + 120 * 84 + 84 * 10
    assert make_presets.forward_flop(settings["fmnist"]) == 2 * multiply_adds
    assert make_presets.message_bytes(settings["fmnist"]) == 4 * (61_706 + 10 * 84 + 10)
    # The benchmark counts the same for a step: 98 of them are an epoch.
    work = Workload("resnet20", None, "float32", graphs.make("ring", 16), 32, parallel.Plan())
    gflop = 98 * step_gflop(work, "ccl")
    content = (make_presets.FOLDER / "cifar10_ring16_alpha0.1.flags").read_text()
    assert "98 steps of 16 x 32 images, 50,176 with" in content
    assert f"{gflop:,.0f} GFLOP an epoch" in content
