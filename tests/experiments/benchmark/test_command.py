"""The benchmark: what it writes and prints, its counts, and that PyTorch computes the same."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import graphs
from ccl_jax.devices import parallel
from experiments import flops
from experiments.benchmark import command, workload
from experiments.benchmark.workload import Seconds, Workload

QUICK = ("--agents=2", "--devices=2", "--batch_size=2", "--repeats=2", "--steps=1")


@pytest.fixture(autouse=True)
def all_devices():
    """JAX runs, with the devices of the whole suite, before a main asks for fewer."""
    assert jax.device_count() >= 8


def run(tmp_path, *given):
    """Exit code and JSON lines."""
    output = tmp_path / "results" / "lines.jsonl"
    code = command.main(["benchmark", *QUICK, f"--output={output}", *given])
    return code, [json.loads(line) for line in output.read_text().splitlines()]


def test_methods_and_pytorch_side_by_side(tmp_path, capsys):
    """Where PyTorch is installed, this also sees that LeNet-5 computes the same there."""
    code, lines = run(tmp_path, "--model=lenet5")
    printed = capsys.readouterr().out
    assert code == 0
    assert lines[0]["kind"] == "matmul"
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["method"] for line in steps] == ["dsgdm-n", "qg-dsgdm-n", "ccl"]
    for line in lines:
        assert line["model"] == "lenet5" and line["agents"] == 2 and line["devices"] == 2
        assert line["made_with"]["jax"] == jax.__version__ and line["date"].startswith("20")
    for line in lines[1:]:
        assert len(line["seconds"]) == 2 and line["cpu_seconds_median"] > 0
        assert 0 < line["seconds_min"] <= line["seconds_median"] <= line["seconds_max"]
        np.testing.assert_allclose(line["matmul_share"], line["gflops"] / lines[0]["gflops"])
    for line in steps:
        assert line["seconds_compile"] > 0
        assert line["program_bytes"] > 2 * 4 * 61_706  # Both agents' parameters, at least.
        assert line["device_peak_bytes"] is None  # A CPU does not count.
        assert line["rss_peak_bytes"] > 1e7
    assert steps[1]["ratio_to_qg"] == 1
    assert "/ QG" in printed and "2 agents x 2 samples" in printed
    if importlib.util.find_spec("torch"):
        assert len(lines) == 6
        assert steps[1]["torch_error"] < 1e-5 and steps[2]["torch_error"] < 1e-5
        assert steps[2]["ratio_to_torch"] > 0 and "/ torch" in printed
    else:
        assert "no comparison with PyTorch: it is not installed" in printed


def test_why_there_is_no_comparison(monkeypatch):
    work = Workload("lenet5", None, "bfloat16", graphs.make("ring", 3), 2, parallel.Plan())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in command.why_not_torch(work)
    monkeypatch.undo()
    pytest.importorskip("torch")
    assert "float32" in command.why_not_torch(work)
    assert "no vgg11" in command.why_not_torch(dataclasses.replace(work, model="vgg11"))


@pytest.mark.slow
def test_scaling(tmp_path, capsys):
    assert command.scales(100) == [8, 16, 32, 64]
    code, lines = run(tmp_path, "--model=digits-cnn", "--scaling", "--max_agents=8", "--devices=8")
    assert code == 0
    assert [line["kind"] for line in lines] == ["scaling", "gossip", "gossip"]
    assert lines[0]["agents"] == 8 and lines[0]["edges"] == 16
    assert lines[0]["ratio_an_agent"] == 1
    np.testing.assert_allclose(lines[0]["seconds_an_agent"], lines[0]["seconds_median"] / 8)
    assert [line["way"] for line in lines[1:]] == ["dense", "sparse"]
    assert "sparse" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet8", "mobilenetv2"])
def test_pytorch_computes_the_same(model):
    """Two steps of CCL on a ring of three, where everyone hears everyone."""
    torch_loop = pytest.importorskip("experiments.benchmark.torch_loop", exc_type=ImportError)
    work = Workload(model, None, "float32", graphs.make("ring", 3), 2, parallel.Plan(3))
    program = workload.Program(work, "ccl")
    loop = torch_loop.Contender(work, "ccl", program.parameters())
    assert command.check(program, loop) < 2e-5


def test_a_difference_from_pytorch_is_refused():
    class Other:
        def __init__(self, x):
            self.x = np.float32(x)

        def parameters(self):
            return {"w": self.x}

        def run(self, steps):
            self.x = self.x + self.move

    ours, theirs = Other(1), Other(1)
    ours.move, theirs.move = np.float32(1), np.float32(2)
    with pytest.raises(ValueError, match=r"differ from PyTorch's by 5.0e-01 of their move"):
        command.check(ours, theirs)


def test_operations_by_hand():
    """digits-cnn on 8x8x1: 64 * 9 * 16 + 16 * 9 * 16 * 64 + 64 * 10 multiply-adds a sample."""
    work = Workload("digits-cnn", None, "float32", graphs.make("ring", 4), 5, parallel.Plan())
    forward = 2 * 5 * (64 * 9 * 16 + 16 * 9 * 16 * 64 + 64 * 10)
    np.testing.assert_allclose(workload.step_gflop(work, "qg-dsgdm-n"), 1e-9 * forward * 3 * 4)
    # Each of four agents runs two neighbours' models.
    np.testing.assert_allclose(workload.step_gflop(work, "ccl"), 1e-9 * forward * (3 * 4 + 8))


def test_grouped_convolutions_count_their_group():
    fn = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", feature_group_count=4, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    jaxpr = jax.make_jaxpr(jax.jit(fn))(jnp.ones((2, 5, 5, 4)), jnp.ones((3, 3, 1, 4)))
    assert flops.count(jaxpr.jaxpr) == 2 * 9 * (2 * 5 * 5 * 4)


def test_ratios_are_taken_round_by_round():
    """The machine is three times slower in the second round."""
    slow = Seconds([2.0, 6.0, 2.2], [0.0] * 3)
    assert slow.ratio_to(Seconds([1.0, 3.0, 1.0], [0.0] * 3)) == 2.0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=lenet6", "did you mean 'lenet5'"),
        ("--agents=1", "flag --agents=1"),
        ("--devices=9", "9 devices were asked for"),
        ("--devices=2", "3 agents cannot be divided evenly"),
        ("--dtype=float16", "float16"),
        ("--topology=rign", "ring"),
        ("--output=/proc/nothing/x", "give another --output"),
        ("more", "'more' is not a flag"),
        ("--max_agents=8", "--max_agents: it goes with --scaling only; leave it out"),
        ("--data_dir=.", "--data_dir: it goes with --whole only"),
        (("--notorch", "--torch_threads=2"), "--torch_threads: --notorch does without"),
        ("--scaling", "--agents: --scaling has numbers of its own"),
    ],
)
def test_bad_input(flag, message, capsys, tmp_path):
    flags = [flag] if isinstance(flag, str) else flag
    given = ["--agents=3", "--devices=1", f"--output={tmp_path}/x", *flags]
    assert command.main(["benchmark", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
