"""The prototype loss: by hand, against plain loops over steps, and from the command line."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs, training
from ccl_jax.losses import DISTANCES, Own
from ccl_jax.losses.needs import NeighborPrototypes
from ccl_jax.losses.prototype import prototype_loss
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.support import tiny_main
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch, spread

MODEL = TinyModel()
LR, WEIGHT = 0.1, 0.7
PROTOTYPE = Objective(CLASSES, feature_losses=(("prototype", WEIGHT),))

FEATURES = jnp.array([[1.0, 2.0], [3.0, 5.0], [7.0, 7.0], [9.0, 9.0]])
OWN = Own(FEATURES, jnp.zeros((4, 3)), jnp.array([0, 2, 1, 0]), jnp.array([True] * 3 + [False]))
# Of classes 0 to 2. The first neighbour has class 0, the second 0 and 2, the third entry is padding.
MEANS = jnp.array([[[3, 2], [50, 50], [50, 50]], [[5, 0], [50, 50], [2, 3]], [[50, 50]] * 3], float)
KNOWN = jnp.array([[True, False, False], [True, False, True], [False] * 3])


def loss(features, means=MEANS, distance="mse"):
    heard = {"neighbor_prototypes": NeighborPrototypes(means, KNOWN)}
    return prototype_loss(OWN._replace(features=features), heard, DISTANCES[distance])


@pytest.mark.parametrize(("distance", "expected"), [("mse", 2.5), ("l1", 3.5 / 3)])
def test_a_loss_by_hand(distance, expected):
    # Class 0 goes to (4, 1): differences (-3, 1), mean square 5 and mean size 2. Class 2 to (2, 3):
    # (1, 2), 2.5 and 1.5. Nobody has class 1: 0. The fourth sample is padding.
    np.testing.assert_allclose(loss(FEATURES, distance=distance), expected, rtol=1e-6)


def test_gradients_by_hand():
    """2 (z - t) / (2 features x 3 samples), and none through what was heard."""
    own, heard = jax.grad(loss, (0, 1))(FEATURES, MEANS)
    expected = np.array([[-3, 1], [1, 2], [0, 0], [0, 0]]) / 3
    np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    assert (heard == 0).all()


@pytest.mark.parametrize("client", range(3))
def test_replays_the_authors_code_where_all_are_neighbours(client, float64):
    """A round of FedProto is a full graph on which an agent hears itself, too."""
    recorded = np.load(
        pathlib.Path(__file__).parents[1] / "fixtures/methods_2026/fedproto_loss_a.npz"
    )
    size = json.loads(str(recorded["config"]))["batch_size"]
    z, y = (recorded[f"client{client}.{name}_next"] for name in ("features", "labels"))
    known = jnp.asarray(recorded["local_counts"] > 0)
    heard = {"neighbor_prototypes": NeighborPrototypes(recorded["local_prototypes"], known)}

    def of_batch(features, labels):
        own = Own(features, features[:, :1], labels, jnp.ones(len(labels), bool))
        return prototype_loss(own, heard, DISTANCES["mse"])

    for k, at in enumerate(range(0, len(y), size)):
        here = slice(at, at + size)
        value, gradient = jax.value_and_grad(of_batch)(jnp.asarray(z[here], float), y[here])
        np.testing.assert_allclose(value, recorded[f"client{client}.loss2"][k], rtol=1e-12)
        wanted = recorded[f"client{client}.grad_features"][here]
        np.testing.assert_allclose(gradient, wanted, rtol=1e-12, atol=1e-15)


def build(method="dsgd", graph="ring", agents=4, objective=PROTOTYPE, **options):
    """A jitted step and a state in which agents already differ."""
    topology = graphs.make(graph, agents, stochastic=algorithms.get(method).stochastic)
    algorithm = algorithms.make(method, weight_decay=0.0)
    network = Network(topology, **options)
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))
    step = training.make_step(MODEL, algorithm, network, objective, lambda t: LR)
    return jax.jit(step), state._replace(params=spread(state.params))


def agent(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def apply(params, images):
    return MODEL.apply({"params": params}, images)


def real(data, i):
    """An agent's samples without padding."""
    mask = np.asarray(data.mask[i])
    return data.images[i][mask], np.asarray(data.labels[i])[mask]


def class_means(params, data, i):
    """Class -> mean feature of one agent's batch."""
    images, labels = real(data, i)
    features = np.asarray(apply(params, images)[0])
    return {c: features[labels == c].mean(axis=0) for c in set(labels.tolist())}


