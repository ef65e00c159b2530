"""The sharded step against the step on one device: equal numbers, and only what must move moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ccl_jax import algorithms, graphs, training
from ccl_jax.devices import parallel
from ccl_jax.graphs import topology
from ccl_jax.network import Network, blocks, compression, mixing
from ccl_jax.network.faults import Faults
from ccl_jax.training import Objective, evaluation
from experiments.benchmark.hlo import Hlo
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch, spread

AGENTS = 8
MODEL = TinyModel()
CCL = Objective(CLASSES, 0.05, 0.05)
KEY = jax.random.key(0)
# Graphs that suit methods which do not take a ring of eight.
SUITABLE = {"relaysgd": "chain", "fedavg": "star", "sgp": "one-peer-exponential", "d2": "full"}
SUITABLE["edm"] = "full"


class Normalised(nn.Module):
    """With batch norm, whose statistics are sums over a batch."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(6)(images.reshape(images.shape[0], -1))
        features = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return features, nn.Dense(CLASSES)(features)


def run(
    name,
    devices,
    form="shard_map",
    graph=None,
    steps=20,
    objective=CCL,
    model=MODEL,
    batch_devices=1,
    size=5,
    **options,
):
    """Parameters, metrics and algorithm state after some steps."""
    method = algorithms.get(name)
    graph = graph or SUITABLE.get(name, "ring")
    made = graphs.make(graph, AGENTS, stochastic=method.stochastic)
    algorithm = algorithms.make(name)
    network = Network(made, devices=devices, **options)
    plan = parallel.Plan(devices * batch_devices, form, batch_devices)
    step = plan.wrap(
        training.make_step(model, algorithm, network, objective, lambda t: jnp.float32(0.02))
    )
    state = training.init_state(model, algorithm, network, objective, IMAGE, KEY)
    if not options:  # Compression starts from models that are alike.
        state = state._replace(params=spread(state.params, 0.1))
    state = plan.put(state)
    jitted = jax.jit(step)
    for t in range(steps):
        state, metrics = jitted(state, plan.put(batch(AGENTS, size, seed=t, padded=t % 3)))
    return plan.fetch(state._replace(key=())), plan.fetch(metrics)


def mixed(network, x):
    """The gossip average of one message."""
    talk = network.round(0)
    return talk.mix(talk.send("x", x))


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


# One of every way of talking; the others are marked as slow.
KINDS = ("qg-dsgdm-n", "relaysgd", "sgp", "ngc")
NAMES = [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
    for name in sorted(algorithms.REGISTRY)
]


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_is_the_same_on_four_devices(name):
    # CCL's own exchange is the same for all; it joins some.
    objective = CCL if name in ("relaysgd", "sgp", "dsgt") else Objective(CLASSES)
    one, metrics = run(name, 1, objective=objective)
    four, sharded = run(name, 4, objective=objective)
    assert_equal(four.params, one.params)
    np.testing.assert_array_equal(sharded.traffic.bytes_sent(), metrics.traffic.bytes_sent())
    assert_equal(sharded.losses, metrics.losses)


def test_a_coin_is_the_same_on_all_devices():
    one, metrics = run("proxskip", 1, local_steps=2, coins=5)
    four, sharded = run("proxskip", 4, local_steps=2, coins=5)
    assert_equal(four.params, one.params)
    np.testing.assert_array_equal(sharded.traffic.bytes_sent(), metrics.traffic.bytes_sent())


@pytest.mark.parametrize("form", parallel.FORMS)
@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_both_forms_on_two_and_eight_devices(form, devices):
    one, metrics = run("qg-dsgdm-n", 1)
    many, sharded = run("qg-dsgdm-n", devices, form)
    assert_equal(many, one)
    assert_equal(sharded, metrics)


GRAPHS = ["torus:2x4", "random-matching"] + [
    pytest.param(graph, marks=pytest.mark.slow) for graph in ("star", "circulant:1,3")
]


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_on_four_devices(graph):
    assert_equal(run("dsgdm-n", 4, graph=graph)[0], run("dsgdm-n", 1, graph=graph)[0])


