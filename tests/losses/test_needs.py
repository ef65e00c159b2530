"""What losses hear: against plain loops, by hand, and nothing but what is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ccl_jax import algorithms, graphs, training
from ccl_jax.graphs import topology
from ccl_jax.losses import Batch, ClassSums, Own, class_sums, collect, needs
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch

FEATURES = jax.ShapeDtypeStruct((1, 2), jnp.float32)
MASK = np.array([True, True, True, False])
LABELS = np.array([0, 2, 0, 1], np.int32)


def features(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_class_sums_by_hand():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [100.0, 100.0]])
    sums, counts = class_sums(x, jnp.asarray(LABELS), jnp.asarray(MASK), 4)
    np.testing.assert_allclose(sums, [[6, 8], [0, 0], [3, 4], [0, 0]])
    np.testing.assert_allclose(counts, [2, 0, 1, 0])


def test_exchange_against_a_loop():
    """Linear "models" on a chain of three: everything worked out agent by agent."""
    table = np.array([[1, -1], [0, 2], [1, -1]])
    talk = Network(topology.from_neighbors("chain", table)).round(0)
    models, images = features(0, 3, 5, 4), features(1, 3, 6, 5)
    labels = jax.random.randint(jax.random.key(2), (3, 6), 0, 3, jnp.int32)
    mask = jnp.arange(6)[None] < jnp.array([6, 4, 5])[:, None]
    heard = collect(
        ("neighbor_features", "class_sums"),
        talk,
        lambda m, x: (x @ m, None),
        talk.send("params", models),
        Batch(images, labels, mask),
        3,
    )
    cross, back = heard["neighbor_features"], heard["class_sums"]
    np.testing.assert_array_equal(cross.mask, table >= 0)
    for i in range(3):
        sums, counts = np.zeros((3, 4)), np.zeros(3)
        for d, j in enumerate(table[i]):
            if j < 0:
                assert (cross.features[i, d] == 0).all()
                continue
            np.testing.assert_allclose(cross.features[i, d], images[i] @ models[j], rtol=1e-4)
            for b in range(6):  # what neighbour j made of my model on its data
                if mask[j, b]:
                    sums[labels[j, b]] += images[j, b] @ models[i]
                    counts[labels[j, b]] += 1
        np.testing.assert_allclose(back.sums[i], sums, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(back.counts[i], counts)


def test_prototypes_are_means_of_what_neighbours_kept():
    """A chain of three with one feature and two classes; class 1 is the middle agent's alone."""
    table = np.array([[1, -1], [0, 2], [1, -1]])
    talk = Network(topology.from_neighbors("chain", table)).round(5)
    kept = ClassSums(
        jnp.array([[[6.0], [0.0]], [[1.0], [8.0]], [[-4.0], [0.0]]]),
        jnp.array([[3.0, 0.0], [1.0, 4.0], [2.0, 0.0]]),
    )
    data = Batch(jnp.zeros((3, 1, 1)), jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1), bool))
    heard = collect(("neighbor_prototypes",), talk, None, None, data, 2, {"prototypes": kept})
    (means, known) = heard["neighbor_prototypes"]
    assert set(heard) == {"neighbor_prototypes"}
    np.testing.assert_array_equal(
        means[..., 0], [[[1, 2], [0, 0]], [[2, 0], [-2, 0]], [[1, 2], [0, 0]]]
    )
    np.testing.assert_array_equal(known, [[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 1], [0, 0]]])


def test_what_is_kept_is_the_own_batch_by_class_and_nothing_without_a_need():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [100.0, 100.0]])
    own = Own(x, jnp.zeros((4, 3)), jnp.asarray(LABELS), jnp.asarray(MASK))
    sums, counts = needs.keep(("neighbor_prototypes",), own, 3)["prototypes"]
    np.testing.assert_array_equal(sums, [[6, 8], [0, 0], [3, 4]])
    np.testing.assert_array_equal(counts, [2, 0, 1])
    assert needs.keep(("neighbor_features", "class_sums"), own, 3) == {}
    assert needs.start(("neighbor_features", "class_sums"), 5, 3, FEATURES) == {}
    start = needs.start(("neighbor_prototypes",), 5, 3, FEATURES)["prototypes"]
    assert (start.sums.shape, start.counts.shape) == ((5, 3, 2), (5, 3))
    assert not start.sums.any() and not start.counts.any()


def test_one_pass_of_a_neighbours_model_gives_features_and_logits():
    talk = Network(graphs.make("chain", 2)).round(0)
    models = jnp.array([[[2.0]], [[3.0]]])
    data = Batch(
        jnp.array([[[5.0]], [[7.0]]]), jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool)
    )
    forward = lambda m, x: (x @ m, 10 * x @ m)
    heard = collect(("neighbor_logits",), talk, forward, talk.send("x", models), data, 3)
    assert heard["neighbor_features"].features.tolist() == [[[[15.0]]], [[[14.0]]]]
    assert heard["neighbor_logits"].logits.tolist() == [[[[150.0]]], [[[140.0]]]]
    assert heard["neighbor_logits"].mask.tolist() == [[True], [True]]


