"""Named graphs, static and over time, their weights, and what cannot be built."""

import functools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax import graphs

EXAMPLES = [
    (entry.example or key, entry.agents or 16)
    for key, entry in graphs.GRAPHS.items()
    if "file" not in key
]
OVER_TIME = [
    "one-peer-exponential",
    "p-peer-exponential:3",
    "random-matching",
    "random-regular:3",
    "alternating:ring+star",
    "edges-come-and-go:ring:0.5",
]


def undirected(name: str, agents: int) -> nx.Graph:
    """The named graph as networkx sees it."""
    return nx.from_numpy_array(graphs.make(name, agents).adjacency[0])


# ---- Static graphs


@pytest.mark.parametrize(
    ("name", "agents", "heard"),
    [
        ("ring", 5, {0: [1, 4], 3: [2, 4]}),
        ("chain", 4, {0: [1], 1: [0, 2], 3: [2]}),
        ("star", 4, {0: [1, 2, 3], 2: [0]}),
        ("full", 4, {2: [0, 1, 3]}),
        ("tree", 6, {0: [1, 2], 1: [0, 3, 4], 5: [2]}),
        ("tree:3", 5, {0: [1, 2, 3], 1: [0, 4]}),
        ("circulant:1,3", 10, {0: [1, 3, 7, 9], 4: [1, 3, 5, 7]}),
        ("circulant:1,4", 8, {0: [1, 4, 7]}),
        ("circulant-torus", 16, {0: [1, 4, 12, 15]}),
        ("circulant-torus", 8, {0: [1, 4, 4, 7], 5: [1, 1, 4, 6]}),
        ("torus:3x4", 12, {0: [1, 3, 4, 8], 6: [2, 5, 7, 10]}),
        ("torus", 12, {0: [1, 3, 4, 8]}),
        ("torus", 4, {0: [1, 2], 3: [1, 2]}),
        ("hypercube", 8, {0: [1, 2, 4], 5: [1, 4, 7]}),
        ("exponential", 6, {0: [2, 4, 5], 3: [1, 2, 5]}),
        ("dyck", 32, {0: [1, 7, 8], 17: [1, 16, 18], 31: [15, 24, 30], 28: [20, 27, 29]}),
    ],
)
def test_who_hears_whom(name, agents, heard):
    graph = graphs.make(name, agents)
    assert graph.rounds == 1 and graph.name == name
    for i, peers in heard.items():
        assert sorted(graph.neighbors[0, i][graph.mask[0, i]]) == peers


def test_two_agents_on_a_ring_share_one_edge():
    assert graphs.make("ring", 2).weights.tolist() == [[[0.5, 0.5], [0.5, 0.5]]]


@pytest.mark.parametrize(
    "name",
    ["ring", "chain", "star", "full", "tree", "hypercube", "exponential", "one-peer-exponential"],
)
def test_one_agent_needs_no_neighbours(name):
    graph = graphs.make(name, 1)
    assert graph.weights.tolist() == [[[1.0]]] and not graph.mask.any()


def test_eight_agents_on_the_circulant_torus_have_the_authors_weights():
    row = graphs.make("circulant-torus", 8).weights[0, 0]
    np.testing.assert_allclose(row, [0.2, 0.2, 0, 0, 0.4, 0, 0, 0.2])


def test_the_authors_dyck_graph():
    graph = undirected("dyck", 32)
    assert set(dict(graph.degree).values()) == {3}
    assert graph.number_of_nodes() == 32 and graph.number_of_edges() == 48
    assert nx.is_bipartite(graph) and nx.girth(graph) == 6
    # Here it parts from the Dyck graph, whose diameter is 5.
    assert nx.diameter(graph) == 6
    assert not nx.is_isomorphic(graph, undirected("true-dyck", 32))


def test_the_dyck_graph():
    graph = undirected("true-dyck", 32)
    assert set(dict(graph.degree).values()) == {3}
    assert graph.number_of_nodes() == 32 and graph.number_of_edges() == 48
    assert nx.is_bipartite(graph) and nx.girth(graph) == 6 and nx.diameter(graph) == 5
    spectrum = np.linalg.eigvalsh(nx.to_numpy_array(graph))
    # Its characteristic polynomial: (x - 3)(x + 3)(x^2 - 1)^9 (x^2 - 5)^6.
    wanted = [3, -3] + [1, -1] * 9 + [np.sqrt(5), -np.sqrt(5)] * 6
    np.testing.assert_allclose(spectrum, sorted(wanted), atol=1e-9)


