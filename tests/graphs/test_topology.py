"""The Topology value: tables, weights, eigenvalues, and what it refuses."""

import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ccl_jax import graphs
from ccl_jax.graphs import topology

quick = settings(deadline=None, max_examples=40)


@st.composite
def digraph_counts(draw) -> np.ndarray:
    """Edge counts of any graph, directed, with parallel edges, changing over time."""
    rounds, agents = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    counts = rng.choice(3, (rounds, agents, agents), p=(0.5, 0.4, 0.1))
    return counts * ~np.eye(agents, dtype=bool)


def table_of(counts: np.ndarray, width: int) -> np.ndarray:
    """Neighbour table of edge counts, padded with -1 to a width."""
    rounds, agents, _ = counts.shape
    table = np.full((rounds, agents, width), -1)
    for r in range(rounds):
        for i in range(agents):
            heard = [j for j in range(agents) for _ in range(counts[r, i, j])]
            table[r, i, : len(heard)] = heard
    return table


def test_a_path_of_three_by_hand():
    graph = topology.from_neighbors("path", np.array([[1, -1], [2, 0], [1, -1]]))
    np.testing.assert_allclose(
        graph.weights[0], [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]]
    )
    assert graph.neighbors.tolist() == [[[1, 0], [0, 2], [1, 2]]]
    assert graph.mask.tolist() == [[[True, False], [True, True], [True, False]]]
    assert graph.incoming.slots[0, 1].tolist() == [0, 0]
    assert graph.incoming.slots[0, 2, 0] == 1
    assert (graph.rounds, graph.agents, graph.degree) == (1, 3, 2)
    assert not graph.directed and not graph.doubly_stochastic and graph.connected
    # The matrix has eigenvalues 1, 1/2 and -1/6.
    assert graph.spectral_gap == pytest.approx(1 / 2)
    assert graph.smallest_eigenvalue == pytest.approx(-1 / 6)


def test_column_weights_count_the_senders_neighbours():
    # 0 hears 1 and 2, 1 hears 0, 2 hears 1: agent 1 has two listeners.
    table = np.array([[1, 2], [0, -1], [1, -1]])
    graph = topology.from_neighbors("three", table, stochastic="column")
    np.testing.assert_allclose(
        graph.weights[0], [[1 / 2, 1 / 3, 1 / 2], [1 / 2, 1 / 3, 0], [0, 1 / 3, 1 / 2]]
    )
    assert graph.directed and not graph.doubly_stochastic


def test_a_neighbour_listed_twice_counts_twice():
    graph = topology.from_neighbors("pair", np.array([[1, 1], [0, 0]]))
    np.testing.assert_allclose(graph.weights[0], [[1 / 3, 2 / 3], [2 / 3, 1 / 3]])
    assert graph.adjacency.tolist() == [[[0, 2], [2, 0]]]
    assert graph.outgoing.slots.tolist() == [[[0, 1], [0, 1]]]


def test_one_agent_alone():
    graph = topology.from_neighbors("alone", np.zeros((1, 0), int))
    assert graph.weights.tolist() == [[[1.0]]]
    assert graph.neighbors.shape == (1, 1, 1) and not graph.mask.any()
    assert graph.connected and graph.doubly_stochastic and graph.spectral_gap == 1


def test_two_islands_are_not_connected():
    graph = topology.from_neighbors("islands", np.array([[1], [0], [3], [2]]))
    assert not graph.connected
    assert graph.spectral_gap == pytest.approx(0)


def test_one_way_streets_connect_only_if_they_lead_back():
    there = topology.from_neighbors("there", np.array([[-1], [0], [1]]))
    round_trip = topology.from_neighbors("circle", np.array([[2], [0], [1]]))
    assert not there.connected and round_trip.connected


def test_rounds_connect_together():
    # 0-1 and 2-3 first, then 1-2: no round alone reaches everyone.
    table = np.array([[[1], [0], [3], [2]], [[-1], [2], [1], [-1]]])
    assert topology.from_neighbors("two rounds", table).connected
    assert not topology.from_neighbors("first only", table[:1]).connected


