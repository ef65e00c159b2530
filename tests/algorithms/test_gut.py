"""Global update tracking: without tracking it is a method that we know."""

import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from tests.algorithms.quadratics import Quadratics

RATES = [0.05] * 12


def run(name, **hyper):
    return Quadratics(agents=5, size=3, seed=4).run(algorithms.make(name, **hyper), RATES)


def test_without_tracking_and_momentum_it_is_dsgd(eps):
    ours = run("gut", tracking_scale=0.0)
    np.testing.assert_allclose(ours, run("dsgd", weight_decay=0.0), rtol=0, atol=160 * eps)
    assert np.abs(ours - run("gut", tracking_scale=0.5)).max() > 0.05


def test_without_momentum_qg_gutm_is_gut(eps):
    ours = run("qg-gutm", momentum=0.0, tracking_scale=0.4)
    np.testing.assert_allclose(ours, run("gut", tracking_scale=0.4), rtol=0, atol=80 * eps)


def test_agents_are_nearer_to_each_other_than_with_dsgd():
    spread = lambda path: np.abs(path[-1] - path[-1].mean(axis=0)).max()
    assert spread(run("gut", tracking_scale=0.9)) < 0.8 * spread(run("dsgd", weight_decay=0.0))


@pytest.mark.parametrize("name", ["gut", "qg-gutm"])
def test_needs_a_graph_that_stays(name):
    with pytest.raises(ValueError, match="a graph that does not change"):
        algorithms.get(name).check(graphs.make("random-matching:4", 6))
