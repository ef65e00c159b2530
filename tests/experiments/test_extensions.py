"""A file of a user's own on the command line: a method, a loss with memory and a graph."""

import json
import sys
import types

import numpy as np
import pytest

from ccl_jax import algorithms, graphs, losses
from ccl_jax.runs import reporter
from ccl_jax.runs.checkpoints import Checkpoints
from experiments import extensions, methods, predict, topologies
from tests.support import tiny_main

MINE = """
import jax
import jax.numpy as jnp

from beside_mine import RATE
from ccl_jax import algorithms, graphs, losses, trees
from ccl_jax.algorithms import base
from ccl_jax.graphs import static


@algorithms.register("mine", summary="DSGD that counts", reference="me", capabilities=base.GOSSIP)
def mine(*, rate: float = RATE):
    def init(params, talk):
        return jnp.zeros((), jnp.int32)

    def communicate(params, count, talk, lr):
        models = talk.send("params", params)
        return base.gossip(talk, models, 1.0)[0], count + 1, models

    def update(grads, eval_params, count, talk, lr):
        return trees.axpy(-lr * rate * 0.99 ** count.astype(lr.dtype), grads, eval_params), count

    return algorithms.Algorithm(init, communicate, update)


@losses.register(
    "drifting", needs=("neighbor_features",), memory=lambda own: jnp.zeros(own.features.shape[-1:]),
    summary="to what has been heard", reference="me",
)
def drifting(own, heard, distance, *, decay=0.5):
    z, real = heard["neighbor_features"]
    heard_now = z.sum(axis=(0, 1)) / (real.sum(dtype=z.dtype) * z.shape[1])
    mean = decay * heard["memory"] + (1 - decay) * heard_now
    return losses.masked_mean(distance(own.features, mean[None]), own.mask), mean


graphs.GRAPHS["both-ways"] = graphs.Graph("both-ways", "a ring, again", static.ring)
"""
FLAGS = (
    "--nofigures",
    "--quiet",
    "--algorithm=mine",
    "--topology=both-ways",
    "--eval_every=1",
    "--batch_size=64",
)
LOSS = ("--feature_loss=drifting:0.1:decay=0.9", "--lambda_m=0.1", "--schedule=constant")


@pytest.fixture
def mine(tmp_path):
    """The file; what it registers is gone after the test."""
    tables = (algorithms.REGISTRY, losses.REGISTRY, graphs.GRAPHS)
    before, loaded, path = [dict(table) for table in tables], extensions.LOADED[:], sys.path[:]
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    (tmp_path / "beside_mine.py").write_text("RATE = 1.0\n")
    yield file
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    extensions.LOADED[:], sys.path[:] = loaded, path
    sys.modules.pop("beside_mine", None)


def run(mine, workdir, *flags):
    argv = ["x", f"--extension={mine}", f"--workdir={workdir}", *FLAGS, *flags]
    return tiny_main.main(argv)


def arrays(workdir):
    saved = Checkpoints(workdir / "checkpoints")
    return saved.arrays(saved.choose("last"))


def test_it_trains_resumes_to_the_bit_and_predicts(mine, tmp_path, capsys):
    assert run(mine, tmp_path / "whole", *LOSS, "--epochs=2") == 0
    assert run(mine, tmp_path / "part", *LOSS, "--epochs=1") == 0
    assert run(mine, tmp_path / "part", *LOSS, "--epochs=2", "--resume") == 0
    whole, part = arrays(tmp_path / "whole"), arrays(tmp_path / "part")
    assert any("memory" in name and np.abs(value).min() > 0 for name, value in whole.items())
    for name, value in whole.items():
        np.testing.assert_array_equal(value, part[name], err_msg=name)
    of_run = f"--run={tmp_path / 'whole'}"
    assert predict.main(["predict", f"--extension={mine}", of_run]) == 0
    del algorithms.REGISTRY["mine"]
    capsys.readouterr()
    assert predict.main(["predict", of_run]) == 2
    error = capsys.readouterr().err
    assert "algorithm mine, which is not registered here" in error and "--extension=FILE" in error
    settings = json.loads((tmp_path / "whole" / "config.json").read_text())
    settings["made_with"]["command"] = ["digits", "-extension", "mine.py", "--epochs=2"]
    (tmp_path / "whole" / "config.json").write_text(json.dumps(settings))
    assert predict.main(["predict", of_run]) == 2
    assert "It was made with --extension=mine.py; give that again." in capsys.readouterr().err


def test_many_devices_are_one(mine, tmp_path):
    for devices in (1, 3):
        assert run(mine, tmp_path / f"{devices}", *LOSS, "--epochs=1", f"--devices={devices}") == 0
    one, three = arrays(tmp_path / "1"), arrays(tmp_path / "3")
    for name, value in one.items():
        np.testing.assert_allclose(value, three[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_it_bears_the_compression_that_it_declares(mine, tmp_path):
    assert run(mine, tmp_path / "run", *LOSS, "--epochs=1", "--compression=int8") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["drifting_loss"] > 0 and np.isfinite(summary["consensus_loss"])


def test_the_lists_have_it(mine, tmp_path, capsys):
    assert methods.main(["methods", f"--extension={mine}", "--algorithm=mine"]) == 0
    assert "rate = 1.0" in capsys.readouterr().out
    assert methods.main(["methods", f"--extension={mine}", "--feature_loss=drifting"]) == 0
    out = capsys.readouterr().out
    assert "keeps: a memory of its own" in out and "settings.toml" not in out
    wanted = [f"--extension={mine}", "--topology=both-ways", f"--out={tmp_path / 'g.png'}"]
    assert topologies.main(["topologies", *wanted]) == 0
    assert "both-ways" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, text, answer",
    [
        ("no.py", None, "no.py is no file; give a Python file"),
        ("a.txt", "", "a.txt is no .py file; give a Python file"),
        ("wrong.py", '\n\nint("twelve")\n', "wrong.py, line 3: invalid literal for int()"),
        ("taken.py", MINE.replace('"mine"', '"dsgd"'), "'dsgd' is there already, in ccl_jax."),
        ("taken.py", MINE.replace('"drifting"', '"moon"'), "'moon' is there already, in ccl_jax."),
    ],
)
def test_what_is_no_extension_is_refused(name, text, answer, mine, tmp_path, capsys):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert run(tmp_path / name, tmp_path / "run") == 2
    assert answer in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_next_command_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=None))
    argv = ["main.py", "--extension=a.py", "--lr=1", "-extension", "b.py", "--epochs=3"]
    expected = ["--extension=main.py", "--extension=a.py", "--extension=b.py"]
    assert reporter.extensions(argv) == expected
    spec = types.SimpleNamespace(name="experiments.digits")
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
    assert reporter.extensions(argv) == expected[1:]
