"""Bytes: what every method sends, against counts worked out by hand; local and repeated gossip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs, training
from ccl_jax.graphs import topology
from ccl_jax.network import Network, compression
from ccl_jax.training import Objective
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch

MODEL, FEATURES = TinyModel(), 6
SIZES = [9 * 6, 6, 6 * CLASSES, CLASSES]  # numbers in the tensors of the tiny model
P = 4 * sum(SIZES)  # 352 bytes
SUMS = 4 * (CLASSES * FEATURES + CLASSES)  # class sums and counts
SIGN = sum(-(-size // 8) + 4 for size in SIZES)

# What goes over one edge in a step: with the exchange of models that CCL shares or has to add.
PER_EDGE = {
    **dict.fromkeys(["dsgd", "dsgdm", "dsgdm-n", "adam", "adamw", "optax", "qg-adam"], (P, P)),
    **dict.fromkeys(["qg-dsgdm", "qg-dsgdm-n", "qg-dsgdm-ema", "qg-dsgdm-n-ema"], (P, P)),
    **dict.fromkeys(["d2", "exact-diffusion", "gut", "qg-gutm", "decentlam"], (P, P)),
    **dict.fromkeys(["ed", "edm", "nids", "led", "proxskip", "extra", "simplegt"], (P, P)),
    **dict.fromkeys(["dsgt", "update-tracking", "momentum-tracking", "demuon"], (2 * P, 2 * P)),
    **dict.fromkeys(["k-gt", "atc-gt", "aug-dgm"], (2 * P, 2 * P)),
    **dict.fromkeys(["beer", "motef"], (2 * P, 2 * P)),
    **dict.fromkeys(["choco-sgd", "adagossip"], (P, P)),
    **dict.fromkeys(["ngc", "cga"], (2 * P, 2 * P)),  # models out, gradients back
    **dict.fromkeys(["comp-ngc", "comp-cga"], (P + SIGN, P + SIGN)),
    "muon": (P, P),
    "sgp": (P + 4, P + 4),  # and the push-sum weight
    "relaysgd": (P + 4, 2 * P + 4),  # sums and counts; CCL needs models too
    "fedavg": (P, 2 * P),  # models to the hub and averages back; CCL needs the leaves' models
    "isolated": (0, P),
    "all-reduce": (None, None),  # not by edge: see below
}


def build(name, graph, agents, lambdas=(0.05, 0.05), hyper=None, **settings):
    """A step, what makes its first state, and a batch."""
    method = algorithms.get(name)
    network = Network(graphs.make(graph, agents, stochastic=method.stochastic), **settings)
    algorithm = algorithms.make(name, **hyper or {})
    objective = Objective(CLASSES, *lambdas)
    step = training.make_step(MODEL, algorithm, network, objective, lambda t: 0.01)
    data = batch(agents)

    def init():
        return training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))

    return step, init, data


def blank(init):
    """A state of zeros: what is sent depends on shapes and on the step only."""
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    with jax.disable_jit():  # compiling a first state takes longer than all the rest
        shapes = jax.eval_shape(init)
    return jax.tree.map(zeros, shapes._replace(key=()))._replace(key=jax.random.key(0))


def sent(name, graph, agents, lambdas=(0.05, 0.05), steps=1, **settings):
    """Bytes by agent of each step, `[steps, agents]`; nothing else of the step is computed."""
    step, init, data = build(name, graph, agents, lambdas, **settings)
    state = blank(init)
    traffic = jax.jit(lambda t: step(state._replace(step=t), data)[1].traffic)
    return np.stack([traffic(jnp.int32(t)).bytes_sent() for t in range(steps)])


def home(name):
    """The graph that a method is tested on, and its agents' numbers of neighbours."""
    return {"relaysgd": ("chain", [1, 2, 2, 2, 1]), "fedavg": ("star", [4, 1, 1, 1, 1])}.get(
        name, ("ring", [2] * 5)
    )


def test_the_table_has_every_method():
    assert set(PER_EDGE) == set(algorithms.REGISTRY)


# Those that do not send models, or send more; with CCL the others are marked as slow.
KINDS = ("relaysgd", "sgp", "all-reduce", "isolated", "dsgt", "cga", "qg-dsgdm-n")
WITH_CCL = [
    pytest.param(
        name,
        lambdas,
        id=f"{name}-{label}",
        marks=() if name in KINDS or label == "plain" else pytest.mark.slow,
    )
    for name in PER_EDGE
    for label, lambdas in (("plain", (0.0, 0.0)), ("ccl", (0.05, 0.05)))
]


@pytest.mark.parametrize("name, lambdas", WITH_CCL)
def test_every_method_sends_what_it_should(name, lambdas):
    graph, degrees = home(name)
    got = sent(name, graph, 5, lambdas, steps=2)
    per_edge = PER_EDGE[name][lambdas[0] > 0]
    if name == "all-reduce":  # a ring all-reduce sends 2 (N-1)/N; CCL exchanges models besides
        per_edge = P if lambdas[0] else 0
        got = got - 2 * P * 4 // 5
    extra = SUMS if lambdas[1] else 0
    np.testing.assert_array_equal(got, [np.array(degrees) * (per_edge + extra)] * 2)


NAMES = [
    pytest.param(name, None, marks=() if name in KINDS[:2] else pytest.mark.slow)
    for name in PER_EDGE
]


