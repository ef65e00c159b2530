"""MOON: against recordings of its authors' code, by hand, and both of its forms against plain loops."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.losses import DISTANCES, Own, get
from ccl_jax.losses.moon import moon_loss
from ccl_jax.losses.needs import NeighborFeatures
from ccl_jax.network.faults import Faults
from ccl_jax.training import Objective
from tests.support import tiny_main
from tests.support.few_steps import LR, FewSteps, agent, apply, same_program
from tests.support.tiny import CLASSES

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "fixtures/methods_2026/moon_loss_a.npz")
CASES = json.loads(str(RECORDED["config"]))["cases"]
WEIGHT, TAU = 0.7, 0.3
OBJECTIVE = Objective(
    CLASSES,
    feature_losses=(("moon", WEIGHT),),
    loss_options={"moon": {"temperature": TAU}},
)
ALL = jnp.ones(2, bool)


@pytest.mark.parametrize("k", range(len(CASES)))
def test_replays_the_authors_code(k, float64):
    z, positive, negatives = (
        jnp.asarray(RECORDED[f"case{k}.{name}"], jnp.float64)
        for name in ("z", "z_global", "z_previous")
    )
    mu, tau = CASES[k]["mu"], CASES[k]["temperature"]
    loss = lambda z: mu * moon_loss(z, positive, negatives, jnp.ones(len(z), bool), tau)
    value, gradient = jax.value_and_grad(loss)(z)
    np.testing.assert_allclose(value, RECORDED[f"case{k}.loss"], rtol=1e-12)
    np.testing.assert_allclose(gradient, RECORDED[f"case{k}.grad_z"], rtol=1e-9, atol=1e-14)


def test_by_hand():
    # Cosines 1 and 0 with the positive, 0 and 1 with the negative, at temperature 0.5.
    z, positive = jnp.array([[2.0, 0.0], [0.0, 5.0]]), jnp.array([[3.0, 0.0], [1.0, 0.0]])
    negative = jnp.array([[[0.0, 1.0], [0.0, 1.0]]])
    expected = [np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))]
    for mask, value in (([1, 1], np.mean(expected)), ([1, 0], expected[0]), ([0, 0], 0.0)):
        found = moon_loss(z, positive, negative, jnp.array(mask, bool))
        np.testing.assert_allclose(found, value, rtol=1e-6)


def test_features_of_zero_have_no_gradient_and_no_nan():
    zero, one = jnp.zeros((2, 3)), jnp.ones((2, 3))
    value, gradient = jax.value_and_grad(moon_loss)(zero, one, -one[None], ALL)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert jnp.isfinite(gradient).all()
    assert moon_loss(one, zero, zero[None], ALL) == pytest.approx(np.log(2))


def test_references_are_constants():
    z, positive, negative = jax.random.normal(jax.random.key(0), (3, 2, 4))
    own, *others = jax.grad(moon_loss, (0, 1, 2))(z, positive, negative[None], ALL)
    assert own.any() and not any(g.any() for g in others)


def test_the_positive_is_the_mean_over_real_neighbours_and_without_any_there_is_no_loss():
    own = Own(jnp.array([[1.0, 1.0]]), None, None, jnp.array([True]))
    z = jnp.array([[[4.0, 0.0]], [[0.0, 4.0]], [[-9.0, -9.0]]])  # their mean has cosine 1

    def loss(real):
        heard = {
            "neighbor_features": NeighborFeatures(z, jnp.array(real)),
            "previous_features": jnp.array([[-1.0, -1.0]]),
        }
        return get("moon").loss(own, heard, DISTANCES["mse"])

    np.testing.assert_allclose(loss([True, True, False]), np.log(1 + np.exp(-4)), rtol=1e-5)
    assert loss([False] * 3) == 0


def contrast(z, positive, negative):
    cosine = lambda a, b: (a * b).sum(axis=1) / jnp.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    towards, away = (jnp.exp(cosine(z, r) / TAU) for r in (positive, negative))
    return -jnp.log(towards / (towards + away)).mean()


NEIGHBORS = [[1, 3], [0, 2], [1, 3], [2, 0]]


def check_step(run, t, positives, negatives, mixed):
    """A step of every agent: `positives(i, images)` and `negatives(i, images)` are features."""
    data = run.step(t, padded=2)
    for i in range(4):
        real = int(data.mask[i].sum())
        images, labels = data.images[i][:real], data.labels[i][:real]
        away, towards = negatives(i, images), positives(i, images)

        def total(params, images=images, labels=labels, towards=towards, away=away):
            features, logits = apply(params, images)
            log_p = jax.nn.log_softmax(logits)
            entropy = -jnp.stack([log_p[b, y] for b, y in enumerate(labels)]).mean()
            moon = contrast(features, towards, away)
            return entropy + WEIGHT * moon, moon

        gradient, expected = jax.grad(total, has_aux=True)(agent(mixed, i))
        np.testing.assert_allclose(run.metrics.losses["moon"][i], expected, rtol=1e-5)
        close = lambda x, m, g: np.testing.assert_allclose(x, m - LR * g, rtol=1e-5, atol=2e-6)
        jax.tree.map(close, agent(run.state.params, i), agent(mixed, i), gradient)


def mix(params):
    average = lambda x: jnp.stack([sum(x[j] for j in (i, *NEIGHBORS[i])) / 3 for i in range(4)])
    return jax.tree.map(average, params)


def test_steps_with_an_exchange_in_each_against_a_loop():
    run = FewSteps(objective=OBJECTIVE)
    assert run.state.kept == {}
    for t in range(2):
        before = run.state.params
        z = lambda i, x, p=before: sum(apply(agent(p, j), x)[0] for j in NEIGHBORS[i]) / 2
        own = lambda i, x, p=before: apply(agent(p, i), x)[0]
        check_step(run, t, z, own, mix(before))


def test_steps_with_some_alone_against_a_loop():
    """The published form: towards the model as last mixed, away from the one that went into the mix."""
    run = FewSteps(objective=OBJECTIVE, local_steps=3)
    for t in range(6):
        params = run.state.params
        if t % 3 == 0:
            sent, mixed = params, mix(params)
        of = lambda models: lambda i, x: apply(agent(models, i), x)[0]
        check_step(run, t, of(mixed), of(sent), mixed if t % 3 == 0 else params)


def test_between_exchanges_nothing_is_sent_and_an_empty_batch_forgets_no_exchange():
    run = FewSteps(objective=OBJECTIVE, local_steps=2)
    sent = run.state.params
    run.step(0, padded=5)  # agent 0 has nothing
    kept = run.state.kept["models"]
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    same = lambda a, b: jax.tree.map(close, a, b)
    same(kept["previous_features"], (sent, {}))
    same(kept["mixed_features"], (mix(sent), {}))
    size = 2 * 4 * 88  # two neighbours, a model of 88 float32
    assert run.bytes_sent() == [size] * 4
    run.step(1)
    assert run.bytes_sent() == [0] * 4
    same(run.state.kept["models"], kept)


@pytest.mark.parametrize("method, graph", [("sgp", "exponential"), ("isolated", "ring")])
@pytest.mark.parametrize("local_steps", [1, 2])
def test_other_methods_hear_their_own_models(method, graph, local_steps):
    """Push-sum's models are what it sends, divided by the weight that comes along."""
    run = FewSteps(method, graph, 5, objective=OBJECTIVE, local_steps=local_steps)
    before = run.state.params
    data = run.step(0)
    if method == "isolated" and local_steps == 2:  # Mixed and sent are the same: no contrast.
        np.testing.assert_allclose(run.metrics.losses["moon"], np.log(2), rtol=1e-5)
        assert run.bytes_sent() == [0] * 5
    else:
        own = [apply(agent(before, i), data.images[i])[0] for i in range(5)]
        assert np.isfinite(run.metrics.losses["moon"]).all() and len(own) == 5
    assert (np.asarray(run.metrics.losses["moon"]) > 0).all()


