"""Mistakes in a user's own method, loss, graph or file: one line that says which, and where."""

import sys

import networkx as nx
import numpy as np
import pytest

from ccl_jax import algorithms, graphs, losses, models
from experiments import extensions
from tests.support import tiny_main

METHOD = """
import jax, jax.numpy as jnp
from ccl_jax import algorithms

@algorithms.register("own-m", summary="x", reference="x", capabilities=algorithms.base.GOSSIP)
def own(*, momentum=0.9):
    base = algorithms.make("dsgdm-n")
    return algorithms.Algorithm(base.init, COMMUNICATE, UPDATE)
"""
LOSS = """
import jax.numpy as jnp
from ccl_jax.losses import base

@base.register("own-l", NEEDS summary="x", reference="x")
def own(own, heard, distance):
    return RETURN
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs a file of one's own; what it says on stderr, with the exit code."""
    tables = (algorithms.REGISTRY, losses.REGISTRY, graphs.GRAPHS)
    before = [dict(table) for table in tables]
    monkeypatch.setattr(extensions, "LOADED", [])

    def run(text, *flags):
        file = tmp_path / "mine.py"
        file.write_text(text)
        given = [f"--extension={file}", f"--workdir={tmp_path / 'run'}", "--epochs=1", *flags]
        code = tiny_main.main(["digits", *given, "--quiet", "--nofigures"])
        said = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(said) == 1
        return said[0], code

    yield run
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize(
    ("communicate", "update", "said"),
    [
        ("lambda p, s, t, lr: (p, s)", "base.update", "communicate of the method returns 2 values"),
        ("base.communicate", "lambda *a: None", "update of the method returns NoneType; it must"),
        (
            "base.communicate",
            "lambda g, p, s, t, lr: (p, {'a': s})",
            "update of the method returns the state",
        ),
        (
            "base.communicate",
            "lambda g, p, s, t, lr: (jax.tree.map(lambda x: x[..., None], p), s)",
            "and must stay so",
        ),
        (
            "base.communicate",
            "lambda g, p, s, t, lr: (jax.tree.map(lambda x: x.astype(jnp.bfloat16), p), s)",
            "update of the method returns params['Dense_0']['bias'] as bfloat16[",
        ),
        (
            "base.communicate",
            "lambda *a: base.update(*a)[::-1]",
            "update of the method returns (state, params), and not (params, state)",
        ),
        (
            "base.communicate",
            "lambda g, p, s, t, lr: ({**p, 'a': lr}, s)",
            "returns the params with float32[] at ['a'], where nothing was",
        ),
        (
            "lambda p, s, t: (p, s, None)",
            "base.update",
            "communicate of own-m is called with (params, state, talk, lr) and does not fit: too many",
        ),
        ("base.communicate", "3", "update of own-m is 3; it must be a function"),
        (
            "lambda p, s, t, lr: (p, s, p)",
            "base.update",
            "communicate of the method returns dict as models; it must be what talk.send",
        ),
        (
            "lambda p, s, t, lr: (t.send('params', p), s, None)",
            "base.update",
            "communicate of the method returns eval_params.own['Dense_0']['bias'] as float32",
        ),
        (
            "lambda p, s, t, lr: (None, s, None)",
            "base.update",
            "eval_params['Dense_0']['bias'] as nothing, which in params is float32[3, 6]",
        ),
        (
            "lambda p, s, t, lr: (t.gather(t.send('params', p)), s, None)",
            "base.update",
            "communicate of the method returns eval_params['Dense_0']['bias'] as float32[3, 2, 6]",
        ),
        (
            "lambda p, s, t, lr: (p, s, t.send('both', (p, p)))",
            "base.update",
            "communicate of the method returns models[0]['Dense_0']['bias'] as float32[3, 6]",
        ),
        # An error in the function itself has its line.
        ("lambda p, s, t, lr: p.nothing", "base.update", "mine.py, line 8, in <lambda>: Attrib"),
    ],
)
def test_a_method(communicate, update, said, run):
    text = METHOD.replace("COMMUNICATE", communicate).replace("UPDATE", update)
    line, code = run(text, "--algorithm=own-m", "--devices=1")
    assert said in line and code == 2


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("lambda params: 0", "init of own-m is called with (params, talk) and does not fit"),
        ("lambda params, talk: {'a': 'text'}", "returns state['a'] as str; it must be of numbers"),
        ("lambda params, talk: jax.random.key(0)", "returns state as key<fry>[]; it must be of n"),
        (
            "lambda params, talk: jnp.zeros(7)",
            "as float32[7]; it must be of numbers, one alone or [",
        ),
    ],
)
def test_how_a_method_begins(init, said, run):
    text = METHOD.replace("base.init", init).replace("COMMUNICATE, UPDATE", "*base[1:3]")
    line, code = run(text, "--algorithm=own-m", "--devices=1")
    assert said in line and code == 2