@quick
@given(digraph_counts(), st.integers(0, 2))
def test_both_directions_of_the_tables_know_each_other(counts, spare):
    width = int(counts.sum(axis=2).max()) + spare
    graph = topology.from_neighbors("any", table_of(counts, width))
    into, out = graph.incoming, graph.outgoing
    np.testing.assert_array_equal(graph.adjacency, counts)
    assert into.mask.sum() == out.mask.sum() == counts.sum()
    for here, there in ((into, out), (out, into)):
        for r, i, d in zip(*np.nonzero(here.mask), strict=True):
            j, slot = here.peers[r, i, d], here.slots[r, i, d]
            assert there.mask[r, j, slot]
            assert there.peers[r, j, slot] == i and there.slots[r, j, slot] == d
        own = np.arange(graph.agents)[None, :, None]
        assert ((here.peers == own) | here.mask).all() and not here.slots[~here.mask].any()


@quick
@given(digraph_counts(), st.integers(0, 2))
def test_tables_of_an_undirected_graph_are_equal(counts, spare):
    counts = counts + counts.transpose(0, 2, 1)
    width = int(counts.sum(axis=2).max()) + spare
    graph = topology.from_neighbors("any", table_of(counts, width))
    assert not graph.directed
    for into, out in zip(graph.incoming, graph.outgoing, strict=True):
        np.testing.assert_array_equal(into, out)


@quick
@given(digraph_counts(), st.sampled_from(["row", "column"]))
def test_default_weights_are_stochastic(counts, stochastic):
    table = table_of(counts, int(counts.sum(axis=2).max()))
    graph = topology.from_neighbors("any", table, stochastic=stochastic)
    np.testing.assert_allclose(graph.weights.sum(axis=2 if stochastic == "row" else 1), 1)
    np.testing.assert_array_equal(graph.weights > 0, (counts + np.eye(counts.shape[1])) > 0)


@quick
@given(digraph_counts())
def test_a_matrix_gives_back_itself(counts):
    voices = counts + np.eye(counts.shape[1])
    matrix = voices / voices.sum(axis=2, keepdims=True)
    graph = topology.from_matrix("any", matrix)
    np.testing.assert_array_equal(graph.weights, matrix)
    np.testing.assert_array_equal(graph.adjacency, np.minimum(counts, 1))


