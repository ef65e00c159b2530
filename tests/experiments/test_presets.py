"""Presets: the published settings by name, with what they cost, worked out by hand."""

import pytest

from ccl_jax import graphs
from ccl_jax.devices import parallel
from experiments import cifar10, cifar100, cli, digits, flops, fmnist, imagenet, imagenette, presets
from experiments.benchmark.workload import Workload, step_gflop

MAINS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fmnist": fmnist,
    "imagenette": imagenette,
    "imagenet": imagenet,
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_are_published_settings(name):
    dataset, graph, alpha = name.split("/")
    seen = []
    main = MAINS[dataset]
    argv = ("main", f"--preset={name}")
    assert cli.run_main(lambda c, given: seen.append(c), main.DEFAULTS, main.__doc__, argv) == 0
    config = seen[0]
    agents, topology, gamma = {
        "ring16": (16, "ring", 1.0),
        "ring32": (32, "ring", 1.0),
        "dyck32": (32, "dyck", 0.9),
        "torus32": (32, "circulant-torus", 0.9),
    }[graph]
    assert (config.agents, config.topology, config.gossip_rate) == (agents, topology, gamma)
    assert config.dataset == dataset and f"{config.alpha:g}" == alpha
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
    content = presets.describe("cifar10/ring16/0.1")
    # 50,000 / 16 = 3,125 images are 98 steps of 32; 272,474 parameters, 10 sums of 64, 10 counts.
    steps, bytes_a_step = 200 * 98, 2 * 4 * (272_474 + 10 * 64 + 10)
    assert f"Cost: {steps:,} steps; each agent sends {bytes_a_step:,} bytes a step to 2" in content


def test_the_arithmetic_in_a_preset_by_hand():
    settings = {setting.main: setting for setting in presets.SETTINGS}
    # LeNet-5, multiply-adds: 25 for each of 6 x 28 x 28 outputs, 150 for each of 16 x 10 x 10, and
    # three dense layers.
    multiply_adds = 25 * 6 * 784 + 150 * 16 * 100 + 400 * 120 + 120 * 84 + 84 * 10
    assert flops.forward("lenet5", 10, (28, 28, 1)) == 2 * multiply_adds
    assert presets.message_bytes(settings["fmnist"]) == 4 * (61_706 + 10 * 84 + 10)
    # The benchmark counts the same for a step: 98 of them are an epoch.
    work = Workload("resnet20", None, "float32", graphs.make("ring", 16), 32, parallel.Plan())
    gflop = 98 * step_gflop(work, "ccl")
    content = presets.describe("cifar10/ring16/0.1")
    assert "98 steps of 16 x 32 images, 50,176 with" in content
    assert f"{gflop:,.0f} GFLOP an epoch" in content


def configured(*argv):
    seen = []
    code = cli.run_main(
        lambda config, given: seen.append((config, given)), cifar10.DEFAULTS, "", ("main", *argv)
    )
    return code, *(seen[0] if seen else (None, None))


def test_flags_beside_a_preset_are_stronger_in_any_order():
    assert len(presets.PRESETS) == 40
    for argv in (
        ("--preset=dyck32/0.01", "--lr=0.3"),
        ("--lr=0.3", "--preset=cifar10/dyck32/0.01"),
    ):
        code, config, given = configured(*argv)
        assert code == 0 and (config.lr, config.agents, config.alpha) == (0.3, 32, 0.01)
        assert {"lr", "topology", "algorithm"} <= given and "seed" not in given


@pytest.mark.parametrize(
    "name, said",
    [
        ("ring17/0.1", "did you mean 'cifar10/ring16/0.1'"),
        ("fmnist/ring16/0.1", "is for python -m experiments.fmnist"),
    ],
)
def test_an_unknown_preset_is_one_line(name, said, capsys):
    assert configured(f"--preset={name}")[0] == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_main_without_presets_says_so(capsys):
    argv = ("main", "--preset=ring16/0.1")
    assert cli.run_main(lambda *_: None, digits.DEFAULTS, "", argv) == 2
    assert "there are no presets for digits" in capsys.readouterr().err


def test_the_main_lists_and_describes(capsys):
    assert presets.main(["presets"]) == 0
    assert capsys.readouterr().out.split() == list(presets.PRESETS)
    assert presets.main(["presets", "--preset=fmnist/ring16/0.01"]) == 0
    text = capsys.readouterr().out
    assert (
        "python -m experiments.fmnist --preset=ring16/0.01" in text and "no normalisation" in text
    )
    assert presets.main(["presets", "--preset=mnist"]) == 2