def test_a_hyper_parameter_without_a_default(run):
    line, code = run(METHOD.replace("momentum=0.9", "momentum"), "--algorithm=own-m")
    assert "line 5: momentum of own-m has no default; write momentum=VALUE" in line and code == 2


def test_what_builds_a_method(run):
    text = METHOD.replace("return algorithms.Algorithm(base.init, COMMUNICATE, UPDATE)", "return 3")
    line, code = run(text, "--algorithm=own-m")
    assert "what builds own-m returns int; it must return an Algorithm" in line and code == 2


@pytest.mark.parametrize(
    ("needs", "value", "said"),
    [
        (
            "",
            "own.features.sum(axis=1)",
            "feature loss own-l returns float32[64]; it must return a",
        ),
        ("", "None", "feature loss own-l returns None; it must return a scalar"),
        ("", "own.labels.sum()", "feature loss own-l returns int32[]; it must return a scalar"),
        (
            "memory=lambda own: (jnp.zeros(2),),",
            "own.features.sum()",
            "must return (scalar, memory)",
        ),
        (
            "needs='class_sums',",
            "0.0",
            "needs of feature loss own-l are a text, 'class_sums'; write (",
        ),
        ("", "heard['class_sums']", "mine.py, line 7, in own: KeyError: 'class_sums'"),
        ("memory=lambda own: 'a',", "0.0, 0", "memory of feature loss own-l begins with str"),
        ("memory=lambda own: 0.0,", "0.0, own", "returns the memory.features float32["),
        ("memory=lambda: 0.0,", "0.0, 0.0", "memory of feature loss own-l is called with (own)"),
    ],
)
def test_a_loss(needs, value, said, run):
    text = LOSS.replace("NEEDS", needs).replace("RETURN", value)
    flags = ("--algorithm=dsgd", "--feature_loss=own-l:1", "--batch_size=64")
    line, code = run(text, *flags)
    assert said in line and code == 2


def test_what_a_loss_is_given(run):
    text = LOSS.replace("NEEDS", "").replace("RETURN", "0.0").replace(", distance)", ")")
    line, code = run(text, "--algorithm=dsgd", "--feature_loss=own-l:1")
    assert "own-l is called with (own, heard, distance) and does not fit: too many" in line
    assert code == 2
    line, code = run(text.replace("heard)", "heard, distance, heat)"), "--algorithm=dsgd")
    assert "heat of feature loss own-l has no default; write heat=VALUE" in line and code == 2


def test_a_loss_that_is_not_finite_is_what_is_blamed(run):
    text = LOSS.replace("NEEDS", "").replace("RETURN", "own.features.mean() * jnp.nan")
    line, code = run(text, "--algorithm=dsgd", "--feature_loss=own-l:1")
    assert "likely own-l itself, as the cross-entropy is finite; or the learning rate" in line
    assert code == 1


def test_a_derivative_that_is_not_finite_is_what_is_blamed(run):
    text = LOSS.replace("NEEDS", "").replace("RETURN", "jnp.linalg.norm(0 * own.features)")
    line, code = run(text, "--algorithm=dsgd", "--feature_loss=own-l:1")
    assert "the gradient is no longer finite at step 1, agent 0" in line
    assert "own-l loss 0, gradient norm nan); likely a derivative, as of a norm" in line
    assert code == 1