@pytest.mark.parametrize(
    "form",
    [
        sparse.csr_array,
        sparse.coo_matrix,
        lambda matrix: matrix.view(np.matrix),
        np.ndarray.tolist,
        jnp.asarray,
    ],
)
def test_forms_of_a_matrix(form):
    matrix = np.array([[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    graph = topology.from_matrix("chain", form(matrix))
    assert graph.weights.tolist() == [matrix.tolist()]
    assert graph.adjacency.tolist() == [[[0, 1, 0], [1, 0, 1], [0, 1, 0]]]
    table = np.array([[1, -1], [0, 2], [1, -1]])
    graph = topology.from_neighbors("chain", table.tolist(), weights=form(matrix))
    assert graph.weights.tolist() == [matrix.tolist()]


# Eigenvalues of the matrices that are used in practice, worked out by hand: a circulant graph with
# hops h has the eigenvalues sum_h w_h cos(2 pi k h / N), and a bipartite one of degree d and weight
# 1/(d+1) has (1 - d)/(1 + d).
@pytest.mark.parametrize("agents", [8, 10, 16, 32])
def test_an_even_ring_has_minus_one_third(agents):
    assert graphs.make("ring", agents).smallest_eigenvalue == pytest.approx(-1 / 3, abs=1e-12)


def test_an_odd_ring_stays_above_minus_one_third():
    graph = graphs.make("ring", 15)
    assert graph.smallest_eigenvalue == pytest.approx(1 / 3 - 2 / 3 * np.cos(np.pi / 15))
    assert graph.smallest_eigenvalue == pytest.approx(-0.319, abs=5e-4)


@pytest.mark.parametrize("agents", [8, 16, 32])
def test_the_circulant_torus(agents):
    smallest = graphs.make("circulant-torus", agents).smallest_eigenvalue
    # k = 3N/8: (1 + 2 cos(3 pi / 4) - 2) / 5.
    assert smallest == pytest.approx(-(1 + np.sqrt(2)) / 5)
    assert smallest == pytest.approx(-0.483, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "agents", "smallest", "gap"),
    [
        ("torus:4x4", 16, -0.6, 0.4),
        ("torus:4x8", 32, -0.6, 2 / 5 * (1 - np.cos(np.pi / 4))),
        ("dyck", 32, -0.5, (2 - np.sqrt(2)) / 4),
        ("true-dyck", 32, -0.5, (3 - np.sqrt(5)) / 4),
        ("petersen", 10, -1 / 4, 1 / 2),
        ("hypercube", 8, -1 / 2, 1 / 2),
        ("hypercube", 16, -3 / 5, 2 / 5),
        ("full", 6, 0, 1),
    ],
)
def test_eigenvalues(name, agents, smallest, gap):
    graph = graphs.make(name, agents)
    assert graph.smallest_eigenvalue == pytest.approx(smallest, abs=1e-9)
    assert graph.spectral_gap == pytest.approx(gap, abs=1e-9)


def test_spectral_gap_of_a_changing_graph_is_that_of_the_product():
    matrices = np.array([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]])
    assert topology.from_matrix("two", matrices).spectral_gap == pytest.approx(1)
    assert topology.from_matrix("slow", matrices[1]).spectral_gap == pytest.approx(0.2)
    assert topology.from_matrix("slow", matrices[[1, 1]]).spectral_gap == pytest.approx(0.36)


def test_connected_agrees_with_networkx():
    rng = np.random.default_rng(0)
    answers = set()
    for _ in range(60):
        counts = (rng.random((1, 7, 7)) < 0.22) & ~np.eye(7, dtype=bool)
        table = table_of(counts.astype(int), 7)
        connected = topology.from_neighbors("any", table).connected
        sends = nx.from_numpy_array(counts[0].T, create_using=nx.DiGraph)
        assert connected == nx.is_strongly_connected(sends)
        answers.add(connected)
    assert answers == {True, False}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: topology.from_neighbors("g", np.array([[1], [3]])), "names agent 3"),
        (lambda: topology.from_neighbors("g", np.array([[1], [-2]])), "names agent -2"),
        (lambda: topology.from_neighbors("g", np.array([1, 0])), r"shape \(2,\)"),
        (lambda: topology.from_neighbors("g", np.zeros((0, 2))), "at least one agent"),
        (
            lambda: topology.from_neighbors("g", np.array([[1], [0]]), weights=np.eye(3)),
            r"shape \(3, 3\)",
        ),
        (
            lambda: topology.from_neighbors(
                "g", np.array([[1], [0], [0]]), weights=np.full((3, 3), 1 / 3)
            ),
            "agent 0 gives agent 2 the weight 0.333333 in round 0 but does not receive",
        ),
        (lambda: topology.from_matrix("g", np.ones((2, 3))), r"shape \(1, 2, 3\)"),
        (lambda: topology.from_matrix("g", np.zeros((0, 0))), "shape"),
        (lambda: topology.from_matrix("g", np.array([[1, 0], [0.2, 0.7]])), "row 1 .* 0.9"),
        (
            lambda: topology.from_matrix(
                "g", np.array([[0.5, 0.5], [0.7, 0.3]]), stochastic="column"
            ),
            "column 0 .* 1.2",
        ),
        (lambda: topology.from_matrix("g", np.array([[1.5, -0.5], [0, 1]])), "not negative"),
        (lambda: topology.from_matrix("g", np.array([[np.nan, 1], [0, 1]])), "finite"),
        (lambda: topology.from_matrix("g", np.eye(2) + 0.5j), r"complex128 \(2, 2\); .* real"),
        (lambda: topology.from_matrix("g", np.array([["1", "0"], ["0", "1"]])), "<U1.* real"),
        (lambda: topology.from_matrix("g", [[None, 1], [1, None]]), "object .* real"),
        (lambda: topology.from_matrix("g", [sparse.eye_array(2)] * 2), "object .* real"),
        (lambda: topology.from_matrix("g", nx.cycle_graph(3)), "mixing"),
        (lambda: topology.from_matrix("g", [[1], [0, 1]]), "g: the mixing matrix is no array"),
        (lambda: topology.from_matrix("g", sparse.eye_array(2) * 2), "row 0 .* sums to 2"),
        (lambda: topology.from_matrix("g", np.eye(2), stochastic="rows"), "stochastic is 'rows'"),
        (lambda: topology.from_neighbors("g", [[1], [0, 1]]), "g: the neighbour table is no array"),
        (lambda: topology.from_neighbors("g", [[1.0], [0.6]]), "float64; .* whole numbers"),
        (lambda: topology.from_neighbors("g", [[2**32 + 1], [0]]), "names agent 4294967297"),
        (
            lambda: topology.from_neighbors("g", [[1, 2], [0, 2], [0, 1]], np.ones((2, 3), bool)),
            r"the mask has shape \(2, 3\)",
        ),
    ],
)
def test_bad_input_is_refused(build, words):
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
