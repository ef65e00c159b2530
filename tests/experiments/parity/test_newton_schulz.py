"""Recorded Newton-Schulz iterations are replayed from the command line."""

import json
import pathlib

import numpy as np
import pytest

from experiments.parity import command

FILE = (
    pathlib.Path(__file__).parents[2]
    / "fixtures/newton_schulz/mozarturing-demuon_newtonschulz_a.npz"
)


def test_recorded_iterations_are_ours(capsys):
    assert command.main(["parity", f"--trace={FILE}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["passed"], result["cases"]) == (True, 6)


@pytest.mark.parametrize(("change", "code"), [("value", 1), ("nan", 1), ("missing", 2)])
def test_other_recordings_are_told_apart(change, code, tmp_path):
    with np.load(FILE) as file:
        trace = dict(file)
    if change == "value":
        trace["case2.out"] = trace["case2.out"] + 1e-4
    elif change == "nan":
        trace["case2.out"] = trace["case2.out"] * np.nan
    else:
        del trace["case3.out"]
    np.savez(tmp_path / "changed.npz", **trace)
    assert command.main(["parity", f"--trace={tmp_path / 'changed.npz'}"]) == code


def test_matrices_that_lack_rank_and_other_numbers_of_iterations(tmp_path):
    # Zero singular values make rounding grow: here by 3.4 ** 8.
    rng = np.random.default_rng(0)
    g = (rng.normal(size=(6, 2)) @ rng.normal(size=(2, 10))).astype(np.float32)
    x = g.astype(np.float64) / (np.linalg.norm(g.astype(np.float64)) + 1e-7)
    for _ in range(8):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    with np.load(FILE) as file:
        config = json.loads(str(file["config"]))
    config["cases"] = [{"shape": [6, 10], "steps": 8, "rank": 2}]
    arrays = {"case0.G": g, "case0.out": x}
    np.savez(tmp_path / "more.npz", config=json.dumps(config), **arrays)
    assert command.main(["parity", f"--trace={tmp_path / 'more.npz'}"]) == 0