def test_a_file_that_has_changed_is_said_where_a_run_goes_on(run, tmp_path, capsys):
    file = tmp_path / "mine.py"
    flags = ["--algorithm=dsgd", "--feature_loss=own-l:1", f"--extension={file}", "--nofigures"]
    for k, more in enumerate(([], ["--epochs=3", "--resume"])):
        file.write_text(LOSS.replace("NEEDS", "").replace("RETURN", f"own.features.mean() * {k}"))
        capsys.readouterr()
        given = [f"--workdir={tmp_path / 'own'}", "--epochs=2", *flags, *more]
        assert tiny_main.main(["digits", *given]) == 0
        said = capsys.readouterr().err
        assert ("was started with others: mine.py " in said) == bool(more)
        del losses.REGISTRY["own-l"]
        extensions.LOADED.clear()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("np.ones((2, 2))", "what builds topology own-g returns float64[2, 2]; it must return a"),
        (
            "nx.cycle_graph(agents)",
            "what builds topology own-g returns Graph; it must return a matrix",
        ),
        (
            "0.5 * nx.to_numpy_array(nx.cycle_graph(agents))",
            "returns 0.5 as a number of edges",
        ),
        ("np.full((agents, agents), np.nan)", "what builds topology own-g returns nan as a number"),
        ("[[1], [2, 3]]", "what builds topology own-g returns list; it must return a matrix"),
        ("nx.random_regular_graph(3, 5)", "mine.py, line 6, in own: NetworkXError: "),
    ],
)
def test_a_graph(value, said, run):
    text = """
import networkx as nx, numpy as np
from ccl_jax.graphs import GRAPHS, Graph

def own(agents):
    return VALUE

GRAPHS["own-g"] = Graph("own-g", "x", own)
"""
    line, code = run(text.replace("VALUE", value), "--algorithm=dsgd", "--topology=own-g")
    assert said in line and code == 2


def test_what_a_graph_is_given(run):
    text = """
from ccl_jax.graphs import GRAPHS, Graph, make

GRAPHS["own-g"] = Graph("own-g", "x", lambda: None)
"""
    line, code = run(text, "--algorithm=dsgd", "--topology=own-g")
    assert "what builds topology own-g takes nothing; it must take the number of agents" in line
    assert code == 2


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("logits", "Own returns float32[8, 10]; a model must return (features, logits)"),
        ("(logits, images)", "Own returns logits float32[8, 64]; a model must return"),
        ("(images, nn.Dense(3)(images))", "Own returns logits float32[8, 3]; a model must return"),
        ("(images, logits.argmax(-1))", "Own returns logits int32[8]; a model must return (f"),
        ("(images[..., None], logits)", "Own returns features float32[8, 64, 1]"),
    ],
)
def test_a_model(returned, said, run):
    text = f"""
from flax import linen as nn
from ccl_jax import models

class Own(nn.Module):
    num_classes: int
    dtype: object

    @nn.compact
    def __call__(self, images):
        images = images.reshape(len(images), -1)
        logits = nn.Dense(self.num_classes)(images)
        return {returned}

models.MODELS["own-net"] = Own
"""
    try:
        line, code = run(text, "--algorithm=dsgd", "--model=own-net", "--batch_size=8")
    finally:
        models.MODELS.pop("own-net", None)
    assert said in line and code == 2


def test_a_graph_of_floats_that_count_edges_is_fine(monkeypatch):
    """As networkx gives them."""
    own = graphs.Graph("own-g", "x", lambda agents: nx.to_numpy_array(nx.cycle_graph(agents)))
    monkeypatch.setitem(graphs.GRAPHS, "own-g", own)
    made, ring = graphs.make("own-g", 5), graphs.make("ring", 5)
    np.testing.assert_array_equal(made.weights, ring.weights)
    np.testing.assert_array_equal(made.neighbors, ring.neighbors)


def test_an_edge_to_oneself_does_not_count(monkeypatch):
    loops = lambda n: nx.to_numpy_array(nx.cycle_graph(n)) + np.eye(n)
    monkeypatch.setitem(graphs.GRAPHS, "own-g", graphs.Graph("own-g", "x", loops))
    np.testing.assert_array_equal(graphs.make("own-g", 5).weights, graphs.make("ring", 5).weights)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nx = (", "mine.py, line 2: "),
        ("eval('1 +')", "mine.py, line 1: SyntaxError: invalid syntax"),
        ("raise KeyError", "mine.py, line 1: KeyError"),
        ("import nothing_of_this_name", "mine.py, line 1: ModuleNotFoundError: No module named"),
        ("\n\nint('twelve')", "mine.py, line 3: invalid literal for int()"),
        ("raise SystemExit(0)", "mine.py ends the program; an extension registers what it has"),
    ],
)
def test_a_file(text, said, run):
    line, code = run(text)
    assert said in line and code == 2


def test_a_file_beside_ones_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_own.py").write_text("def half(x):\n    return x / 0\n")
    try:
        line, code = run("from beside_own import half\n\nhalf(1)")
    finally:
        sys.modules.pop("beside_own", None)
    assert (
        "beside_own.py, line 2, in half: ZeroDivisionError: division by zero" in line and code == 2
    )