def test_petersen_is_the_petersen_graph():
    graph = undirected("petersen", 10)
    # Strongly regular with parameters (10, 3, 0, 1) characterises it.
    adjacency = nx.to_numpy_array(graph)
    np.testing.assert_array_equal(
        adjacency @ adjacency, 3 * np.eye(10) + (1 - np.eye(10) - adjacency)
    )


@given(st.integers(2, 6), st.integers(2, 6))
@settings(deadline=None, max_examples=15)
def test_torus_is_the_product_of_two_rings(rows, columns):
    product = nx.cartesian_product(nx.cycle_graph(rows), nx.cycle_graph(columns))
    nodes = [(r, c) for r in range(rows) for c in range(columns)]
    adjacency = graphs.make(f"torus:{rows}x{columns}", rows * columns).adjacency[0]
    np.testing.assert_array_equal(adjacency, nx.to_numpy_array(product, nodes))


def test_random_graphs_follow_their_seed():
    for name in ("networkx:random_regular_graph:3", "random-matching", "random-regular:2"):
        make = functools.partial(graphs.make, name, 12)
        np.testing.assert_array_equal(make(seed=3).adjacency, make(seed=3).adjacency)
        assert not np.array_equal(make(seed=3).adjacency, make(seed=4).adjacency)


def test_options_by_keyword_equal_options_in_the_name():
    by_name = graphs.make("torus:2x6", 12)
    np.testing.assert_array_equal(graphs.make("torus", 12, size=(2, 6)).weights, by_name.weights)
    assert graphs.make("random-matching", 6, rounds=5).rounds == 5


# ---- Graphs over time


# ---- Weights


@pytest.mark.parametrize(("name", "agents"), EXAMPLES)
@pytest.mark.parametrize("stochastic", ["row", "column"])
def test_every_graph_is_connected_and_stochastic(name, agents, stochastic):
    graph = graphs.make(name, agents, stochastic=stochastic)
    assert graph.connected and graph.stochastic == stochastic
    np.testing.assert_allclose(graph.weights.sum(axis=2 if stochastic == "row" else 1), 1)
    if graphs.GRAPHS[name.partition(":")[0]].weighs:
        return
    # Uniform: all that is given (sent) by one agent is equal, up to parallel edges.
    shares = graph.weights / (graph.adjacency + np.eye(agents))[:, :, :].clip(1)
    shares = shares if stochastic == "row" else shares.transpose(0, 2, 1)
    for row in shares.reshape(-1, agents):
        assert np.ptp(row[row > 0]) < 1e-12


