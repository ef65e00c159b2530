"""Rows of metrics as TensorBoard reads them."""

import sys

import pytest

from ccl_jax.runs import tensorboard
from tests.support.events import scalars


def test_every_number_of_a_row_is_there_at_its_step(tmp_path):
    rows = [
        {"epoch": 1, "step": 15, "cross_entropy": 2.25, "prototype_loss": None, "bytes": 1200},
        {"epoch": 2, "step": 30, "cross_entropy": 1.5, "prototype_loss": 0.125, "diverged": "why"},
    ]
    with tensorboard.scalars(tmp_path / "board") as write:
        for row in rows:
            write(row)
    (file,) = (tmp_path / "board").iterdir()
    assert scalars(file) == {
        "cross_entropy": [(15, 2.25), (30, 1.5)],
        "bytes": [(15, 1200.0)],
        "prototype_loss": [(30, 0.125)],
    }


def test_without_the_package_it_says_what_to_install(monkeypatch):
    tensorboard.check()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install .*tensorboard.* leave --tensorboard out"):
        tensorboard.check()
