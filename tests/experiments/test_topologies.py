"""The main that draws graphs: what it prints and writes, and how it refuses."""

import numpy as np
import pytest
from matplotlib import image

from ccl_jax import graphs
from experiments import topologies


def test_draws_and_prints(tmp_path, capsys):
    out = tmp_path / "new" / "two.png"
    names = ["ring", "torus:2x4", "tree", "exponential", "random-matching", "one-peer-exponential"]
    flags = [f"--topology={name}" for name in names]
    assert topologies.main(["topologies", "--agents=8", f"--out={out}", *flags]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and "-0.3333" in printed and str(out) in printed
    pixels = image.imread(out)
    assert (pixels[0, 0, :3] == 1).all() and pixels[..., :3].min() < 0.5


def test_without_a_name_it_shows_all_that_fit(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(topologies, "draw", lambda chosen, out: drawn.extend(chosen))
    assert topologies.main(["topologies", "--agents=7"]) == 0
    agents = {graph.name: graph.agents for graph in drawn}
    assert agents["ring"] == 7 and agents["dyck"] == 32 and agents["petersen"] == 10
    assert "hypercube" not in agents
    assert "left out: hypercube needs a power of two" in capsys.readouterr().out


def test_help_lists_flags_and_graphs(capsys):
    assert topologies.main(["topologies", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--agents" in printed
    assert all(usage in printed for usage in graphs.catalogue())


@pytest.mark.parametrize("key", [key for key in graphs.GRAPHS if "file" not in key])
def test_every_graph_has_places_for_its_agents(key):
    entry = graphs.GRAPHS[key]
    topology = graphs.make(entry.example or key, entry.agents or 16)
    places = topologies.positions(topology)
    assert places.shape == (topology.agents, 2)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.eye(len(places))
    assert apart.min() > 0.05


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=dyck", "--agents=16"], "dyck needs exactly 32 agents"),
        (["--topology=rnig"], "did you mean 'ring'"),
        (["--agents=0"], "agents"),
        (["--out=figure.txt"], "figure.txt is no figure"),
        (["--out=/dev/null/a.png", "--topology=ring"], "cannot write the figure"),
        (["ring"], "'ring' is not a flag"),
        (["--weight=lazy"], "weight"),
    ],
)
def test_bad_flags_give_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert topologies.main(["topologies", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
