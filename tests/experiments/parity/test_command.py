"""The authors' recorded runs, replayed; and recordings that must not pass, or cannot be replayed."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from experiments.parity import command, traces

TRAJECTORIES = pathlib.Path(__file__).parents[2] / "fixtures" / "trajectories"
FULL4 = TRAJECTORIES / "full4_lenet5_dsgdm.npz"


def run(path, capsys):
    """Exit code, what was printed, and what was said on stderr."""
    code = command.main(["parity", f"--trace={path}"])
    out, err = capsys.readouterr()
    return code, out, err


def run_as_users_do(path):
    """The same of a process that compiles as outside of tests."""
    for_tests = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: text for name, text in os.environ.items() if name not in for_tests}
    # The instruction set to compile for stays.
    flags = os.environ.get("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "max_isa" in flag)
    command = [sys.executable, "-m", "experiments.parity", f"--trace={path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def changed(tmp_path, config=None, drop=(), steps=None, arrays=None):
    """A copy of a recording with some of it changed, cut to its first steps if asked."""
    trace = traces.load(FULL4)
    settings = json.loads(str(trace["config"])) | (config or {})
    if steps:
        settings["lr"] = settings["lr"][:steps]
        timed = ("images", "labels", "losses", "param_norm", "consensus_distance")
        trace |= {name: trace[name][:steps] for name in timed}
        ends = [name for name in trace if name == "momentum_norm" or name.startswith("final.")]
        drop = (*drop, *ends)  # of the last step
    trace["config"] = np.array(json.dumps(settings))
    trace |= arrays or {}
    path = tmp_path / "changed.npz"
    np.savez(path, **{name: array for name, array in trace.items() if name not in drop})
    return path


@pytest.mark.parametrize(
    "name, terms",
    [
        ("ring5_lenet5_qg_ccl", 5),
        ("ring5_lenet5_dsgdm_mv", 5),
        ("full4_lenet5_dsgdm", 5),
        ("ring4_resnet20_qg_ccl", 4),  # No final parameters are recorded.
    ],
)
def test_the_authors_runs_are_replayed(name, terms, capsys):
    path = TRAJECTORIES / f"{name}.npz"
    code, out, err = run_as_users_do(path) if name == "ring5_lenet5_qg_ccl" else run(path, capsys)
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    result = json.loads(line)
    assert result.pop("passed") is True
    assert len(result) == terms
    assert result["max_loss_error"] <= 5e-6
    assert result["max_param_norm_error"] <= 2e-6
    assert result["max_consensus_error"] <= 2e-6
    assert result["max_momentum_norm_error"] <= 2e-6
    assert result.get("max_param_error", 0.0) <= 2e-6


@pytest.mark.parametrize(
    "config",
    [
        {"lambda_m": 0.01},
        pytest.param({"momentum": 0.89}, marks=pytest.mark.slow),
        pytest.param({"weight_decay": 5e-4}, marks=pytest.mark.slow),
        pytest.param({"gossip_rate": 0.99}, marks=pytest.mark.slow),
    ],
    ids=lambda config: next(iter(config)),
)
def test_another_setting_does_not_pass(config, tmp_path, capsys):
    code, out, err = run(changed(tmp_path, config, steps=3), capsys)
    assert (code, err) == (1, "")
    assert json.loads(out)["passed"] is False


def test_a_recording_cut_short_passes_and_one_wrong_number_does_not(tmp_path, capsys):
    assert run(changed(tmp_path, steps=2), capsys)[0] == 0
    losses = traces.load(FULL4)["losses"]
    losses[0, 3, 2] += 1e-4
    assert run(changed(tmp_path, steps=2, arrays={"losses": losses[:2]}), capsys)[0] == 1
    losses[0, 3, 2] = np.nan
    code, out, _ = run(changed(tmp_path, steps=2, arrays={"losses": losses[:2]}), capsys)
    assert code == 1
    assert json.loads(out)["max_loss_error"] is None  # NaN is not JSON


def complaint(result):
    """The one line of a run that ends with exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(
    "damage, said",
    [
        ({"drop": ["config"]}, "config"),
        ({"drop": ["losses"]}, "losses"),
        ({"drop": ["images", "neighbors"]}, "images, neighbors"),
        ({"drop": ["init.fc3.bias"]}, "bias"),
        ({"drop": ["init.conv1.weight"]}, "conv1/kernel is missing"),
        ({"drop": ["final.conv1.bias"]}, "conv1/bias is missing"),
        ({"config": {"arch": "lenet6"}}, "lenet6"),
        ({"config": {"arch": "resnet20"}}, "fc1.weight"),
        ({"config": {"arch": 5}}, "arch = 5"),
        ({"config": {"lr": [0.1]}}, "lr"),
        ({"config": {"norm": "layer"}}, "layer"),
        ({"config": {"distance": "l3"}}, "l3"),
        ({"arrays": {"config": np.array("{")}}, "JSON"),
        ({"arrays": {"config": np.array("[]")}}, "JSON object"),
        ({"arrays": {"config": np.array("{}")}}, "arch"),
        ({"arrays": {"labels": np.zeros((6, 4, 7), int)}}, "labels"),
        ({"arrays": {"labels": np.full((6, 4, 8), 10)}}, "labels"),
        ({"arrays": {"labels": np.zeros((6, 4, 8))}}, "integers"),
        ({"arrays": {"neighbors": np.full((4, 3), 9)}}, "9"),
        ({"arrays": {"images": np.zeros((6, 4, 8, 3, 3, 1))}}, "3 x 3 x 1"),
        ({"arrays": {"images": np.array("none")}}, "images"),
        ({"arrays": {"init.fc1.weight": np.zeros((120, 401))}}, "init"),
        ({"arrays": {"final.fc1.bias": np.zeros((4, 121))}}, "final"),
    ],
)
def test_a_damaged_recording_is_one_line(damage, said, tmp_path, capsys):
    assert said in complaint(run(changed(tmp_path, **damage), capsys))


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys):
    path = tmp_path / "trace.npz"
    assert "does not exist" in complaint(run(path, capsys))
    assert "not a readable" in complaint(run(tmp_path, capsys))
    whole = FULL4.read_bytes()
    flipped = bytearray(whole)
    with zipfile.ZipFile(FULL4) as archive:
        at = archive.getinfo("images.npy").header_offset + 1000
    flipped[at : at + 100] = bytes(100)
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, config=np.array([{}], object))
    for damaged in (
        b"",
        b"no archive",
        whole[: len(whole) // 2],
        bytes(flipped),
        array.read_bytes(),
        pickled.read_bytes(),
    ):
        path.write_bytes(damaged)
        line = complaint(run(path, capsys))
        assert str(path) in line
        assert "not a readable" in line


def test_what_the_command_line_lacks(capsys):
    def said(*argv):
        code = command.main(["parity", *argv])
        return code, *capsys.readouterr()

    assert "--trace=FILE" in complaint(said())
    assert "tarce" in complaint(said("--tarce=x.npz"))
    code, out, _ = said("--help")
    assert code == 0
    assert "--trace" in out


def test_a_damaged_recording_on_quadratics_is_one_line(tmp_path, capsys):
    n, steps = 3, 2
    trace = {
        "A": np.tile(np.eye(2), (n, 1, 1)),
        "c": np.zeros((n, 2)),
        "x0": np.zeros(2),
        "W": np.full((n, n), 1 / 3),
        "lr": np.full(steps, 0.1),
        "x": np.zeros((steps, n, 2)),
    }
    source = {"source": "epfml/quasi-global-momentum", "method": "D2"}
    path = tmp_path / "quadratics.npz"

    def said(config, **arrays):
        np.savez(path, config=np.array(json.dumps(config)), **(trace | arrays))
        return run(path, capsys)

    # All agents start where every gradient is 0: nothing moves.
    code, out, _ = said(source | {"weight_decay": 0.0})
    assert code == 0
    assert json.loads(out)["max_error"] == 0.0
    assert "weight_decay" in complaint(said(source | {"weight_decay": "some"}))
    assert "method" in complaint(said({"source": "epfml"}))
    assert "not offered" in complaint(said({"source": "epfml", "method": "D3"}))
    assert "c is" in complaint(said(source, c=np.zeros((n, 3))))