@given(st.integers(2, 12), st.floats(0.2, 1), st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_metropolis_is_symmetric_and_doubly_stochastic(agents, density, seed):
    random = nx.gnp_random_graph(agents, density, seed=seed)
    random.add_edges_from(nx.path_graph(agents).edges)
    graph = graphs.from_networkx(random, weights="metropolis")
    np.testing.assert_allclose(graph.weights, graph.weights.transpose(0, 2, 1))
    assert graph.doubly_stochastic and (np.diagonal(graph.weights[0]) > 0).all()
    for i, j in random.edges:
        expected = 1 / (max(random.degree[i], random.degree[j]) + 1)
        assert graph.weights[0, i, j] == pytest.approx(expected)


def test_weights_of_a_star_by_hand():
    uniform = [[1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 2, 0], [1 / 2, 0, 1 / 2]]
    metropolis = [[1 / 3, 1 / 3, 1 / 3], [1 / 3, 2 / 3, 0], [1 / 3, 0, 2 / 3]]
    wanted = {
        "uniform": np.array(uniform),
        "metropolis": np.array(metropolis),
        "lazy": (np.eye(3) + uniform) / 2,
        "lazy-metropolis": (np.eye(3) + metropolis) / 2,
    }
    assert wanted.keys() == graphs.WEIGHTS.keys()
    for name, matrix in wanted.items():
        np.testing.assert_allclose(graphs.make("star", 3, weights=name).weights[0], matrix)
    column = graphs.make("star", 3, stochastic="column").weights[0]
    np.testing.assert_allclose(column, np.transpose(uniform))


def test_lazy_weights_are_safe_for_d2():
    for name in ("ring", "torus", "circulant-torus"):
        assert graphs.make(name, 16).smallest_eigenvalue < -1 / 3 + 1e-9
        assert graphs.make(name, 16, weights="lazy").smallest_eigenvalue > 0.19


# ---- networkx and files


def test_from_networkx_sorts_nodes_and_keeps_directions():
    sends = nx.DiGraph([("b", "a"), ("a", "c"), ("c", "b"), ("a", "a")])
    graph = graphs.from_networkx(sends, "letters", stochastic="column")
    # b sends to a: agent 0 receives from agent 1. The self-loop is ignored.
    assert graph.neighbors[0, :, 0].tolist() == [1, 2, 0]
    assert graph.directed and graph.name == "letters" and graph.degree == 1


def test_from_networkx_counts_parallel_edges_and_ignores_attributes():
    multi = nx.MultiGraph([(0, 1), (0, 1), (1, 2)])
    nx.set_edge_attributes(multi, 7.0, "weight")
    np.testing.assert_allclose(graphs.from_networkx(multi).weights[0, 0], [1 / 3, 2 / 3, 0])


def test_from_networkx_refuses_an_empty_graph():
    with pytest.raises(ValueError, match="no nodes"):
        graphs.from_networkx(nx.Graph())


@pytest.mark.parametrize("write", [nx.write_edgelist, nx.write_adjlist])
def test_files_that_networkx_writes(tmp_path, write):
    tree = nx.full_rary_tree(2, 9)
    write(tree, tmp_path / "tree.txt")
    graph = graphs.make(f"file:{tmp_path}/tree.txt", 9)
    np.testing.assert_array_equal(graph.adjacency[0], nx.to_numpy_array(tree))


def test_directed_file(tmp_path):
    (tmp_path / "g").write_text("# who sends to whom\n0 1 2\n\n1 2\n1 2\n2 2  # a self-loop\n2 0\n")
    graph = graphs.make(f"directed-file:{tmp_path}/g", 3)
    assert graph.adjacency[0].tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0]]


def test_nodes_that_are_digits_are_sorted_as_numbers():
    # networkx reads nodes as texts, and "10" comes before "2" as a text.
    chain = nx.path_graph([str(k) for k in range(12)])
    wanted = graphs.make("chain", 12).adjacency
    np.testing.assert_array_equal(graphs.from_networkx(chain).adjacency, wanted)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names 0 of 3 agents"),
        (b"\n# nothing\n", "names 0 of 3 agents"),
        (b"0 1\n1 two\n", "line 2: '1 two' is not a list of agents"),
        (b"0 1\n1 2 0.5\n", "line 2: '1 2 0.5' is not .* no weights"),
        (b"0 1\n1 2 {'weight': 2}\n", "line 2: .* no weights"),
        (b"0 1\n1 2 2\n", "line 2: '1 2 2' names an agent twice, as a weight"),
        (b"0 1\n1 2 1\n", "line 2: '1 2 1' names an agent twice, as a weight"),
        (b"source,target\n0,1\n", "line 1: 'source,target' is not a list of agents"),
        (b"0 1\n1 " + b"9" * 5000, r"line 2: there is no agent 9999999999\.\.\. \(5000 digits\)"),
        (b"0 1\n-1 2\n", "line 2"),
        (b"0 1\n1 2\n2 3\n", "line 3: there is no agent 3 among 3 agents.* 0 to 2"),
        (b"0 1\n", "names 2 of 3 agents .agent 2 is missing"),
        (b"0 1\n2\n", "disconnected: 2 components of 2, 1 agents"),
        (b"\x89PNG\xff\xfe", "not a text file"),
        ("0 1\n1 2\n".encode("utf-16"), "not a text file in UTF-8"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, words):
    path = tmp_path / "graph.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        graphs.make(f"file:{path}", 3)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.txt cannot be read \(No such file"):
        graphs.make(f"file:{tmp_path}/nowhere.txt", 3)


# ---- Errors