@pytest.mark.parametrize("name, compressor", [*NAMES, ("dsgd", compression.INT8)])
def test_every_method_trains_with_ccl(name, compressor):
    step, init, data = build(name, home(name)[0], 5, compressor=compressor)
    state = init()
    # Compiled for two steps: not worth optimising.
    step = jax.jit(step).lower(state, data).compile({"xla_backend_optimization_level": 0})
    first = state.params
    for _ in range(2):
        state, metrics = step(state, data)
    values = (state.params, metrics.cross_entropy, metrics.losses)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(values))
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), state.params, first)
    assert all(distance > 0 for distance in jax.tree.leaves(moved))


@pytest.mark.parametrize("name, models", [("dsgdm-n", 1), ("dsgt", 2), ("cga", 2)])
def test_on_a_star_the_hub_pays_for_all(name, models):
    if name == "dsgt":
        with pytest.raises(ValueError, match="doubly stochastic"):
            algorithms.get(name).check(graphs.make("star", 4))
    got = sent(name, "star", 4)
    np.testing.assert_array_equal(got[0], (models * P + SUMS) * np.array([3, 1, 1, 1]))


def test_one_lambda_pays_for_one_exchange_only():
    np.testing.assert_array_equal(sent("dsgd", "ring", 5, (0.05, 0.0)), [[2 * P] * 5])


def test_a_global_start_is_an_all_reduce_in_the_first_step_only():
    step, init, data = build("momentum-tracking", "ring", 5, (0.0, 0.0), hyper={"start": "global"})
    state = blank(init)

    @jax.jit
    def traffic(t):
        here = state._replace(algorithm=state.algorithm._replace(step=t))
        return step(here, data)[1].traffic

    got = np.stack([traffic(jnp.int32(t)).bytes_sent() for t in range(2)])
    np.testing.assert_array_equal(got[:, 0] - 4 * P, [2 * P * 4 // 5, 0])


def test_one_agent_sends_nothing():
    assert sent("qg-dsgdm-n", "ring", 1).sum() == 0


def test_a_directed_graph_sends_one_way_out_and_one_way_back():
    got = sent("sgp", "one-peer-exponential", 4, steps=2)
    np.testing.assert_array_equal(got, [[P + 4 + SUMS] * 4] * 2)


@pytest.mark.parametrize("name", ["sign", "int8", "top-k:0.1"])
def test_compressed_models_and_class_sums(name):
    compressor = compression.make(name)
    wire = compressor.wire_bytes
    models = sum(map(wire, SIZES))
    got = sent("dsgd", "ring", 5, steps=2, compressor=compressor)
    message = got[1, 0] / 2 - models
    # Counts are integers by nature and may be sent as they are.
    sums = wire(CLASSES * FEATURES)
    assert message in (sums + wire(CLASSES), sums + 4 * CLASSES)
    assert got[1, 0] < 0.5 * 2 * (P + SUMS)
    np.testing.assert_array_equal(
        sent("dsgd", "ring", 5, (0.0, 0.0), compressor=compressor), [[2 * models] * 5]
    )


def test_local_steps_talk_in_every_third_step():
    got = sent("qg-dsgdm-n", "ring", 5, steps=4, local_steps=3)
    per_step = 2 * (P + SUMS)
    np.testing.assert_array_equal(got[:, 0], [per_step, 0, 0, per_step])


def test_gossip_twice_sends_models_twice_and_class_sums_once():
    got = sent("dsgd", "ring", 5, gossip_steps=2)
    np.testing.assert_array_equal(got[0], [2 * (2 * P + SUMS)] * 5)


# Local steps and repeated gossip, as numbers.


def mixing(network, step):
    """`[agents, agents]` what a round's `mix` does, from unit vectors."""
    talk = network.round(step)
    return np.asarray(talk.mix(talk.send("x", jnp.eye(network.topology.agents))))


def test_local_steps_leave_everyone_alone_in_between():
    ring = graphs.make("ring", 5)
    network = Network(ring, local_steps=3)
    for step in range(6):
        expected = ring.weights[0] if step % 3 == 0 else np.eye(5)
        np.testing.assert_allclose(mixing(network, step), expected, atol=1e-6)
    alone = network.round(1)
    assert not alone.mask.any()
    assert alone.gather(alone.send("x", jnp.ones((5, 2)))).sum() == 0


def test_gossip_more_than_once_walks_through_a_graph_over_time():
    graph = graphs.make("one-peer-exponential", 8)  # 3 rounds: together the exact average
    network = Network(graph, gossip_steps=2)
    w = graph.weights
    for step, (first, second) in enumerate([(0, 1), (2, 0), (1, 2), (0, 1)]):
        np.testing.assert_allclose(mixing(network, step), w[second] @ w[first], atol=1e-6)
    np.testing.assert_allclose(mixing(Network(graph, gossip_steps=3), 5), np.full((8, 8), 1 / 8))


def test_local_steps_do_not_skip_rounds_of_a_graph_over_time():
    rng = np.random.default_rng(0)
    w = np.stack([np.eye(3)[rng.permutation(3)] * 0.5 + np.eye(3) * 0.5 for _ in range(3)])
    network = Network(topology.from_matrix("moving", w), local_steps=2, gossip_steps=2)
    np.testing.assert_allclose(mixing(network, 0), w[1] @ w[0], atol=1e-6)
    np.testing.assert_allclose(mixing(network, 1), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(mixing(network, 2), w[0] @ w[2], atol=1e-6)


@pytest.mark.parametrize("setting", ["local_steps", "gossip_steps"])
def test_counts_below_one_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} is 0; it must be at least 1"):
        Network(graphs.make("ring", 3), **{setting: 0})