@pytest.mark.slow
def test_pmap_with_state_in_the_network():
    # Not rounding: there a difference in the last bit can become a whole level.
    options = {"compressor": compression.top_k(0.5), "local_steps": 2}
    one, _ = run("dsgt", 1, **options)
    assert_equal(run("dsgt", 4, "pmap", **options)[0], one)
    assert_equal(run("dsgt", 4, **options)[0], one)


@pytest.mark.parametrize(
    "name, blocks, options",
    [
        ("qg-dsgdm-n", 2, {"objective": Objective(CLASSES, 0.05, 0.05, clip_norm=0.1)}),
        pytest.param(
            "dsgdm-n",
            1,
            {"objective": Objective(CLASSES), "model": Normalised()},
            marks=pytest.mark.slow,
        ),
        pytest.param("ngc", 2, {"objective": Objective(CLASSES)}, marks=pytest.mark.slow),
    ],
)
def test_devices_that_share_batches(name, blocks, options):
    one, metrics = run(name, 1, size=8, **options)
    many, sharded = run(name, blocks, batch_devices=4, size=8, **options)
    assert_equal(many, one)
    assert_equal(sharded, metrics)


PROTOTYPE = Objective(CLASSES, feature_losses=(("prototype", 0.5),))


@pytest.mark.parametrize(
    "name, devices, options",
    [
        ("dsgd", 4, {}),
        ("isolated", 2, {"local_steps": 2}),
        ("dsgd", 2, {"form": "pmap"}),
        pytest.param("dsgd", 2, {"batch_devices": 4}, marks=pytest.mark.slow),
        pytest.param("sgp", 4, {"faults": Faults(drop=0.3)}, marks=pytest.mark.slow),
    ],
)
def test_prototypes_are_the_same_wherever_the_agents_are(name, devices, options):
    network = {k: v for k, v in options.items() if k not in ("form", "batch_devices")}
    one, metrics = run(name, 1, objective=PROTOTYPE, size=8, steps=5, **network)
    many, sharded = run(name, devices, objective=PROTOTYPE, size=8, steps=5, **options)
    assert_equal(many, one)
    assert_equal(sharded, metrics)
    assert (metrics.losses["prototype"] > 0).any()


@pytest.mark.parametrize(
    "name, devices, options",
    [
        ("dsgd", 4, {}),
        ("isolated", 2, {"local_steps": 2}),
        pytest.param("sgp", 2, {"form": "pmap", "local_steps": 2}, marks=pytest.mark.slow),
        pytest.param("dsgd", 2, {"batch_devices": 4}, marks=pytest.mark.slow),
    ],
)
def test_contrast_and_sharpness_are_the_same_wherever_the_agents_are(name, devices, options):
    chosen = (("moon", 0.5), ("logit_distillation", 0.1), ("feature_norm", 0.01))
    settings = {"objective": Objective(CLASSES, feature_losses=chosen, sam_rho=0.1), "size": 8}
    network = {k: v for k, v in options.items() if k == "local_steps"}
    one, metrics = run(name, 1, steps=5, **settings, **network)
    many, sharded = run(name, devices, steps=5, **settings, **options)
    assert_equal(many, one)
    assert_equal(sharded, metrics)


@pytest.mark.parametrize("form", parallel.FORMS)
def test_agents_that_send_nothing_are_spread_too(form):
    one, _ = run("isolated", 1, objective=Objective(CLASSES))
    two, metrics = run("isolated", 2, form=form, objective=Objective(CLASSES))
    assert_equal(two, one)
    assert metrics.traffic.messages.shape == (AGENTS, 0)