def test_who_hears_nobody_has_no_loss():
    run = FewSteps(objective=OBJECTIVE, agents=2, graph="chain", faults=Faults(drop=0.6, seed=1))
    alone = set()
    for t in range(6):
        run.step(t)
        lost = np.asarray(run.metrics.traffic.lost).sum(axis=1) > 0
        np.testing.assert_array_equal(run.metrics.losses["moon"] == 0, lost)
        alone |= set(lost.tolist())
    assert alone == {True, False}


@pytest.mark.parametrize("local_steps", [1, 2])
def test_a_weight_of_zero_is_no_loss_bit_for_bit(local_steps):
    zero = Objective(CLASSES, feature_losses=(("moon", 0.0),))
    same_program(Objective(CLASSES), zero, local_steps=local_steps)


def test_from_the_command_line_with_ccl_beside_it(tmp_path):
    flags = ("--algorithm=dsgd", "--epochs=1", "--eval_every=1", "--batch_size=64", "--nofigures")
    chosen = ("--feature_loss=moon:0.5:temperature=0.2", "--lambda_m=0.1", "--lambda_d=0.1")
    assert tiny_main.main(["tiny_main", *flags, *chosen, f"--workdir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["label"] == "CCL + moon + dsgd"
    assert summary["loss_options"] == {"moon": {"temperature": 0.2}}
    assert min(summary[f"{name}_loss"] for name in ("moon", "model_variant", "data_variant")) > 0
