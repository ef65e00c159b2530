"""Distances by hand, the registry of feature losses, and a loss that a user brings along."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs, losses, training
from ccl_jax.losses import DISTANCES
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.support.few_steps import FewSteps, agent, same_program
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch, spread

MODEL = TinyModel()


def features(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_zero_at_equality_and_positive_elsewhere(name):
    a, b = features(0, 5, 8), features(1, 5, 8)
    np.testing.assert_allclose(DISTANCES[name](a, a), np.zeros(5), atol=1e-6)
    assert (DISTANCES[name](a, b) > 0.01).all()


@pytest.mark.parametrize(
    ("name", "expected"), [("mse", 2.5), ("l1", 1.5), ("huber", 1.0), ("cosine", 1.0)]
)
def test_distances_by_hand(name, expected):
    # Differences 1 and 2; Huber with delta 1: 1/2 and 3/2; orthogonal vectors.
    a, b = {"cosine": ([1.0, 0.0], [0.0, 3.0])}.get(name, ([1.0, 2.0], [0.0, 0.0]))
    np.testing.assert_allclose(DISTANCES[name](jnp.array(a), jnp.array(b)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [([True, True, True], 3.0), ([True, False, True], 2.5), ([False, False, False], 0.0)],
)
def test_masked_mean_is_over_what_is_there(mask, expected):
    assert losses.masked_mean(jnp.array([1.0, 4.0, 4.0]), jnp.array(mask)) == expected


def test_every_loss_says_what_it_needs_and_where_it_is_from():
    assert {name: entry.needs for name, entry in losses.REGISTRY.items()} == {
        "model_variant": ("neighbor_features",),
        "data_variant": ("class_sums",),
        "prototype": ("neighbor_prototypes",),
        "decorrelation": (),
        "feature_norm": (),
        "logit_distillation": ("neighbor_logits",),
        "moon": ("neighbor_features", "previous_features"),
    }
    apart = {name: entry.needs_with(5) for name, entry in losses.REGISTRY.items()}
    assert apart == {name: entry.needs for name, entry in losses.REGISTRY.items()} | {
        "moon": ("mixed_features", "previous_features")
    }
    for name, entry in losses.REGISTRY.items():
        assert entry.name == name and entry.summary and entry.reference
        assert losses.get(name) is entry


@pytest.mark.parametrize(
    ("asked", "nearest"), [("prototpye", "prototype"), ("data-variant", "data_variant")]
)
def test_an_unknown_name_is_answered_with_the_nearest(asked, nearest):
    with pytest.raises(ValueError, match=f"unknown feature loss '{asked}': .* '{nearest}'"):
        losses.get(asked)


def test_options_are_the_keyword_arguments_of_a_loss():
    assert {name: entry.options for name, entry in losses.REGISTRY.items() if entry.options} == {
        "moon": {"temperature": 0.5},
        "logit_distillation": {"temperature": 3.0},
    }


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("moon", {"tau": 1.0}, "moon has no option tau; it takes temperature"),
        ("prototype", {"temperature": 1.0}, "prototype has no option temperature; it takes none"),
        ("moon", {"temperature": 0.0}, "temperature of feature loss moon is 0.0; .* a number > 0"),
        ("moon", {"temperature": "hot"}, "temperature of feature loss moon is 'hot'"),
        ("moon", {"temperature": True}, "temperature of feature loss moon is True"),
    ],
)
def test_options_that_are_refused(name, given, says):
    with pytest.raises(ValueError, match=says):
        Objective(CLASSES, loss_options={name: given})


@pytest.fixture
def registry():
    """What a test registers is gone after it."""
    before = dict(losses.REGISTRY)
    yield
    losses.REGISTRY.clear()
    losses.REGISTRY.update(before)


def test_a_loss_of_ones_own_is_in_the_gradient_and_in_the_metrics(registry):
    """Half the squared logits: it needs to hear nothing, so nothing more is sent."""

    @losses.register("small_logits", summary="small logits", reference="here")
    def small_logits(own, heard, distance):
        assert heard == {}
        return losses.masked_mean(0.5 * jnp.square(own.logits).sum(axis=-1), own.mask)

    objective = Objective(CLASSES, feature_losses=(("small_logits", 0.3),))
    algorithm, network = algorithms.make("dsgd", weight_decay=0.0), Network(graphs.make("ring", 3))
    step = training.make_step(MODEL, algorithm, network, objective, lambda t: 0.1)
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))
    state, data = state._replace(params=spread(state.params)), batch(3, padded=2)
    new, metrics = jax.jit(step)(state, data)
    # A ring of three: everyone starts from the mean.
    mean = jax.tree.map(lambda x: x.mean(axis=0), state.params)

    def loss(params, i):
        logits = MODEL.apply({"params": params}, data.images[i])[1]
        logits = logits[: int(data.mask[i].sum())]
        log_p = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        hit = jnp.stack([log_p[b, data.labels[i, b]] for b in range(len(logits))])
        small = jnp.square(logits).sum() / 2 / len(logits)
        return 0.3 * small - hit.mean(), small

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for i in range(3):
        gradient, small = jax.grad(loss, has_aux=True)(mean, i)
        close(metrics.losses["small_logits"][i], small)
        moved = jax.tree.map(lambda m, g: m - 0.1 * g, mean, gradient)
        jax.tree.map(lambda x, y, i=i: close(x[i], y), new.params, moved)
    # Two neighbours, a model of 88 float32.
    np.testing.assert_array_equal(metrics.traffic.bytes_sent(), [2 * 4 * 88] * 3)


def test_a_need_that_nobody_knows_is_refused(registry):
    enter = losses.register("bad", needs=("neighbour_features",), summary="-", reference="-")
    enter(lambda own, heard, distance: 0.0)
    with pytest.raises(ValueError, match="'neighbour_features': did you mean 'neighbor_features'"):
        Objective(CLASSES, feature_losses=(("bad", 0.1),))


@pytest.fixture
def remembering():
    """A loss whose memory is the sum of the features that it saw; its value is of the one before."""

    def loss(own, heard, distance):
        seen = jnp.where(own.mask[:, None], own.features, 0.0).sum(axis=0)
        return heard["memory"].sum() + 0.0 * own.features.sum(), heard["memory"] + seen

    start = lambda own: jnp.ones(own.features.shape[-1:])
    losses.register("remembering", summary="a test", reference="here", memory=start)(loss)
    yield Objective(CLASSES, feature_losses=(("remembering", 0.5),))
    del losses.REGISTRY["remembering"]


def test_a_memory_is_added_up_from_step_to_step(remembering):
    run, memory = FewSteps(objective=remembering), np.ones((4, 6))
    for seed in range(3):
        params = run.state.params
        # The gradient is taken at the mixed point, on a ring of four.
        mix = lambda x: (x + jnp.roll(x, 1, axis=0) + jnp.roll(x, -1, axis=0)) / 3
        data = run.step(seed, padded=2 if seed < 2 else 5)
        np.testing.assert_allclose(
            run.metrics.losses["remembering"], memory.sum(axis=1), rtol=1e-5, atol=1e-5
        )
        mixed = jax.tree.map(mix, params)
        for i in range(4):
            z = MODEL.apply({"params": agent(mixed, i)}, data.images[i])[0]
            memory[i] += np.asarray(z)[np.asarray(data.mask[i])].sum(axis=0)
        np.testing.assert_allclose(run.state.kept["memory"]["remembering"], memory, rtol=1e-5)


def test_a_weight_of_zero_remembers_nothing(remembering):
    same_program(Objective(CLASSES), Objective(CLASSES, feature_losses=(("remembering", 0.0),)))


def test_a_memory_that_changes_its_form_is_refused(remembering):
    entry = losses.REGISTRY["remembering"]
    wrong = lambda *given: (entry.loss(*given)[0], jnp.zeros(7))
    losses.REGISTRY["remembering"] = dataclasses.replace(entry, loss=wrong)
    said = r"feature loss remembering returns the memory float32\[7\]; .* float32\[6\]"
    with pytest.raises(ValueError, match=said):
        FewSteps(objective=remembering).step(0)
