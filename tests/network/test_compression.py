"""Compressed messages: what receivers see, what it costs, and that errors are made up for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network, compression

vectors = st.lists(st.floats(-100, 100, width=32), min_size=10, max_size=10)


@functools.cache
def jitted(name):
    return jax.jit(lambda x: compression.make(name)({"x": x}, lead=1)["x"])


def seen(name, x):
    return np.asarray(jitted(name)(jnp.asarray(x, jnp.float32)[None])[0])


def test_by_hand():
    x = [3.0, -1.0, 0.0, 4.0]
    np.testing.assert_allclose(seen("sign", x), [2.0, -2.0, 0.0, 2.0])  # mean magnitude 2
    np.testing.assert_allclose(seen("top-k:0.5", x), [3.0, 0.0, 0.0, 4.0])
    # Steps of 4 / 127: 3 is 95.25 of them, -1 is -31.75.
    np.testing.assert_allclose(seen("int8", x), np.array([95, -32, 0, 127]) * 4 / 127, rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(vectors)
def test_properties(values):
    x = np.float32(values)
    assert np.abs(seen("int8", x) - x).max() <= np.abs(x).max() / 254 * 1.01 + 1e-30
    sign = seen("sign", x)
    assert (sign * x >= 0).all()
    assert np.abs(sign).max() <= np.abs(x).mean() * 1.001 + 1e-30
    top = seen("top-k:0.3", x)
    kept = top != 0
    assert kept.sum() <= max(1, round(0.3 * len(x)))
    np.testing.assert_array_equal(top[kept], x[kept])
    # A contraction: what is lost is at most 1 - k/n of it.
    k = max(1, round(0.3 * len(x)))
    assert ((x - top) ** 2).sum() <= (1 - k / len(x)) * (x**2).sum() * 1.001 + 1e-20


def test_every_message_is_compressed_by_itself():
    x = jnp.arange(24.0).reshape(2, 3, 4) - 9
    whole = compression.SIGN({"x": x}, lead=2)["x"]
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(whole[i, j], seen("sign", x[i, j]))


def test_bytes():
    tree = {"w": jnp.zeros((5, 3, 10, 10)), "b": jnp.zeros((5, 3, 4))}  # 100 and 4 numbers
    for name, expected in {
        "sign": (13 + 4) + (1 + 4),  # ceil(100 / 8) and 4 / 8 bytes, a float32 each
        "int8": 104 + 8,
        "top-k:0.1": 8 * 10 + 8 * 1,
        "top-k:0.01": 8 * 1 + 8 * 1,
    }.items():
        assert compression.make(name).message_bytes(tree, lead=2) == expected
    assert compression.make("none") is None


@pytest.mark.parametrize("name", ["sign", "int8", "top-k:0.2"])
def test_feedback_loses_nothing_for_good(name):
    # All that was sent plus what is remembered is all that there was to send.
    compressor, rng = compression.make(name), np.random.default_rng(0)
    error, total, sent = jnp.zeros((2, 10)), np.zeros((2, 10)), np.zeros((2, 10))
    for _ in range(20):
        x = rng.normal(size=(2, 10)).astype(np.float32)
        message, error = compression.feedback(compressor, jnp.asarray(x), error, lead=1)
        total, sent = total + x, sent + np.asarray(message)
    np.testing.assert_allclose(sent + np.asarray(error), total, atol=1e-4)


@pytest.mark.parametrize("name", ["top-k", "top-k:0", "top-k:2", "top-k:x", "zip", "sing"])
def test_refuses(name):
    with pytest.raises(ValueError, match=r"top-k|unknown compression"):
        compression.make(name)


def gossip(name, steps, rate=0.3, agents=6, gossip_steps=1):
    """CHOCO: all start alike, then learn one thing each, then only mix."""
    graph = graphs.make("ring", agents)
    network = Network(graph, compressor=compression.make(name), gossip_steps=gossip_steps)
    rng = np.random.default_rng(1)
    x = jnp.zeros((agents, 20))

    @jax.jit
    def step(x, memory, t):
        talk = network.round(t, memory)
        mixed = talk.mix(talk.send("x", x))
        return x + rate * (mixed - x), talk.memory()

    x, memory = step(x, network.start(lambda talk: talk.send("x", x)), 0)
    first = x = x + jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    for t in range(1, steps):
        x, memory = step(x, memory, t)
    return np.asarray(first), np.asarray(x)


@pytest.mark.parametrize("name", ["sign", "int8", "top-k:0.1"])
@pytest.mark.parametrize("gossip_steps", [1, 2])
def test_compressed_gossip_keeps_the_mean_and_agrees(name, gossip_steps):
    first, last = gossip(name, 150, 0.1 if name == "sign" else 0.3, gossip_steps=gossip_steps)
    np.testing.assert_allclose(last.mean(axis=0), first.mean(axis=0), atol=2e-5)
    assert np.ptp(last, axis=0).max() < 0.05 * np.ptp(first, axis=0).max()


@pytest.mark.parametrize("name, rate", [("top-k:0.25", 0.3), ("int8", 0.8), ("sign", 0.1)])
def test_dsgd_converges_under_compression(name, rate):
    rng = np.random.default_rng(2)
    c = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
    network = Network(graphs.make("ring", 5), compressor=compression.make(name))
    algorithm = algorithms.make("dsgd", gossip_rate=rate, weight_decay=0.0)

    @jax.jit
    def step(x, state, memory, t):
        talk = network.round(t, memory)
        lr = 0.1 / (1 + t / 30)
        new = algorithms.advance(algorithm, x, state, talk, lr, lambda at, _: (at - c, None))
        return new.params, new.state, talk.memory()

    x = jnp.zeros((5, 8))
    state = algorithm.init(x, network.round(0))
    memory = network.start(lambda talk: algorithm.communicate(x, state, talk, 0.1))
    for t in range(600):
        x, state, memory = step(x, state, memory, jnp.float32(t).astype(jnp.int32))
    best = np.asarray(c).mean(axis=0)
    np.testing.assert_allclose(np.asarray(x).mean(axis=0), best, atol=0.02)
    assert np.abs(np.asarray(x) - best).max() < 0.4 * np.abs(np.asarray(c) - best).max()
