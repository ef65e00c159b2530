"""Graphs that change from step to step."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax import graphs


@pytest.mark.parametrize("agents", [2, 4, 8, 16, 32])
def test_one_peer_exponential_averages_exactly(agents):
    graph = graphs.make("one-peer-exponential", agents)
    assert graph.rounds == np.log2(agents)
    product = functools.reduce(lambda done, w: w @ done, graph.weights)
    np.testing.assert_allclose(product, np.full((agents, agents), 1 / agents), atol=1e-12)


def test_one_peer_exponential_by_hand():
    graph = graphs.make("one-peer-exponential", 6)
    assert graph.rounds == 3  # floor(log2(5)) + 1
    assert graph.neighbors[:, 0, 0].tolist() == [5, 4, 2]
    assert (graph.weights[graph.weights > 0] == 0.5).all()
    assert graph.directed and graph.doubly_stochastic


def test_p_peer_exponential_by_hand():
    graph = graphs.make("p-peer-exponential:2", 9)
    assert sorted(graph.neighbors[0, 0]) == [7, 8] and sorted(graph.neighbors[1, 0]) == [3, 6]
    np.testing.assert_allclose(graph.weights[1] @ graph.weights[0], np.full((9, 9), 1 / 9))


@given(st.integers(2, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_random_matching_pairs_all_but_at_most_one(agents, seed):
    graph = graphs.make("random-matching", agents, seed=seed)
    assert graph.rounds == 64 and not graph.directed and graph.doubly_stochastic
    assert (graph.mask.sum(axis=(1, 2)) == agents // 2 * 2).all()


def test_random_regular_changes_every_round():
    graph = graphs.make("random-regular:3:5", 12)
    assert graph.rounds == 5 and (graph.mask.sum(axis=2) == 3).all() and not graph.directed
    assert len({matrix.tobytes() for matrix in graph.weights}) == 5


def test_alternating_takes_turns():
    graph = graphs.make("alternating:torus:2x4+one-peer-exponential+star", 8)
    parts = ["torus:2x4", "one-peer-exponential", "star"]
    wanted = np.concatenate([graphs.make(part, 8).weights for part in parts])
    np.testing.assert_array_equal(graph.weights, wanted)


def test_alternating_parts_may_be_disconnected_if_all_together_are_not():
    assert graphs.make("alternating:circulant:2+circulant:3", 6).connected


def test_edges_come_and_go_with_their_probability():
    graph = graphs.make("edges-come-and-go:torus:4x4:0.3", 16, weights="metropolis", rounds=400)
    base = graphs.make("torus:4x4", 16).adjacency
    assert not graph.directed and graph.doubly_stochastic
    assert (graph.adjacency <= base).all()
    # 32 edges x 400 rounds: the standard deviation of the mean is 0.004.
    assert graph.adjacency.sum() / (400 * base.sum()) == pytest.approx(0.3, abs=0.016)
    assert not graphs.make("edges-come-and-go:ring:0.5", 16).doubly_stochastic


def test_edges_come_and_go_stays_with_probability_one():
    graph = graphs.make("edges-come-and-go:ring:1", 6, rounds=2)
    np.testing.assert_array_equal(graph.weights, graphs.make("ring", 6).weights[[0, 0]])


def test_diameter_over_time_counts_rounds():
    assert graphs.describe(graphs.make("one-peer-exponential", 8))["diameter"] == 3
    assert graphs.describe(graphs.make("exponential", 8))["edges"] == 24
