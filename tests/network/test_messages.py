"""Messages: paid once, known as the channel left them, whatever is then made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import graphs
from ccl_jax.network import Faults, Memory, Message, Network
from ccl_jax.network.channels import Exact
from ccl_jax.network.compression import SIGN

RING = graphs.make("ring", 4)
START = jnp.array([[0.0, 0.0]] * 4)
X = jnp.array([[3.0, -1.0], [0.0, 4.0], [1.0, 1.0], [-2.0, 6.0]])
# Signs times mean magnitudes of the differences to the start, 0.
KNOWN = np.array([[2.0, -2.0], [0.0, 2.0], [1.0, 1.0], [-4.0, 4.0]])
PEERS = [[1, 3], [0, 2], [1, 3], [0, 2]]


def second_round(**settings):
    """A round in which neighbours know of the start."""
    network = Network(RING, **settings)
    talk = network.round(0)
    talk.send("x", START)
    talk.send("y", START)
    return network.round(1, talk.memory())


def sent_bytes(talk):
    return talk.traffic().bytes_sent().tolist()


def test_all_that_is_made_of_a_message_is_made_of_what_is_known():
    talk = second_round(compressor=SIGN)
    message = talk.send("x", X)
    np.testing.assert_array_equal(message.own, X)
    np.testing.assert_array_equal(message.known, KNOWN)
    mixed, heard = talk.mix(message), talk.gather(message)
    crossed = talk.cross(lambda x, scale: scale * x, message, jnp.arange(1.0, 5.0))
    for i, peers in enumerate(PEERS):
        np.testing.assert_array_equal(heard[i], KNOWN[peers])
        np.testing.assert_array_equal(crossed[i], (i + 1) * KNOWN[peers])
        # x + (W - I) xh
        expected = X[i] + KNOWN[[i, *peers]].sum(axis=0) / 3 - KNOWN[i]
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-6, atol=1e-6)
    assert sent_bytes(talk) == [2 * 5] * 4  # one byte of signs and a float32, to two neighbours


def test_stragglers_are_heard_by_what_they_had():
    talk = second_round(faults=Faults(straggle=1.0))
    message = talk.send("x", X)
    np.testing.assert_array_equal(talk.gather(message), np.zeros((4, 2, 2)))
    np.testing.assert_array_equal(
        talk.cross(lambda x, shift: x + shift, message, jnp.ones((4, 2))), np.ones((4, 2, 2))
    )


def test_what_may_not_be_compressed_is_known_exactly():
    talk = second_round(compressor=SIGN)
    message = talk.send("statistics", X, compress=False)
    np.testing.assert_array_equal(talk.gather(message)[0], X[jnp.array([1, 3])])
    assert sent_bytes(talk) == [2 * 8] * 4


def test_what_is_paid_depends_on_what_is_sent_and_on_nothing_else():
    def paid(use):
        talk = Network(RING).round(0)
        use(talk, X)
        return sent_bytes(talk)[0]

    size = 2 * 8  # two float32 to two neighbours
    once = lambda talk, x: talk.send("x", x)
    assert paid(once) == size
    assert paid(lambda talk, x: talk.mix(once(talk, x))) == size

    def used_often(talk, x):
        message = once(talk, x)
        for _ in range(2):
            talk.mix(message)
            talk.gather(message)
            talk.gather(message.map(lambda x: x * 1.0))

    assert paid(used_often) == size
    # A second send pays again, whether or not it is of the same array.
    for other in (lambda x: x, lambda x: x * 1.0, jax.jit(lambda x: x)):
        assert paid(lambda talk, x, f=other: (once(talk, x), talk.send("y", f(x)))) == 2 * size
    # Half of it in half precision.
    narrow = lambda talk, x: talk.send("y", x.astype(jnp.bfloat16))
    assert paid(lambda talk, x: (once(talk, x), narrow(talk, x))) == 1.5 * size


def test_a_message_crosses_a_jit_boundary():
    talk = second_round(compressor=SIGN)
    message = talk.send("x", X)
    again = jax.jit(lambda message: message)(message)
    assert (again.name, again.channel) == ("x", message.channel)
    np.testing.assert_array_equal(talk.gather(again), talk.gather(message))
    np.testing.assert_array_equal(talk.mix(again), talk.mix(message))
    assert sent_bytes(talk) == [2 * 5] * 4


def test_what_is_derived_is_derived_from_both_sides():
    message = Message(jnp.array([[4.0]]), jnp.array([[3.0]]), Exact(), "x")
    squares = message.map(jnp.square)
    assert squares.own == 16 and squares.known == 9
    assert squares.name is None and squares.channel == Exact()
    # The message itself stays what it is.
    assert message.own == 4 and message.name == "x"


def test_pairs_of_messages():
    talk = second_round(compressor=SIGN)
    pair = talk.send("x", X).join(talk.send("y", 2 * X, compress=False))
    assert pair.name is None
    heard = talk.gather(pair)
    np.testing.assert_array_equal(heard[0][0], KNOWN[PEERS[0]])
    np.testing.assert_array_equal(heard[1][0], 2 * X[jnp.array(PEERS[0])])
    assert sent_bytes(talk) == [2 * (5 + 8)] * 4


def test_a_derived_message_is_mixed_as_it_is_known():
    talk = second_round(compressor=SIGN)
    message = talk.send("x", X)
    double = talk.mix(message.map(lambda x: 2 * x))
    np.testing.assert_allclose(double, 2 * talk.mix(message), rtol=1e-6)


def test_messages_of_two_channels_are_mixed_by_themselves():
    talk = second_round(compressor=SIGN)
    exact, compressed = talk.send("x", X, compress=False), talk.send("y", X)
    with pytest.raises(ValueError, match="went through two channels; mix each by itself"):
        talk.mix(exact.join(compressed))
    np.testing.assert_array_equal(talk.mix(compressed.join(compressed))[1], talk.mix(compressed))


@pytest.mark.parametrize("derive", [lambda m: m.map(lambda x: 2 * x), lambda m: m.join(m)])
def test_several_gossip_steps_of_what_is_derived_are_refused(derive):
    talk = Network(RING, gossip_steps=3).round(0, Memory())
    message = talk.send("x", X)
    with pytest.raises(ValueError, match=r"gossip_steps is 3, .* derived from a message.*mix the"):
        talk.mix(derive(message))
    talk.mix(message)


def test_a_name_that_the_channel_does_not_know_is_refused():
    with pytest.raises(ValueError, match="'z' is sent, and in the step before 'x', 'y' were"):
        second_round(compressor=SIGN).send("z", X)
    second_round().send("z", X)  # An exact channel has nothing to remember.


def test_what_was_not_said_is_not_forgotten():
    talk = second_round(compressor=SIGN)
    talk.send("x", X)
    assert set(talk.memory().messages) == {"x", "y"}


def test_a_message_is_mixed_once():
    talk = second_round(compressor=SIGN, gossip_steps=3)
    message = talk.send("x", X)
    once = talk.mix(message)
    paid = sent_bytes(talk)
    np.testing.assert_array_equal(talk.mix(message), once)
    assert sent_bytes(talk) == paid