def objective_of(params, data, i, heard, weight):
    """Cross-entropy + weight x the loss of agent i, sample by sample."""
    images, labels = real(data, i)
    features, logits = apply(params, images)
    log_p = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    cross_entropy = -jnp.stack([log_p[b, c] for b, c in enumerate(labels)]).mean()
    distances = []
    for z, c in zip(features, labels.tolist(), strict=True):
        targets = [means[c] for means in heard if c in means]
        distances.append(jnp.square(z - sum(targets) / len(targets)).mean() if targets else 0.0)
    prototype = jnp.mean(jnp.stack([jnp.float32(d) for d in distances]))
    return cross_entropy + weight * prototype, prototype


@pytest.mark.parametrize("local_steps", [1, 2])
def test_steps_against_a_loop(local_steps):
    """DSGD on a ring of four. What is heard in a step is of the batch of the step before."""
    step, state = build(local_steps=local_steps)
    neighbors = [[1, 3], [0, 2], [1, 3], [2, 0]]
    earlier = [{}] * 4
    for t in range(4):
        data, before = batch(4, seed=t, padded=2), state
        talking = t % local_steps == 0
        state, metrics = step(state, data)
        kept = []
        for i in range(4):
            group = [i, *neighbors[i]] if talking else [i]
            mixed = jax.tree.map(lambda x, g=group: sum(x[j] for j in g) / len(g), before.params)
            heard = [earlier[j] for j in neighbors[i]] if talking else []
            gradient, expected = jax.grad(objective_of, has_aux=True)(mixed, data, i, heard, WEIGHT)
            found = metrics.losses["prototype"][i]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
            close = lambda x, m, g: np.testing.assert_allclose(x, m - LR * g, rtol=1e-5, atol=1e-6)
            jax.tree.map(close, agent(state.params, i), mixed, gradient)
            kept.append(class_means(mixed, data, i))
        assert metrics.losses["prototype"].any() == (talking and t > 0)
        earlier = kept


def test_a_weight_of_zero_is_no_loss_bit_for_bit():
    none, state = build(objective=Objective(CLASSES))
    zero, other = build(objective=Objective(CLASSES, feature_losses=(("prototype", 0.0),)))
    assert jax.tree.structure(state) == jax.tree.structure(other)
    assert zero.lower(state, batch(4)).as_text() == none.lower(state, batch(4)).as_text()


# By C = 4 classes and F = 6 features; a model is 88 float32.
SIZE = (CLASSES * 6 + CLASSES) * 4
MODEL_SIZE = 88 * 4


@pytest.mark.parametrize(
    ("method", "graph", "sent"),
    [
        ("dsgd", "ring", [2 * (MODEL_SIZE + SIZE)] * 4),
        ("dsgd", "star", [3 * (MODEL_SIZE + SIZE)] + [MODEL_SIZE + SIZE] * 3),
        # Methods that send no models, or not to neighbours.
        ("isolated", "ring", [2 * SIZE] * 4),
        ("all-reduce", "ring", [2 * MODEL_SIZE * 3 // 4 + 2 * SIZE] * 4),
    ],
)
def test_it_costs_class_sums_and_counts_to_each_neighbour(method, graph, sent):
    step, state = build(method, graph)
    for t in range(2):
        state, metrics = step(state, batch(4, seed=t))
        assert metrics.traffic.bytes_sent().tolist() == sent
        assert ((metrics.losses["prototype"] > 0) == (t > 0)).all()


def test_nothing_is_sent_in_a_step_without_exchange():
    step, state = build("isolated", local_steps=2)
    sent = []
    for t in range(4):
        state, metrics = step(state, batch(4, seed=t))
        sent.append(metrics.traffic.bytes_sent().tolist())
    assert sent == [[2 * SIZE] * 4, [0] * 4] * 2


QUICK = ("--algorithm=dsgd", "--epochs=2", "--eval_every=1", "--batch_size=64", "--nofigures")


def test_from_the_command_line(tmp_path, capsys):
    flags = (*QUICK, "--feature_loss=prototype:0.1", f"--workdir={tmp_path / 'run'}")
    assert tiny_main.main(["tiny_main", *flags]) == 0
    assert "prototype + dsgd " in capsys.readouterr().out
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["prototype_loss"] > 0 for row in rows) and len(rows) == 2
    assert not {"model_variant_loss", "data_variant_loss"} & set(rows[0])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["label"] == "prototype + dsgd"
    assert summary["feature_losses"] == {"prototype": 0.1}
    assert summary["prototype_loss"] == rows[1]["prototype_loss"]
    # Two neighbours; 64 x 6 + 6 + 6 x 10 + 10 numbers a model, 10 classes of 6 features.
    assert summary["bytes_sent_per_agent"] == summary["steps"] * 2 * 4 * (460 + 70)
