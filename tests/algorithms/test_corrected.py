"""Bias-corrected methods, of which each is more than a name: against their recursions, and together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Faults, Network, compression
from tests.algorithms.quadratics import Quadratics, ring_weights
from tests.support import corrections as rec
from tests.support.recursions import Problem


def problem(**config):
    """A `Quadratics` on a ring of five, for the recursions in NumPy."""
    quadratics = Quadratics(agents=5, size=3, seed=0)
    written = Problem(ring_weights(5), [0.05] * 16, size=3, **config)
    written.a, written.c = quadratics.curvature, quadratics.minimum
    written.start, written.x0 = quadratics.start, np.tile(quadratics.start, (5, 1))
    return quadratics, written


def optimum(quadratics):
    a, c = quadratics.curvature, quadratics.minimum
    return np.linalg.solve(a.sum(axis=0), np.einsum("ixy,iy->x", a, c))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_edm_is_the_published_recursion(momentum, eps):
    quadratics, written = problem(momentum=momentum, weight_decay=0.01)
    algorithm = algorithms.make("edm", momentum=momentum, weight_decay=0.01)
    sent = quadratics.run(algorithm, [0.05] * 16)
    # Ours are sent before the mix that ends a step of the paper.
    mixed = np.einsum("ij,tjx->tix", ring_weights(5), sent)
    np.testing.assert_allclose(mixed, rec.edm(written), rtol=0, atol=200 * eps)
    if momentum == 0:
        d2 = quadratics.run(algorithms.make("d2", weight_decay=0.01), [0.05] * 16)
        np.testing.assert_allclose(sent, d2, rtol=0, atol=100 * eps)


@pytest.mark.parametrize(
    "name, recursion",
    [("extra", rec.extra), ("simplegt", rec.simple_tracking)],
)
def test_extra_and_its_relative_are_the_published_recursions(name, recursion, eps):
    quadratics, written = problem(weight_decay=0.01)
    path = quadratics.run(algorithms.make(name, weight_decay=0.01), [0.05] * 16)
    np.testing.assert_allclose(path, recursion(written), rtol=0, atol=200 * eps)


@pytest.mark.parametrize(
    "name, recursion, v",
    [("nids", rec.nids, 0.5), ("ed", rec.exact_diffusion, 0.5), ("aug-dgm", rec.aug_dgm, 1.0)],
)
def test_those_that_end_a_step_with_the_mix_are_the_published_recursions(name, recursion, v, eps):
    quadratics, written = problem(weight_decay=0.01)
    sent = quadratics.run(algorithms.make(name, weight_decay=0.01), [0.05] * 16)
    mixed = np.einsum("ij,tjx->tix", v * ring_weights(5) + (1 - v) * np.eye(5), sent)
    if name == "nids":  # the first is not mixed
        mixed[0] = sent[0]
    np.testing.assert_allclose(mixed, recursion(written), rtol=0, atol=200 * eps)


# With local steps, those that may have them; regular, or by chance.
WITH_LOCAL_STEPS = ["k-gt", "atc-gt", "aug-dgm", "led", "proxskip"]


@pytest.mark.parametrize("name", WITH_LOCAL_STEPS)
def test_five_local_steps_reach_the_exact_optimum_where_dsgd_stalls(name, float64):
    quadratics = Quadratics(agents=5, size=3, seed=0)
    coins = 0 if algorithms.get(name).capabilities.by_chance else None
    quadratics.network = Network(graphs.make("ring", 5), local_steps=5, coins=coins)
    algorithms.capabilities.check(algorithms.get(name), quadratics.network)
    end = lambda name: quadratics.run(algorithms.make(name, weight_decay=0.0), [0.05] * 1500)[-1]
    best = optimum(quadratics)
    np.testing.assert_allclose(end(name), np.tile(best, (5, 1)), rtol=0, atol=1e-11)
    assert np.abs(end("dsgd") - best).max() > 0.5


@pytest.mark.parametrize(
    "name", ["ed", "edm", "nids", "led", "proxskip", "extra", "k-gt", "atc-gt", "aug-dgm"]
)
def test_a_drop_of_the_learning_rate_does_not_disturb_who_is_there(name, float64):
    """What a step corrects is kept in units of gradients: a tenth of the rate, a tenth of the step."""
    quadratics = Quadratics(agents=5, size=3, seed=0)
    path = quadratics.run(algorithms.make(name, weight_decay=0.0), [0.05] * 1500 + [0.005] * 20)
    np.testing.assert_allclose(
        path[1499:], np.broadcast_to(optimum(quadratics), path[1499:].shape), rtol=0, atol=1e-11
    )


def test_the_published_form_is_disturbed(float64):
    quadratics = Quadratics(agents=5, size=3, seed=0)
    algorithm = algorithms.make("exact-diffusion", momentum=0.0, weight_decay=0.0)
    path = quadratics.run(algorithm, [0.05] * 1500 + [0.005] * 20)
    assert np.abs(path[1510] - optimum(quadratics)).max() > 0.01


@pytest.mark.parametrize("name", ["led", "edm", "nids", "extra"])
def test_steps_at_rate_zero_change_nothing(name, eps):
    """A warm-up starts with them; roundoff over a rate of nearly 0 must not become a gradient."""
    quadratics = Quadratics(agents=5, size=3, seed=0)
    momentum = {"momentum": 0.0} if name == "edm" else {}
    run = lambda rates: quadratics.run(algorithms.make(name, **momentum), rates)
    warmed, plain = run([0.0, 0.0] + [0.05] * 6)[2:], run([0.05] * 6)
    if name == "nids":  # its first step, the one that is not mixed, was at rate 0
        plain = run([0.0] + [0.05] * 6)[1:]
    np.testing.assert_allclose(warmed, plain, rtol=0, atol=100 * eps)


def test_edm_needs_what_d2_needs():
    with pytest.raises(ValueError, match=r"eigenvalue .* is -0.333 .*exact-diffusion, lazy"):
        algorithms.get("edm").check(graphs.make("ring", 8))
    algorithms.get("edm").check(graphs.make("ring", 8), gossip_rate=0.5)
    for name in ("ed", "nids", "extra", "simplegt"):
        algorithms.get(name).check(graphs.make("torus", 16))
        with pytest.raises(ValueError, match="does not change"):
            algorithms.get(name).check(graphs.make("random-matching:4", 6))


@pytest.mark.parametrize("name", ["ed", "nids", "led", "extra", "k-gt", "aug-dgm"])
def test_compressed_they_reach_the_optimum_where_dsgd_stalls(name, float64):
    """What a compressor leaves out is sent later; the corrections keep their sum of zero."""
    quadratics = Quadratics(agents=5, size=3, seed=0)
    network = Network(graphs.make("ring", 5), compressor=compression.make("top-k:0.5"))
    best = optimum(quadratics)
    end = lambda name: run_with_memory(quadratics, network, name, 1200)
    np.testing.assert_allclose(end(name), np.tile(best, (5, 1)), rtol=0, atol=1e-10)
    assert np.abs(end("dsgd") - best).max() > 0.1


@pytest.mark.parametrize("name", ["k-gt", "atc-gt", "aug-dgm"])
def test_trackers_reach_the_optimum_where_messages_are_lost(name, float64):
    quadratics = Quadratics(agents=5, size=3, seed=0)
    network = Network(graphs.make("ring", 5), local_steps=5, faults=Faults(drop=0.2, seed=1))
    algorithms.capabilities.check(algorithms.get(name), network)
    end = run_with_memory(quadratics, network, name, 1500)
    np.testing.assert_allclose(end, np.tile(optimum(quadratics), (5, 1)), rtol=0, atol=1e-11)


def run_with_memory(quadratics, network, name, steps):
    """The last models, on a network that remembers."""
    algorithm = algorithms.make(name, weight_decay=0.0)
    a, c = (jnp.asarray(x, float) for x in (quadratics.curvature, quadratics.minimum))
    own = lambda at, _: (jax.vmap(lambda x, a, c: a @ (x - c))(at, a, c), None)
    lr = jnp.asarray(0.05, float)
    x = jnp.tile(jnp.asarray(quadratics.start, float), (5, 1))
    state = algorithm.init(x, network.round(0))
    advance = lambda x, state, talk: algorithms.advance(algorithm, x, state, talk, lr, own)
    memory = network.start(lambda talk: advance(x, state, talk))

    @jax.jit
    def step(x, state, memory, t):
        talk = network.round(t, memory)
        new = advance(x, state, talk)
        return new.params, new.state, talk.memory()

    for t in range(steps):
        x, state, memory = step(x, state, memory, jnp.int32(t))
    return np.asarray(x)
