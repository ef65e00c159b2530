"""The network's operations against loops over agents and neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.graphs import topology
from ccl_jax.network import Network

# 0 hears 1 and 2, 1 hears 0, 2 hears nobody, 3 hears 0 twice: directed, irregular, a double edge.
TABLE = np.array([[1, 2], [0, -1], [-1, -1], [0, 0]])


@pytest.fixture
def odd():
    return Network(topology.from_neighbors("odd", TABLE)).round(0)


def values(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(7), shape)


def neighbors_of(agent: int) -> list[int]:
    return [j for j in TABLE[agent] if j >= 0]


def test_mix_is_the_weighted_average(odd):
    x = values(4, 3, 2)
    mixed = odd.mix(odd.send("x", {"w": x}))["w"]
    # By hand: uniform weights 1/3 1/3 1/3; 1/2 1/2; alone; 1/3 self and 2/3 for the double edge.
    np.testing.assert_allclose(mixed[0], (x[0] + x[1] + x[2]) / 3, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixed[1], (x[1] + x[0]) / 2, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixed[2], x[2], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixed[3], (x[3] + 2 * x[0]) / 3, rtol=1e-6, atol=1e-6)


def test_gather_lists_the_neighbours(odd):
    x = values(4, 5)
    heard = odd.gather(odd.send("x", x))
    for i in range(4):
        for d in range(2):
            expected = x[TABLE[i, d]] if TABLE[i, d] >= 0 else np.zeros(5)
            np.testing.assert_array_equal(heard[i, d], expected)


def test_reply_brings_values_home(odd):
    made = values(4, 2)  # made[i, d] was made by i for its neighbour d
    home = odd.reply("made", made)
    # Sums do not depend on the order of the listeners: 0 is heard by 1 and, twice, by 3.
    np.testing.assert_allclose(
        home[0].sum(), made[1, 0] + made[3, 0] + made[3, 1], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(home[1].sum(), made[0, 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(home[2].sum(), made[0, 1], rtol=1e-6, atol=1e-6)
    assert home[3].sum() == 0


def test_cross_applies_neighbours_models_to_own_data(odd):
    models, data = values(4, 3), values(4, 6, 3)
    out = odd.cross(lambda w, x: x @ w, odd.send("models", models), data)
    for i in range(4):
        for d in range(2):
            j = TABLE[i, d]
            expected = data[i] @ models[j] if j >= 0 else np.zeros(6)
            np.testing.assert_allclose(out[i, d], expected, rtol=1e-5, atol=1e-6)


def test_average_is_the_mean_everywhere(odd):
    x = values(4, 3)
    np.testing.assert_allclose(odd.average(x), np.tile(x.mean(0), (4, 1)), rtol=1e-6, atol=1e-6)


def test_neighbor_weights_share_a_double_edge(odd):
    expected = [[1 / 3, 1 / 3], [1 / 2, 0], [0, 0], [1 / 3, 1 / 3]]
    np.testing.assert_allclose(odd.neighbor_weights, expected, rtol=1e-6, atol=1e-6)


def test_bytes_count_each_message_once(odd):
    models = {"w": values(4, 10), "b": values(4, 2)}
    sent = odd.send("models", models)
    odd.mix(sent)
    odd.gather(sent)  # the same models: already there
    odd.cross(lambda m, x: m["w"].sum() + x, sent, values(4))
    np.testing.assert_array_equal(odd.traffic().bytes_sent(), 48 * np.array([3, 1, 1, 0]))
    odd.reply("replies", values(4, 2, 5))  # 20 bytes over each edge, backwards
    expected = 48 * np.array([3, 1, 1, 0]) + 20 * np.array([2, 1, 0, 2])
    np.testing.assert_array_equal(odd.traffic().bytes_sent(), expected)


def test_measuring_is_free(odd):
    quiet = odd.measuring()
    quiet.mix(quiet.send("x", values(4, 3)))
    assert odd.traffic().bytes_sent().sum() == 0


def test_average_counts_a_ring_all_reduce(odd):
    odd.average(values(4, 8))  # 32 bytes: 2 * 3/4 of it
    np.testing.assert_array_equal(odd.traffic().bytes_sent(), [48, 48, 48, 48])


def test_a_graph_over_time_uses_each_round_in_turn_without_recompiling():
    eye = np.eye(3)
    shift = np.roll(eye, 1, axis=1)  # i hears i + 1
    network = Network(topology.from_matrix("alternating", np.stack([eye, (eye + shift) / 2])))
    compilations = 0

    @jax.jit
    def mix(step, x):
        nonlocal compilations
        compilations += 1
        talk = network.round(step)
        return talk.mix(talk.send("x", x))

    x = jnp.array([0.0, 2.0, 4.0])
    np.testing.assert_allclose(mix(0, x), x)
    np.testing.assert_allclose(mix(1, x), [1.0, 3.0, 2.0])
    np.testing.assert_allclose(mix(4, x), x)
    assert compilations == 1


def test_mixing_keeps_the_dtype():
    network = Network(topology.from_neighbors("pair", [[1], [0]])).round(0)
    sent = network.send("x", jnp.ones((2, 3), jnp.bfloat16))
    assert network.mix(sent).dtype == jnp.bfloat16
