"""Recorded mixing matrices are replayed from the command line."""

import json
import pathlib

import numpy as np
import pytest

from experiments.parity import command

FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures" / "graphs"


@pytest.mark.parametrize(("name", "graphs"), [("takezawa-basegraph", 30), ("jin-equitopo", 14)])
def test_recorded_matrices_are_ours(name, graphs, capsys):
    assert command.main(["parity", f"--trace={FIXTURES / name}_matrices_a.npz"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["passed"], result["graphs"]) == (True, graphs)
    assert result["max_error"] < 1e-7


@pytest.mark.parametrize(
    ("change", "code"), [("weight", 1), ("nan", 1), ("unknown", 2), ("draws", 2), ("rounds", 2)]
)
def test_other_matrices_are_told_apart(change, code, tmp_path):
    with np.load(FIXTURES / "jin-equitopo_matrices_a.npz") as file:
        trace = dict(file)
    name = "W_t.OU-EquiDyn_n8_eta1.0_seed0"
    if change == "weight":
        trace[name] = trace[name] + 1e-5
    elif change == "nan":
        trace[name] = trace[name] * np.nan
    elif change == "unknown":
        trace["W.torus_n8"] = np.eye(8)
    elif change == "draws":
        del trace["start.OU-EquiDyn_n8_eta1.0_seed0"]
    else:
        trace[name] = trace[name][:-1]
    np.savez(tmp_path / "changed.npz", **trace)
    assert command.main(["parity", f"--trace={tmp_path / 'changed.npz'}"]) == code
