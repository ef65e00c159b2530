"""D2: where it works, and that its forms agree."""

import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from tests.algorithms.quadratics import Quadratics


@pytest.mark.parametrize(
    "graph, agents, eigenvalue",
    [("ring", 8, "-0.333"), ("torus", 16, "-0.600"), ("dyck", 32, "-0.500")],
)
def test_refuses_small_eigenvalues_and_says_what_to_take(graph, agents, eigenvalue):
    topology = graphs.make(graph, agents)
    with pytest.raises(ValueError, match=rf"eigenvalue .* is {eigenvalue} .*exact-diffusion, lazy"):
        algorithms.get("d2").check(topology)
    algorithms.get("d2").check(topology, gossip_rate=0.5)
    algorithms.get("d2").check(graphs.make(graph, agents, weights="lazy"))
    algorithms.get("exact-diffusion").check(topology)


def test_accepts_an_odd_ring_and_refuses_other_graphs():
    check = algorithms.get("d2").check
    check(graphs.make("ring", 7))
    with pytest.raises(ValueError, match="does not change"):
        check(graphs.make("random-matching:4", 6))
    with pytest.raises(ValueError, match="doubly stochastic"):
        check(graphs.make("star", 5))


@pytest.mark.parametrize("name", ["d2", "edm"])
def test_an_even_number_of_gossip_steps_is_stable_where_one_is_not(name):
    """Of W^2 all eigenvalues are squares; of W^3 the smallest is that of W, cubed."""
    check, ring = algorithms.get(name).check, graphs.make("ring", 4)
    for gossip_steps in (2, 3, 4):
        check(ring, gossip_steps=gossip_steps)
    with pytest.raises(ValueError, match=r"is -0\.333 .* or gossip_steps 2"):
        check(ring)
    quadratics = Quadratics(agents=4, size=3, seed=0, gossip_steps=2)
    x = quadratics.run(algorithms.make(name, weight_decay=0.0), [0.05] * 600)[-1]
    np.testing.assert_allclose(x, np.tile(quadratics.optimum, (4, 1)), atol=5e-3)


@pytest.mark.parametrize("eigenvalue, grows", [(-0.6, True), (-0.34, True), (-0.32, False)])
def test_the_bound_is_that_of_the_recursion(eigenvalue, grows):
    # x_{t+1} = l (2 x_t - x_{t-1}): roots of z^2 - 2 l z + l.
    assert (np.abs(np.roots([1, -2 * eigenvalue, eigenvalue])).max() > 1) == grows


def test_all_forms_agree_at_a_constant_rate_and_differ_at_a_drop(eps):
    quadratics = Quadratics(agents=5, size=3, seed=0)
    run = lambda form, rates: quadratics.run(
        algorithms.make("d2", form=form, weight_decay=0.01), rates
    )
    paths = [run(form, [0.05] * 12) for form in ("lr-safe", "published", "correction")]
    np.testing.assert_allclose(paths[1], paths[0], rtol=0, atol=80 * eps)
    np.testing.assert_allclose(paths[2], paths[0], rtol=0, atol=80 * eps)
    drop = [0.05] * 6 + [0.005] * 6
    assert np.abs(run("lr-safe", drop) - run("published", drop)).max() > 1e-3


def test_steps_at_rate_zero_change_nothing(eps):
    """A warm-up starts with them; roundoff over a rate of nearly 0 must not become a gradient."""
    quadratics = Quadratics(agents=5, size=3, seed=0)
    run = lambda form, rates: quadratics.run(algorithms.make("d2", form=form), rates)
    warmed = run("lr-safe", [0.0, 0.0] + [0.05] * 6)[2:]
    np.testing.assert_allclose(warmed, run("correction", [0.05] * 6), rtol=0, atol=80 * eps)


def test_refuses():
    with pytest.raises(ValueError, match="form is 'newest'; it must be lr-safe or"):
        algorithms.make("d2", form="newest")
    with pytest.raises(ValueError, match="no momentum; take form=correction"):
        algorithms.make("d2", momentum=0.9)