def test_own_models_are_kept_between_exchanges_only():
    models = {"w": jnp.arange(4.0)}
    every = tuple(needs.NEEDS)
    assert set(needs.start(every, 4, 3, FEATURES)) == {"prototypes"}
    assert set(needs.start(("neighbor_features",), 4, 3, FEATURES, models)) == set()
    kept = needs.start(("previous_features",), 4, 3, FEATURES, models)["models"]
    assert set(kept) == {"previous_features"}
    np.testing.assert_array_equal(kept["previous_features"]["w"], models["w"])


def test_what_is_heard_is_constant():
    talk = lambda: Network(graphs.make("ring", 3)).round(0)
    data = Batch(features(1, 3, 6, 5), jnp.zeros((3, 6), jnp.int32), jnp.ones((3, 6), bool))
    every = tuple(needs.NEEDS)

    def total(models, sums):
        here = talk()
        kept = {"prototypes": ClassSums(sums, jnp.ones((3, 3)))}
        sent = here.send("params", models)
        own = dict.fromkeys(needs.own_models(every), models)
        forward = lambda m, x: (x @ m, 2 * x @ m)
        heard = collect(every, here, forward, sent, data, 3, kept, own=own)
        assert set(heard) == set(every)
        return sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(heard))

    value, gradients = jax.value_and_grad(total, (0, 1))(features(0, 3, 5, 4), features(2, 3, 3, 4))
    assert value > 1 and all((g == 0).all() for g in gradients)


class Counted(nn.Module):
    """Tells on each trace whether it is the own forward pass or another model's."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        PASSES.append("own" if train else "foreign")
        return TinyModel()(images)


PASSES = []
# Bytes: 88 float32 of a model, class sums of 4 x 6 and 4 counts; or both in one message.
MODEL, SUMS, COUNTS, PROTOTYPES = 352, 96, 16, 112
PROTOTYPE = {"feature_losses": (("prototype", 0.1),)}


def of(*names):
    return {"feature_losses": tuple((name, 0.1) for name in names)}


@pytest.mark.parametrize(
    ("method", "chosen", "foreign", "sizes"),
    [
        ("dsgd", {}, 0, [MODEL]),
        ("dsgd", {"lambda_m": 0.1}, 1, [MODEL]),
        ("dsgd", {"lambda_d": 0.1}, 1, [MODEL, SUMS, COUNTS]),
        ("dsgd", {"lambda_m": 0.1, "lambda_d": 0.1}, 1, [MODEL, SUMS, COUNTS]),
        ("dsgd", {"measure": True}, 1, [MODEL]),
        ("dsgd", {"lambda_m": 0.1, "measure": True}, 1, [MODEL]),
        ("dsgd", PROTOTYPE, 0, [MODEL, PROTOTYPES]),
        ("dsgd", {"lambda_m": 0.1, **PROTOTYPE}, 1, [MODEL, PROTOTYPES]),
        ("dsgd", {"lambda_d": 0.1, **PROTOTYPE}, 1, [MODEL, SUMS, COUNTS, PROTOTYPES]),
        ("dsgd", {"measure": True, **PROTOTYPE}, 1, [MODEL, PROTOTYPES]),
        ("dsgd", of("decorrelation", "feature_norm"), 0, [MODEL]),
        # Features and logits are of one pass; the second is the own model before mixing.
        ("dsgd", of("logit_distillation"), 1, [MODEL]),
        ("dsgd", {"measure": True, **of("logit_distillation")}, 1, [MODEL]),
        ("dsgd", of("moon"), 2, [MODEL]),
        ("dsgd", {"lambda_d": 0.1, **of("moon", "logit_distillation")}, 2, [MODEL, SUMS, COUNTS]),
        # A method that sends no models sends them for a loss that needs them, and for no other.
        ("isolated", {}, 0, []),
        ("isolated", {"lambda_m": 0.1}, 1, [MODEL]),
        ("isolated", {"measure": True}, 1, []),
        ("isolated", PROTOTYPE, 0, [PROTOTYPES]),
        ("isolated", of("moon"), 2, [MODEL]),
        ("isolated", of("logit_distillation"), 1, [MODEL]),
        ("isolated", of("feature_norm"), 0, []),
    ],
)
def test_only_what_is_needed_is_computed_and_sent(method, chosen, foreign, sizes):
    objective = Objective(CLASSES, **chosen)
    algorithm, network = algorithms.make(method), Network(graphs.make("ring", 3))
    model = Counted()
    state = training.init_state(model, algorithm, network, objective, IMAGE, jax.random.key(0))
    step = training.make_step(model, algorithm, network, objective, lambda t: 0.1)
    PASSES.clear()
    _, metrics = jax.jit(step)(state, batch(3))
    assert sorted(PASSES) == ["foreign"] * foreign + ["own"]
    assert np.asarray(metrics.traffic.message_bytes).tolist() == [sizes] * 3
    assert (np.asarray(metrics.traffic.messages) == 2).all()  # to each of two neighbours
