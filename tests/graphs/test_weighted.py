"""Graphs with weights of their own: exact means, doubly stochastic rounds, errors."""

import functools

import numpy as np
import pytest

from ccl_jax import graphs
from ccl_jax.graphs import over_time, weighted


@pytest.mark.parametrize("build", [weighted.base, weighted.simple_base])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_period_gives_the_exact_mean_for_any_number_of_agents(build, k):
    for agents in range(2, 41):
        rounds = build(agents, k)
        period = functools.reduce(lambda done, w: w @ done, rounds, np.eye(agents))
        np.testing.assert_allclose(period, 1 / agents, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(rounds, rounds.transpose(0, 2, 1))
        np.testing.assert_allclose(rounds.sum(axis=2), 1, rtol=0, atol=1e-12)
        assert (rounds != 0).sum(axis=2).max() <= k + 1


def test_the_paper_s_five_agents_take_five_rounds_of_pairs():
    graph = graphs.make("base-graph:1", 5)
    assert (graph.rounds, graph.directed, graph.doubly_stochastic) == (5, False, True)


@pytest.mark.parametrize(
    "name", ["d-equistatic:4", "u-equistatic:4", "od-equidyn", "ou-equidyn:1:20"]
)
def test_equitopo_is_doubly_stochastic_and_follows_the_seed(name):
    first, again, other = (graphs.make(name, 11, seed=seed) for seed in (3, 3, 4))
    assert first.doubly_stochastic
    assert first.directed == name.startswith(("d-", "od-"))
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.weights.shape != other.weights.shape or (first.weights != other.weights).any()


def test_epidemic_learning_averages_what_was_received():
    counts = over_time.epidemic(7, 2, rounds=30)
    assert (counts.sum(axis=1) == 2).all()  # everyone sends to two others
    assert not counts.diagonal(axis1=1, axis2=2).any()
    weights = graphs.make("epidemic:2:30", 7).weights
    heard = counts.sum(axis=2)
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_allclose(weights.diagonal(axis1=1, axis2=2), 1 / (heard + 1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("base-graph:0", {}, "0 neighbours a round are too few"),
        ("base-graph", {}, "needs k; write base-graph:K"),
        ("base-graph:1", {"weights": "metropolis"}, "has weights of its own"),
        ("alternating:ring+base-graph:1", {}, "cannot be part of another"),
        ("epidemic:6", {}, "give 1 to 5"),
        ("od-equidyn:1.5", {}, "above 0 and at most 1"),
        ("u-equistatic:0", {}, "0 offsets are too few"),
    ],
)
def test_errors_say_what_to_give(name, options, message):
    with pytest.raises(ValueError, match=message):
        graphs.make(name, 6, **options)