@pytest.mark.slow
def test_each_step_with_int8_is_the_same_on_four_devices():
    """From the same state. What is then quantized is the same to the bit, and so are its levels.

    Two runs of their own part after some steps by one whole level of one value (1/127 of the largest),
    where rounding of the last bit has moved it past the middle between two levels.
    """
    options = {"compressor": compression.INT8, "local_steps": 2}
    algorithm = algorithms.make("dsgt")
    plan = parallel.Plan(4)
    plain, sharded = (
        training.make_step(
            MODEL,
            algorithm,
            Network(graphs.make("ring", AGENTS), devices=devices, **options),
            Objective(CLASSES),
            lambda t: jnp.float32(0.02),
        )
        for devices in (1, 4)
    )
    network = Network(graphs.make("ring", AGENTS), **options)
    state = training.init_state(MODEL, algorithm, network, Objective(CLASSES), IMAGE, KEY)
    one, four = jax.jit(plain), jax.jit(plan.wrap(sharded))
    for t in range(20):
        data = batch(AGENTS, seed=t, padded=t % 3)
        found, _ = four(plan.put(state), plan.put(data))
        state, _ = one(state, data)
        assert_equal(found._replace(key=()), plan.fetch(state._replace(key=())))
    assert evaluation.consensus_distance(state.params) > 1e-3  # Something was there to be sent.


def test_each_device_sees_its_part_of_a_batch():
    """8 agents x 8 samples over 2 x 4 devices: the forward pass of each is on 4 agents x 2 samples."""
    network = Network(graphs.make("ring", AGENTS), devices=2)
    plan = parallel.Plan(8, batch_devices=4)
    algorithm = algorithms.make("dsgd")
    objective = Objective(CLASSES)
    step = training.make_step(MODEL, algorithm, network, objective, lambda t: 0.1)
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, KEY)
    batches = batch(AGENTS, 8)
    text = jax.jit(plan.wrap(step)).lower(plan.put(state), batches).compile().as_text()
    # The hidden layer has 6 units.
    assert re.search(r"f32\[4,2,6\]\S* (dot|fusion)\(", text)
    assert not re.search(r"f32\[(4|8),8,6\]", text)


@pytest.mark.slow
def test_faults_are_the_same_wherever_the_agents_are():
    faults = Faults(drop=0.3, drop_burst=2.0, offline=0.1, offline_length=3, straggle=0.3, seed=5)
    one, metrics = run("qg-dsgdm-n", 1, faults=faults)
    many, sharded = run("qg-dsgdm-n", 4, faults=faults)
    assert_equal(many, one)
    np.testing.assert_array_equal(sharded.traffic.lost, metrics.traffic.lost)


def test_a_ring_passes_two_agents_a_device_and_a_full_graph_gathers_all():
    ring = blocks.make_schedule(graphs.make("ring", 64), 8)
    assert [shift.distance for shift in ring.shifts] == [1, 7]
    assert ring.rows_moved == 2
    full = blocks.make_schedule(graphs.make("full", 64), 8)
    assert full.shifts is None
    assert full.rows_moved == 56


def test_the_compiled_ring_moves_by_collective_permute_only_what_crosses():
    made = graphs.make("ring", 8)
    network = Network(made, devices=4)
    plan = parallel.Plan(4)
    spec = jax.sharding.PartitionSpec(blocks.AXIS)
    mix = jax.shard_map(lambda x: mixed(network, x), mesh=plan.mesh, in_specs=spec, out_specs=spec)
    text = jax.jit(mix).lower(jnp.zeros((8, 1000))).compile().as_text()
    assert "all-gather" not in text
    # One row of 1,000 numbers in each direction, for blocks of two agents.
    moved = re.findall(r"= f32\[(\d+),1000\]\S* collective-permute(?:-start)?\(", text)
    assert moved == ["1", "1"]