@pytest.mark.parametrize(
    ("name", "agents", "words"),
    [
        ("rnig", 8, "unknown topology 'rnig': did you mean 'ring'.*Known: ring, chain"),
        ("", 8, "unknown topology"),
        ("ring", 0, "0 agents are too few"),
        ("ring", -3, "-3 agents are too few"),
        ("ring:4", 8, "ring takes no options, got 'ring:4'"),
        (
            "dyck",
            16,
            "dyck needs exactly 32 agents, got 16; use 32 agents or another graph such as ring or",
        ),
        ("true-dyck", 31, "exactly 32"),
        ("petersen", 16, "exactly 10"),
        ("hypercube", 12, "power of two.* got 12; use 8 or 16"),
        ("torus", 13, "13 agents do not form a grid"),
        ("torus:4x4", 32, "4 x 4 is no grid of 32 agents"),
        ("torus:1x8", 8, "at least 2 of each"),
        ("torus:4y8", 32, r"'torus:4y8' is not understood; write torus\[:ROWSxCOLUMNS\]"),
        ("torus:", 16, "not understood"),
        ("tree:0", 8, "0 children"),
        ("tree:2:2", 8, "not understood"),
        ("circulant", 8, "'circulant' needs offsets; write circulant:OFFSET"),
        ("circulant:1,8", 8, "offset 8 is out of range for 8 agents; offsets are 1 to 7"),
        ("circulant:0", 8, "offset 0 is out of range"),
        ("circulant:a", 8, "not understood"),
        ("circulant:2", 8, "disconnected: 2 components of 4, 4 agents"),
        ("circulant-torus", 4, "at least 5 agents, got 4"),
        ("networkx:evil", 8, "'evil' is not offered; choose from barabasi"),
        ("networkx:random_regular_graph:3", 7, "does not make a graph of 7 agents"),
        ("networkx:random_regular_graph", 8, "with arguments none .* takes int"),
        ("networkx:random_regular_graph:x", 8, "does not make"),
        ("networkx:erdos_renyi_graph:0", 4, "disconnected: 4 components"),
        ("p-peer-exponential:2", 6, "hop 6 is a multiple of 6"),
        ("p-peer-exponential:0", 6, "0 peers"),
        ("p-peer-exponential", 6, "needs peers"),
        ("random-matching:1", 6, "disconnected: 3 components of 2, 2, 2"),
        ("random-matching:0", 6, "0 rounds are too few"),
        ("random-regular:3", 5, "no graph of 5 agents has degree 3"),
        ("random-regular:6", 6, "the degree must be 1 to 5"),
        ("alternating:ring+rnig", 6, "unknown topology 'rnig'"),
        ("edges-come-and-go:ring:1.5", 6, "1.5 is no probability"),
        ("edges-come-and-go:ring:nan", 6, "nan is no probability"),
        ("edges-come-and-go:ring", 6, "not understood"),
    ],
)
def test_what_cannot_be_built(name, agents, words):
    with pytest.raises(ValueError, match=words) as caught:
        graphs.make(name, agents)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"weights": "metropolish"}, "unknown weights 'metropolish': did you mean 'metropolis'"),
        ({"stochastic": "rows"}, "stochastic is 'rows'"),
        ({"rows": 4}, "takes no option 'rows'; it takes size"),
    ],
)
def test_bad_settings(settings_, words):
    with pytest.raises(ValueError, match=words):
        graphs.make("torus", 16, **settings_)


def test_metropolis_needs_an_undirected_graph():
    with pytest.raises(ValueError, match="undirected"):
        graphs.make("exponential", 8, weights="metropolis")


# ---- Descriptions


def test_describe_by_hand():
    facts = graphs.describe(graphs.make("star", 4))
    # W has rows (1,1,1,1)/4 and (1/2 for the hub, 1/2 for itself): eigenvalues 1, 1/2, 1/2, -1/4.
    assert facts == {
        "name": "star",
        "agents": 4,
        "rounds": 1,
        "degree_min": 1,
        "degree_mean": 1.5,
        "degree_max": 3,
        "edges": 3.0,
        "directed": False,
        "doubly_stochastic": False,
        "spectral_gap": pytest.approx(1 / 2),
        "smallest_eigenvalue": pytest.approx(-1 / 4),
        "diameter": 2,
    }


@pytest.mark.parametrize("name", ["ring", "tree", "torus", "hypercube", "circulant-torus"])
def test_diameter_agrees_with_networkx(name):
    facts = graphs.describe(graphs.make(name, 16))
    graph = undirected(name, 16)
    assert facts["diameter"] == nx.diameter(graph)
    assert facts["edges"] == graph.number_of_edges()


def test_the_catalogue_names_every_graph_in_one_line():
    assert len(graphs.catalogue()) == len(graphs.GRAPHS)
    assert all(text and "\n" not in text for text in graphs.catalogue().values())
    assert {name for name, _ in EXAMPLES} >= set(OVER_TIME)
    for name in OVER_TIME:
        assert graphs.make(name, 16).rounds > 1
