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


@pytest.mark.parametrize(("change", "code"), [("value", 1), ("missing", 2)])
def test_other_recordings_are_told_apart(change, code, tmp_path):
    with np.load(FILE) as file:
        trace = dict(file)
    if change == "value":
        trace["case2.out"] = trace["case2.out"] + 1e-4
    else:
        del trace["case3.out"]
    np.savez(tmp_path / "changed.npz", **trace)
    assert command.main(["parity", f"--trace={tmp_path / 'changed.npz'}"]) == code
