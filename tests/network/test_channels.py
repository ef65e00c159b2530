"""Channels: what receivers know, by hand; and what the network composes of them, or refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import graphs
from ccl_jax.network import Faults, Memory, Network, compression
from ccl_jax.network.channels import Compressed, Exact, Feedback, Lagging, Moment
from ccl_jax.network.compression import SIGN

AGENTS = 6


def moment(first=False, active=True, late=(False, False)):
    return Moment(jnp.bool_(first), jnp.bool_(active), jnp.array(late))


def sent(channel, moments, values):
    """What is known of each of `values`, sent one after the other, and the memory in the end."""
    memory, known = channel.start(jnp.asarray(values[0])), []
    for when, x in zip(moments, values, strict=True):
        heard, memory = channel.send(jnp.asarray(x), memory, when)
        known.append(np.asarray(heard))
    return known, memory


def test_exact_is_what_was_sent():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    known, memory = Exact().send(x, Exact().start(x), moment(late=(True, True)))
    assert known is x and memory == ()
    assert Exact().average(2 * x, x, x, jnp.ones(2)) is not x
    np.testing.assert_array_equal(Exact().average(2 * x, x, x, jnp.ones(2)), 2 * x)
    assert Exact().message_bytes({"w": x, "n": jnp.zeros((2, 3), jnp.bfloat16)}) == 8 + 6
    assert Exact().message_bytes(x, lead=2) == 4


def test_who_lags_is_known_by_what_it_had():
    values = [[[10.0 * t + 5], [10.0 * t + 6]] for t in range(5)]
    late = (True, False)
    moments = [moment(first=True, late=late)] + [moment(late=late)] * 4
    known, _ = sent(Lagging(2), moments, values)
    # Before the start everyone had what it has at the start.
    np.testing.assert_array_equal([x[0, 0] for x in known], [5, 5, 5, 15, 25])
    np.testing.assert_array_equal([x[1, 0] for x in known], [6, 16, 26, 36, 46])


def test_where_nothing_is_sent_nobody_lags_further():
    values = [[[0.0], [0.0]], [[1.0], [1.0]], [[2.0], [2.0]], [[3.0], [3.0]]]
    late = (True, True)
    moments = [moment(first=True), moment(active=False, late=late), moment(late=late)]
    known, memory = sent(Lagging(1), moments, values[:3])
    np.testing.assert_array_equal(known[2], [[0], [0]])
    np.testing.assert_array_equal(memory, [[[2]], [[2]]])


def test_agents_average_their_own_values_as_they_are():
    # Two agents that weigh alike; 0 has 4 and is known by 2, 1 has and is known by 8.
    own, known = jnp.array([[4.0], [8.0]]), jnp.array([[2.0], [8.0]])
    weighted, own_weights = jnp.array([[5.0], [5.0]]), jnp.array([0.5, 0.5])
    mixed = Lagging(1).average(weighted, own, known, own_weights)
    np.testing.assert_array_equal(mixed, [[6.0], [5.0]])
    # x + (W - I) xh: the mean of 4 and 8 is kept.
    mixed = Compressed(SIGN).average(weighted, own, known, own_weights)
    np.testing.assert_array_equal(mixed, [[7.0], [5.0]])


def test_compressed_differences_add_up_to_what_is_known():
    one = lambda a, b: [[a, b], [0.0, 0.0]]
    values = [one(1.0, 3.0), one(4.0, 2.0), one(4.0, 2.0), one(9.0, 3.0), one(5.0, 2.0)]
    moments = [moment(first=True), moment(), moment(), moment(active=False), moment()]
    known, (memory, _) = sent(Compressed(SIGN), moments, values)
    np.testing.assert_array_equal(known[0][0], [1, 3])  # all start alike
    np.testing.assert_array_equal(known[1][0], [3, 1])  # 3 and -1 are sent as 2 and -2
    np.testing.assert_array_equal(known[2][0], [4, 2])  # 1 and 1
    np.testing.assert_array_equal(known[4][0], [4.5, 2])  # 1 and 0; nothing came in between
    np.testing.assert_array_equal(memory, one(4.5, 2))
    assert Compressed(SIGN).message_bytes(jnp.zeros((2, 9))) == 2 + 4


def test_copies_that_start_from_zero_know_nothing_before_the_second_step():
    one = lambda a, b: [[a, b], [0.0, 0.0]]
    values, moments = [one(1.0, 3.0)] * 3, [moment(first=True), moment(), moment()]
    known, (memory, _) = sent(Compressed(SIGN, from_zero=True), moments, values)
    np.testing.assert_array_equal(known[0][0], [0, 0])
    np.testing.assert_array_equal(known[1][0], [2, 2])  # 1 and 3
    np.testing.assert_array_equal(known[2][0], [1, 3])  # -1 and 1
    np.testing.assert_array_equal(memory, one(1.0, 3.0))


def test_what_is_not_alike_is_not_known_at_the_start():
    values = jnp.array([[1.0, 3.0], [5.0, -5.0]])
    for channel, known in ((Compressed(SIGN), [[2, 2], [5, -5]]), (Exact(), values)):
        first = channel.send(values, channel.start(values), moment(first=True), alike=False)
        np.testing.assert_array_equal(first[0], known)


def test_compressed_differences_are_to_what_a_straggler_had():
    values = [[[0.0, 0.0]] * 2, [[4.0, 4.0]] * 2, [[8.0, 8.0]] * 2]
    late = (True, False)
    moments = [moment(first=True), moment(late=late), moment(late=late)]
    known, _ = sent(Compressed(SIGN, Lagging(1)), moments, values)
    np.testing.assert_array_equal([x[0, 0] for x in known], [0, 0, 4])
    np.testing.assert_array_equal([x[1, 0] for x in known], [0, 4, 8])


def test_what_a_reply_leaves_out_is_in_the_next():
    # One agent with two neighbours, each of which has its own memory.
    values = [[[[3.0, -1.0], [1.0, 1.0]]], [[[5.0, 5.0], [5.0, 5.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]
    moments = [moment(late=(False,)), moment(active=False, late=(False,)), moment(late=(False,))]
    known, memory = sent(Feedback(SIGN), moments, values)
    np.testing.assert_array_equal(known[0], [[[2, -2], [1, 1]]])
    np.testing.assert_array_equal(known[2], [[[1, 1], [0, 0]]])
    np.testing.assert_array_equal(memory, np.zeros((1, 2, 2)))
    assert Feedback(SIGN).message_bytes(jnp.zeros((1, 2, 9)), lead=2) == 2 + 4


# What a network makes of them.


def test_the_network_composes_its_channel():
    ring, late = graphs.make("ring", AGENTS), Faults(straggle=0.5, delay=3)
    channels = lambda **settings: (
        (c := Network(ring, **settings).channels).exact,
        c.usual,
        c.replies,
    )
    assert channels() == (Exact(), Exact(), Exact())
    assert channels(faults=Faults(drop=0.5)) == (Exact(), Exact(), Exact())
    assert channels(faults=late) == (Lagging(3), Lagging(3), Exact())
    assert channels(compressor=SIGN) == (Exact(), Compressed(SIGN), Feedback(SIGN))
    zero = channels(compressor=SIGN, compression_start="zero")
    assert zero == (Exact(), Compressed(SIGN, from_zero=True), Feedback(SIGN))
    both = channels(compressor=SIGN, faults=late)
    assert both == (Lagging(3), Compressed(SIGN, Lagging(3)), Feedback(SIGN))


@pytest.mark.parametrize(
    "graph, faults, why",
    [
        ("ring", Faults(drop=0.1), "where messages are lost they know different things"),
        ("ring", Faults(offline=0.1), "where messages are lost they know different things"),
        ("ring", Faults(drop=0.1, straggle=0.1), "or the faults that lose messages"),
        ("random-matching", None, "on random-matching.* neighbours change"),
        ("one-peer-exponential", Faults(straggle=0.1), "or take a graph that stays"),
    ],
)
def test_compression_is_refused_where_receivers_know_different_things(graph, faults, why):
    with pytest.raises(ValueError, match=f"what all neighbours know.* {why}") as error:
        Network(graphs.make(graph, 8), compressor=SIGN, faults=faults)
    assert "\n" not in str(error.value) and "leave out compression" in str(error.value)


def test_a_start_of_copies_is_one_of_two_and_needs_compression():
    ring = graphs.make("ring", AGENTS)
    with pytest.raises(ValueError, match="compression_start is zero, and nothing is compressed"):
        Network(ring, compression_start="zero")
    with pytest.raises(ValueError, match="compression_start is one; it must be model or zero"):
        Network(ring, compressor=SIGN, compression_start="one")
    whole = Network(ring, compressor=SIGN, compression_start="zero", devices=2).whole()
    assert whole.channels.usual.from_zero


@pytest.mark.parametrize("gossip_steps", [1, 3])
@pytest.mark.parametrize("name, rate", [("sign", 0.1), ("int8", 0.3), ("top-k:0.2", 0.2)])
def test_compression_with_stragglers_keeps_the_mean_and_agrees(name, rate, gossip_steps):
    network = Network(
        graphs.make("ring", AGENTS),
        compressor=compression.make(name),
        faults=Faults(straggle=0.5, delay=2, seed=1),
        gossip_steps=gossip_steps,
    )
    first = jnp.asarray(np.random.default_rng(3).normal(size=(AGENTS, 20)), jnp.float32)

    @jax.jit
    def step(x, memory, t):
        talk = network.round(t, memory)
        mixed = talk.mix(talk.send("x", x))
        return x + rate * (mixed - x), talk.memory(), talk.conditions.late

    zeros = jnp.zeros_like(first)
    _, memory, _ = step(zeros, network.start(lambda talk: talk.mix(talk.send("x", zeros))), 0)
    x, lagged = first, 0
    for t in range(1, 200):
        x, memory, late = step(x, memory, t)
        lagged += int(late.sum())
    assert 0.4 < lagged / (199 * AGENTS) < 0.6
    # x + rate (W - I) xh rounds by 2^-24 |x| a step, |x| < 3: 200 of them all one way are 4e-5.
    np.testing.assert_allclose(x.mean(axis=0), first.mean(axis=0), rtol=0, atol=4e-5)
    assert np.ptp(x, axis=0).max() < 0.1 * np.ptp(first, axis=0).max()


def test_every_sender_has_a_memory_of_its_own():
    """Who lags is made up for later; who does not is known at once."""
    network = Network(
        graphs.make("ring", AGENTS), compressor=SIGN, faults=Faults(straggle=0.5, seed=2)
    )
    memory, values = Memory(), [jnp.zeros((AGENTS, 1)), jnp.ones((AGENTS, 1))]
    for t in range(2):
        talk = network.round(t, memory)
        known = talk.send("x", values[t]).known
        memory = talk.memory()
    late = np.asarray(talk.conditions.late)
    assert late.any() and not late.all()
    # One number is its own sign times its magnitude: exact.
    np.testing.assert_array_equal(known[:, 0], np.where(late, 0.0, 1.0))
