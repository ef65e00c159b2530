"""LED and ProxSkip: local steps, coins, and that both are exact diffusion without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network
from ccl_jax.runs import Config, runner
from tests.algorithms.quadratics import Quadratics, ring_weights

W = ring_weights(5)


def network(local_steps, coins=None):
    return Network(graphs.make("ring", 5), local_steps=local_steps, coins=coins)


def run(name, steps, talking, **hyper):
    quadratics = Quadratics(agents=5, size=3, seed=4)
    quadratics.network = talking
    return quadratics.run(algorithms.make(name, weight_decay=0.0, **hyper), [0.05] * steps)


def gradients(x):
    quadratics = Quadratics(agents=5, size=3, seed=4)
    return np.stack([quadratics.gradient(i, x[i]) for i in range(5)])


@pytest.mark.parametrize("local_steps", [1, 4])
def test_led_is_the_published_recursion(local_steps, eps):
    path = run("led", 12, network(local_steps), correction_rate=0.6)
    x, y, beta = path[0] * 0 + Quadratics(5, 3, seed=4).start, 0.0, 0.6 / local_steps
    for t, sent in enumerate(path):
        if t and t % local_steps == 0:
            x, y = W @ x, y + x - W @ x
        x = x - 0.05 * gradients(x) - beta * y
        np.testing.assert_allclose(sent, x, rtol=0, atol=100 * eps)


def test_proxskip_is_the_published_recursion_with_its_coins(eps):
    talking = network(2, coins=7)
    path = run("proxskip", 16, talking, correction_rate=0.8, gossip_rate=0.4)
    coins = [bool(talking.talks(jnp.int32(t))) for t in range(16)]
    assert 3 < sum(coins) < 13
    v = 0.6 * np.eye(5) + 0.4 * W
    x, y = np.tile(Quadratics(5, 3, seed=4).start, (5, 1)), 0.0
    for sent, heads in zip(path, coins, strict=True):
        if heads:
            x, y = v @ x, y + 0.4 * (x - v @ x)  # beta = 0.8 p
        x = x - 0.05 * gradients(x) - y
        np.testing.assert_allclose(sent, x, rtol=0, atol=100 * eps)


def test_without_local_steps_both_are_exact_diffusion(eps):
    exact = run("ed", 12, network(1))
    np.testing.assert_array_equal(run("proxskip", 12, network(1, coins=0)), exact)
    led = run("led", 12, network(1), correction_rate=1.0, gossip_rate=0.5)
    np.testing.assert_array_equal(led, exact)
    other = run("exact-diffusion", 12, network(1), momentum=0.0)
    np.testing.assert_allclose(exact, other, rtol=0, atol=100 * eps)


def test_coins_are_fair_depend_on_the_seed_and_send_nothing_at_tails():
    @jax.jit
    def throw(steps):
        def one(t):
            talk = network(4, coins=0).round(t)
            talk.send("x", jnp.zeros((5, 3)))
            return talk.active, talk.traffic().messages.sum()

        return jax.vmap(one)(steps)

    heads, messages = throw(jnp.arange(4000))
    assert abs(heads.mean() - 0.25) < 0.03  # four standard deviations
    np.testing.assert_array_equal(messages, np.where(heads, 10, 0))  # to two neighbours each
    other = jax.jit(jax.vmap(network(4, coins=1).talks))(jnp.arange(4000))
    assert (other != heads).any()
    # Independent: after heads, heads as often.
    assert abs(heads[1:][heads[:-1]].mean() - 0.25) < 0.06
    np.testing.assert_array_equal(
        jax.vmap(network(4).talks)(jnp.arange(12)), np.arange(12) % 4 == 0
    )


@pytest.mark.parametrize(
    "graph, agents, rate, bound",
    [("torus", 16, 0.5, "-0.6"), ("ring", 8, 1.0, "-0.333"), ("dyck", 32, 0.8, "-0.429")],
)
def test_refuses_small_eigenvalues_and_says_what_to_take(graph, agents, rate, bound):
    check, topology = algorithms.get("led").check, graphs.make(graph, agents)
    with pytest.raises(ValueError, match=rf"above {bound}; take a smaller correction_rate, lazy"):
        check(topology, correction_rate=rate)
    check(topology, correction_rate=0.8 * rate)
    check(topology, correction_rate=rate, gossip_rate=0.5)
    algorithms.get("proxskip").check(topology)


@pytest.mark.parametrize("eigenvalue, grows", [(-0.61, True), (-0.59, False)])
def test_the_bound_is_that_of_the_recursion(eigenvalue, grows):
    # One eigenvalue of W, K = 1 and rho = 1/2: x = l z, k <- k + (l - 1) z, z <- x + k / 2.
    step = np.array([[eigenvalue + (eigenvalue - 1) / 2, 0.5], [eigenvalue - 1, 1]])
    assert (np.abs(np.linalg.eigvals(step)).max() > 1) == grows


def test_a_run_throws_coins_of_its_seed_for_proxskip_only():
    config = Config(
        dataset="digits", model="digits-cnn", agents=4, local_steps=4, seed=9, devices=1
    )
    runs = [runner.prepare(config.replace(algorithm=name)) for name in ("proxskip", "led")]
    assert [run.network.coins for run in runs] == [9, None]
    assert runs[0].network.whole().coins == 9


def test_proxskip_needs_coins():
    method = algorithms.get("proxskip")
    algorithms.capabilities.check(method, network(2, coins=0))
    with pytest.raises(ValueError, match="throws a coin for every step; give the network"):
        algorithms.capabilities.check(method, network(2))
