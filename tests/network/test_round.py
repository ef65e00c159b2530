"""The communication of a step: memories by name, gossip as a loop, measurements that cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import graphs
from ccl_jax.network import Faults, Memory, Network, compression
from ccl_jax.network.compression import SIGN

AGENTS = 6
RING = graphs.make("ring", AGENTS)
# Everything that a network can remember.
REMEMBERS = {
    "nothing": {},
    "compression": {"compressor": SIGN},
    "stragglers": {"faults": Faults(straggle=0.5, delay=3)},
    "both": {"compressor": SIGN, "faults": Faults(straggle=0.5)},
    "losses": {"faults": Faults(drop=0.3, drop_burst=4.0, offline=0.2, offline_length=3.0)},
    "hops": {"compressor": SIGN, "gossip_steps": 3},
    "rarely": {"compressor": SIGN, "faults": Faults(straggle=0.5), "local_steps": 2},
}
every_memory = pytest.mark.parametrize("settings", REMEMBERS.values(), ids=REMEMBERS)


def values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def say_all(talk, x):
    """Talks in every way that there is."""
    message = talk.send("x", x)
    mixed = talk.mix(message)
    pair = talk.mix(talk.send("pair", (x, x[:, 0])))
    heard = talk.gather(talk.send("statistics", x, compress=False))
    home = talk.reply("answers", heard, compress=True), talk.reply("counts", heard[..., 0])
    crossed = talk.cross(lambda w, d: w * d, message, x)
    return mixed, pair, home, crossed, talk.average(x)


# Names.


def test_sends_that_change_places_keep_their_memories():
    network = Network(RING, compressor=SIGN)
    data = {"x": values(AGENTS, 5), "y": values(AGENTS, 5, seed=1)}

    def remembered(*orders):
        memory = Memory()
        for step, names in enumerate(orders):
            talk = network.round(step, memory)
            for name in names:
                talk.send(name, step * data[name])
            memory = talk.memory()
        return memory.messages

    straight, swapped = remembered("xy", "xy", "xy"), remembered("xy", "yx", "xy")
    jax.tree.map(np.testing.assert_array_equal, straight, swapped)
    assert np.abs(straight["x"][0] - straight["y"][0]).max() > 0.1


@pytest.mark.parametrize("again", ["send", "reply"])
@pytest.mark.parametrize("compressor", [None, SIGN])
def test_two_messages_of_one_name_are_refused(again, compressor):
    talk = Network(RING, compressor=compressor).round(0)
    talk.send("x", values(AGENTS, 3))
    shape = (AGENTS, 3) if again == "send" else (AGENTS, 2, 3)
    with pytest.raises(ValueError, match="'x' has been sent in this step already") as error:
        getattr(talk, again)("x", values(*shape))
    assert "\n" not in str(error.value) and "a name of its own" in str(error.value)
    talk.send("y", values(AGENTS, 3))


# Memory.


@every_memory
def test_the_first_memory_is_like_all_others(settings):
    network, x = Network(RING, **settings), values(AGENTS, 4)
    compilations = 0

    @jax.jit
    def step(x, memory, t):
        nonlocal compilations
        compilations += 1
        talk = network.round(t, memory)
        say_all(talk, x)
        return talk.memory()

    memory = start = network.start(lambda talk: say_all(talk, x))
    for t in range(3):
        memory = step(x, memory, jnp.int32(t))
    assert compilations == 1
    kinds = lambda memory: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), memory)
    assert kinds(start) == kinds(memory)
    late = {"x", "pair", "statistics"} if network.faults.straggle else set()
    smaller = {"x", "pair", "answers", "counts"} if network.compressor else set()
    assert set(memory.messages) == late | smaller
    assert network.remembers == bool(memory.messages or memory.faults)
    assert start.fresh and not memory.fresh
    rest = jax.tree.leaves(start._replace(fresh=None))
    assert not any(np.asarray(leaf).any() for leaf in rest)


def test_nothing_is_run_for_the_first_memory():
    seen = []

    def say(talk):
        message = talk.send("x", values(AGENTS, 2))
        seen.append(isinstance(talk.mix(message), jax.core.Tracer))

    Network(RING, compressor=SIGN, gossip_steps=2).start(say)
    assert seen == [True]


# Measurements.


@every_memory
def test_measuring_pays_and_remembers_nothing(settings):
    network, x = Network(RING, **settings), values(AGENTS, 4)
    talk = network.round(0, network.start(lambda talk: say_all(talk, x)))
    say_all(talk, x)
    talk = network.round(2, talk.memory())
    talk.send("x", 2 * x)
    paid, memory = talk.traffic(), talk.memory()
    say_all(talk.measuring(), 3 * x)
    say_all(talk.measuring(), 3 * x)
    jax.tree.map(np.testing.assert_array_equal, talk.traffic(), paid)
    jax.tree.map(np.testing.assert_array_equal, talk.memory(), memory)


def test_what_is_measured_is_exact_and_what_was_sent_stays_what_is_known():
    network, x = Network(RING, compressor=SIGN, gossip_steps=2), values(AGENTS, 4)
    before = network.round(0)
    before.send("x", 0 * x)
    talk = network.round(1, before.memory())
    message, quiet = talk.send("x", x), talk.measuring()
    np.testing.assert_array_equal(quiet.gather(message), talk.gather(message))
    w = RING.weights[0]
    exact = quiet.mix(quiet.send("x", x))
    np.testing.assert_allclose(exact, w @ w @ np.asarray(x), rtol=0, atol=1e-6)
    # And the real one goes on as if nothing had been measured.
    other = network.round(1, before.memory())
    np.testing.assert_array_equal(talk.mix(message), other.mix(other.send("x", x)))


# Several gossip steps.


def mix(network, x, step=0, memory=Memory()):  # noqa: B008
    talk = network.round(step, memory)
    return talk.mix(talk.send("x", x)), talk.memory(), talk.traffic()


@pytest.mark.parametrize("settings", [{}, {"compressor": SIGN}, {"faults": Faults(drop=0.1)}])
@pytest.mark.parametrize("mixing", ["dense", "sparse"])
def test_three_thousand_gossip_steps_are_as_large_a_program_as_two(mixing, settings):
    def operations(hops):
        network = Network(RING, gossip_steps=hops, mixing=mixing, **settings)
        program = jax.jit(lambda x, t: mix(network, x, t)).lower(values(AGENTS, 3), jnp.int32(0))
        return program.as_text().count(" = ")

    assert operations(3000) == operations(2) > 10


@pytest.mark.parametrize("mixing", ["dense", "sparse"])
@pytest.mark.parametrize("hops", [1, 2, 5, 40])
def test_gossip_steps_are_a_power_of_the_matrix_and_each_is_paid(hops, mixing):
    graph = graphs.make("chain", AGENTS)
    eye = jnp.eye(AGENTS)
    mixed, _, traffic = mix(Network(graph, gossip_steps=hops, mixing=mixing), eye)
    expected = np.linalg.matrix_power(graph.weights[0], hops)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)
    neighbors = np.array([1, 2, 2, 2, 2, 1])
    np.testing.assert_array_equal(traffic.bytes_sent(), hops * neighbors * 4 * AGENTS)


def test_gossip_steps_move_on_through_a_graph_over_time_across_steps():
    graph = graphs.make("random-matching:5", AGENTS, seed=2)
    network, eye, hop = Network(graph, gossip_steps=3), jnp.eye(AGENTS), 0
    for step in range(4):
        expected = np.eye(AGENTS)
        sent = np.zeros(AGENTS)
        for _ in range(3):
            w = graph.weights[hop % 5]
            expected = w @ expected
            sent += (w - np.diag(np.diag(w)) > 0).sum(axis=0)
            hop += 1
        mixed, _, traffic = mix(network, eye, step)
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(traffic.bytes_sent(), sent * 4 * AGENTS)


def test_every_hop_can_lose_its_messages():
    network = Network(RING, gossip_steps=4, faults=Faults(drop=0.5, seed=3))
    mixed, _, traffic = mix(network, jnp.eye(AGENTS))
    # What fails in a step fails in all its hops.
    once, _, first = mix(Network(RING, faults=Faults(drop=0.5, seed=3)), jnp.eye(AGENTS))
    np.testing.assert_allclose(mixed, np.linalg.matrix_power(once, 4), rtol=0, atol=1e-6)
    lost = np.asarray(first.lost).sum(axis=1)
    assert lost.any()
    np.testing.assert_array_equal(np.asarray(traffic.lost).sum(axis=1), 4 * lost)
    np.testing.assert_array_equal(np.asarray(traffic.messages).sum(axis=1), [4 * 2] * AGENTS)


@pytest.mark.parametrize("name", ["sign", "int8"])
def test_hops_share_the_memory_of_their_name_and_keep_the_mean(name):
    network = Network(RING, compressor=compression.make(name), gossip_steps=3)
    x = values(AGENTS, 8)
    _, memory, _ = mix(network, 0 * x)
    mixed, memory, _ = mix(network, x, 1, memory)
    assert set(memory.messages) == {"x"}
    # By hand: each hop sends its difference to what the hop before has left known.
    w, own, known = RING.weights[0], np.asarray(x), np.zeros((AGENTS, 8))
    for _ in range(3):
        known = known + np.asarray(
            network.compressor(jnp.asarray(own - known, jnp.float32), lead=1)
        )
        own = own + w @ known - known
    np.testing.assert_allclose(memory.messages["x"][0], known, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mixed, own, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mixed.mean(axis=0), x.mean(axis=0), rtol=0, atol=1e-6)