def test_all_parameters_cross_together_one_buffer_a_direction():
    made = graphs.make("ring", 8)
    network = Network(made, devices=4)
    plan = parallel.Plan(4)
    spec = jax.sharding.PartitionSpec(blocks.AXIS)
    params = {"kernel": jnp.zeros((8, 3, 5)), "bias": jnp.zeros((8, 5)), "scale": jnp.zeros(8)}
    params["counts"] = jnp.zeros((8, 2), jnp.bfloat16)
    mix = jax.shard_map(lambda x: mixed(network, x), mesh=plan.mesh, in_specs=spec, out_specs=spec)
    text = jax.jit(mix).lower(params).compile().as_text()
    moved = re.findall(r"= (f32|bf16)\[1,(\d+)\]\S* collective-permute(?:-start)?\(", text)
    # XLA's CPU compiler may compute in another type than bfloat16, but moves no more buffers.
    assert sorted(int(size) for _, size in moved) == [2, 2, 21, 21]


@pytest.mark.parametrize("form", parallel.FORMS)
@pytest.mark.parametrize("objective, messages", [(Objective(CLASSES), 1), (CCL, 5)])
def test_a_step_on_a_ring_crosses_twice_for_each_kind_of_message(objective, messages, form):
    """One buffer a direction: gossip and cross-features share the models' crossing."""
    network = Network(graphs.make("ring", AGENTS), devices=4)
    plan, algorithm = parallel.Plan(4, form), algorithms.make("qg-dsgdm-n")
    step = training.make_step(MODEL, algorithm, network, objective, lambda t: jnp.float32(0.02))
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, KEY)
    program = jax.jit(plan.wrap(step)).lower(plan.put(state), plan.put(batch(AGENTS, 5)))
    # Numbers of one agent: its model; 5 images of 9 pixels; and for each of two neighbours 6 features
    # of 5 images, sums of the features of 4 classes, and how many samples they are of.
    numbers = [9 * 6 + 6 + 6 * 4 + 4, 5 * 9, 2 * 5 * 6, 2 * 4 * 6, 2 * 4][:messages]
    expected = {"collective-permute": (2 * messages, 2 * 4 * sum(numbers))}
    assert Hlo(program.compile().as_text()).collectives() == expected


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="there are 8"):
        parallel.Plan(9)
    with pytest.raises(ValueError, match="divides 6"):
        Network(graphs.make("ring", 6), devices=4)
    with pytest.raises(ValueError, match="shard_map or pmap"):
        parallel.Plan(2, "xmap")


def test_what_a_program_has_to_expect_is_what_put_gives():
    """Among devices of one's own choice, which only a description has to be there of."""
    plan = parallel.Plan(2, among=jax.devices()[4:])
    assert list(plan.mesh.devices.flat) == jax.devices()[4:6] and plan.processes == 1
    tree = {"params": jnp.zeros((4, 3)), "step": jnp.int32(0), "key": KEY}
    expected, given = plan.expected(jax.eval_shape(lambda: tree)), plan.put(tree)
    for name, x in given.items():
        assert (expected[name].shape, expected[name].dtype) == (x.shape, x.dtype)
        assert expected[name].sharding.is_equivalent_to(x.sharding, x.ndim)
    with pytest.raises(ValueError, match="5 devices were asked for, and there are 4"):
        parallel.Plan(5, among=jax.devices()[4:])


def test_usable_devices_divide_the_agents():
    assert [parallel.usable_devices(n) for n in (1, 6, 7, 8, 12, 16)] == [1, 6, 7, 8, 6, 8]


def test_sparse_and_dense_gossip_agree():
    """A graph whose degree is small against its size is mixed neighbour by neighbour."""
    made = graphs.make("ring", 40)
    network = Network(made)
    assert network.weighted_sums is mixing.sparse
    x = jax.random.normal(jax.random.key(0), (40, 3, 5))
    expected = np.einsum("ij,jab->iab", made.weights[0], x)
    np.testing.assert_allclose(mixed(network, x), expected, rtol=1e-5, atol=1e-6)
    double = topology.from_neighbors("double", [[(i + 1) % 40, (i + 1) % 40] for i in range(40)])
    expected = np.einsum("ij,jab->iab", double.weights[0], x)
    np.testing.assert_allclose(mixed(Network(double), x), expected, rtol=1e-5, atol=1e-6)
