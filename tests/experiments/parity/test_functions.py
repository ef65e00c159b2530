"""Recordings of losses, SAM and DFedSAM: replayed, changed so that they must fail, and damaged."""

import json
import pathlib

import numpy as np
import pytest

from experiments.parity import command, traces

FOLDER = pathlib.Path(__file__).parents[2] / "fixtures" / "methods_2026"
MOON, DECORR, PROTO = "moon_loss_a", "feddecorr_loss_a", "fedproto_loss_a"
SAM, ROUNDS = "sam_step_a", "ericloong-dadpfl_dfedsam_a"


def changed(name, arrays=None, drop=(), cases=None, **config):
    """A recording with some of it changed: whole arrays by functions, settings, settings of cases."""
    trace = traces.load(FOLDER / f"{name}.npz")
    settings = json.loads(str(trace["config"])) | config
    for k, change in (cases or {}).items():
        settings["cases"][k] |= change
    trace["config"] = np.array(json.dumps(settings))
    for entry, change in (arrays or {}).items():
        trace[entry] = np.asarray(change(trace[entry]))
    return {entry: array for entry, array in trace.items() if entry not in drop}


def run(trace, tmp_path, capsys):
    """Exit code, the printed result or None, and what was said on stderr."""
    np.savez(tmp_path / "trace.npz", **trace)
    code = command.main(["parity", f"--trace={tmp_path / 'trace.npz'}"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.parametrize(
    "name, kinds",
    [
        (MOON, {"loss", "gradient"}),
        (DECORR, {"loss", "gradient"}),
        (PROTO, {"loss", "gradient", "prototype"}),
        (SAM, {"loss", "gradient", "param"}),
        (ROUNDS, {"param"}),
    ],
)
def test_recordings_are_reproduced(name, kinds, tmp_path, capsys):
    code, result, err = run(changed(name), tmp_path, capsys)
    assert (code, err) == (0, "")
    assert result.pop("passed") is True and result.pop("method")
    assert set(result) == {f"max_{kind}_error" for kind in kinds}
    assert max(result.values()) < 1e-12  # float64 on both sides


def shift(x):
    return x + 2e-5


def far(x):
    return x + 2e-4


@pytest.mark.parametrize(
    "name, change",
    [
        (MOON, {"cases": {4: {"temperature": 0.51}}}),
        (MOON, {"cases": {0: {"mu": 1.01}}}),
        (MOON, {"arrays": {"case2.loss_con": shift}}),
        (MOON, {"arrays": {"case5.grad_z": shift}}),
        (MOON, {"arrays": {"case4.z_previous": lambda z: z[:2]}}),
        (DECORR, {"arrays": {"case3.loss": shift}}),
        (DECORR, {"arrays": {"case6.grad_x": shift}}),
        (DECORR, {"arrays": {"case6.grad_x": lambda g: np.nan * g}}),
        (PROTO, {"ld": 0.9}),
        (PROTO, {"arrays": {"client2.loss2": shift}}),
        (PROTO, {"arrays": {"local_prototypes": shift}}),
        (PROTO, {"arrays": {"global_prototypes": shift}}),
        (PROTO, {"arrays": {"global_has": np.logical_not}}),
        (PROTO, {"arrays": {"local_counts": lambda n: n + (n > 0)}}),
        (SAM, {"cases": {0: {"rho": 0.06}}}),
        (SAM, {"cases": {2: {"adaptive": False}}}),
        (SAM, {"cases": {3: {"nesterov": False}}}),
        (SAM, {"cases": {1: {"weight_decay": 0.02}}}),
        (SAM, {"arrays": {"case1.sam_grad_bias": shift}}),
        (SAM, {"arrays": {"case1.perturbed_loss": shift}}),
        (SAM, {"arrays": {"case3.bias": far}}),
        (ROUNDS, {"rho": 0.0}),
        (ROUNDS, {"momentum": 0.8}),
        (ROUNDS, {"local_steps": 2}),
        (ROUNDS, {"arrays": {"bias": far}}),
        (ROUNDS, {"arrays": {"lr": lambda lr: lr[::-1]}}),
        (ROUNDS, {"arrays": {"W": lambda w: np.full_like(w, 1 / len(w))}}),
    ],
)
def test_a_changed_recording_fails(name, change, tmp_path, capsys):
    code, result, err = run(changed(name, **change), tmp_path, capsys)
    assert (code, err) == (1, "") and result["passed"] is False


def test_other_sizes_and_settings_are_read_from_the_file(tmp_path, capsys):
    """Fewer cases, clients that end early, and fewer rounds are replayed as they stand."""
    few = changed(MOON, cases=None)
    settings = json.loads(str(few["config"]))
    few["config"] = np.array(json.dumps(settings | {"cases": settings["cases"][:2]}))
    assert run(few, tmp_path, capsys)[0] == 0
    short = {
        f"client1.{name}": lambda x, n=n: x[:n]
        for name, n in (
            ("features_next", 8),
            ("labels_next", 8),
            ("loss2", 1),
            ("grad_features", 8),
        )
    }
    assert run(changed(PROTO, short), tmp_path, capsys)[0] == 0
    rounds = dict.fromkeys(("lr", "weight", "bias"), lambda x: x[:3])
    assert run(changed(ROUNDS, rounds), tmp_path, capsys)[0] == 0
    # A tolerance of 1e-4 for parameters, 1e-5 for all else.
    assert run(changed(ROUNDS, {"bias": shift}), tmp_path, capsys)[0] == 0


@pytest.mark.parametrize(
    "name, change, said",
    [
        (MOON, {"drop": ["case3.z_global"]}, "lacks case3.z_global"),
        (MOON, {"cases": {1: {"mu": "one"}}}, "case 1 of the recording's config"),
        (MOON, {"cosine_eps": 1e-6}, "cosine_eps = 1e-06 is not offered: ours is 1e-08"),
        (MOON, {"reduction": "sum"}, "'sum' is not offered"),
        (MOON, {"arrays": {"case0.z": lambda z: z[:, :3]}}, "case0.z_global is"),
        ("moon_loss_a", {"method": "LUNA"}, "lacks images"),
        (DECORR, {"eps": 1e-5}, "eps = 1e-05 is not offered"),
        (PROTO, {"drop": ["client1.loss2"]}, "lacks client1.loss2"),
        (PROTO, {"clients": 2}, "2 clients"),
        (PROTO, {"classes": 7}, "7 classes"),
        (PROTO, {"batch_size": 4}, "client0.loss2 has 3 values"),
        (PROTO, {"arrays": {"client0.labels": lambda y: y + 6}}, "client0.labels go from"),
        (SAM, {"model": "a network"}, "'a network'"),
        (SAM, {"cases": {0: {"momentum": 1.5}}}, "momentum of dsgdm is 1.5"),
        (SAM, {"arrays": {"case0.labels": lambda y: y - 1}}, "labels go from -1"),
        (ROUNDS, {"batch_size": 6}, "3 batches of 6"),
        (ROUNDS, {"arrays": {"W": lambda w: 2 * w}}, "sum to 1"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(name, change, said, tmp_path, capsys):
    code, result, err = run(changed(name, **change), tmp_path, capsys)
    assert (code, result) == (2, None)
    (line,) = err.splitlines()
    assert said in line


def test_every_kind_of_recording_has_its_replay():
    """By what the recordings have: the first that fits, and training where none does."""
    folder = FOLDER.parent
    files = [*FOLDER.glob("*.npz"), folder / "algorithms" / "aketi_mt_a.npz"]
    for file in files:
        trace = traces.load(file)
        assert [known.fits(trace) for known in command.REPLAYERS].count(True) == 1
    training = traces.load(folder / "trajectories" / "full4_lenet5_dsgdm.npz")
    assert not any(known.fits(training) for known in command.REPLAYERS)
    assert traces.method({"config": np.array("{")}) == ""
