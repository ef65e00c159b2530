"""Distillation of neighbours' logits: by hand, against plain loops, and what it costs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.losses import DISTANCES, Own, get
from ccl_jax.losses.needs import NeighborLogits
from ccl_jax.training import Objective
from tests.support import tiny_main
from tests.support.few_steps import LR, FewSteps, agent, apply, same_program
from tests.support.tiny import CLASSES

LOGITS = jnp.array([[0.0, np.log(3.0)], [1.0, 2.0], [5.0, 5.0]])
OWN = Own(jnp.zeros((3, 2)), LOGITS, jnp.zeros(3, jnp.int32), jnp.array([True, True, False]))
# The first teacher is even on sample 0, and says what the student says of 1; the third is no neighbour.
TEACHERS = jnp.stack([jnp.array([[7.0, 7.0], [4.0, 5.0], [9.0, 0.0]]), LOGITS, 100 + LOGITS[::-1]])
REAL = jnp.array([True, True, False])
WEIGHT, TAU = 0.7, 2.0
OBJECTIVE = Objective(
    CLASSES,
    feature_losses=(("logit_distillation", WEIGHT),),
    loss_options={"logit_distillation": {"temperature": TAU}},
)


def loss(logits, teachers=TEACHERS, temperature=1.0, mask=OWN.mask):
    heard = {"neighbor_logits": NeighborLogits(teachers, REAL)}
    own = OWN._replace(logits=logits, mask=mask)
    return get("logit_distillation").loss(own, heard, DISTANCES["mse"], temperature=temperature)


def test_value_and_gradient_by_hand():
    # KL of (1/2, 1/2) against (1/4, 3/4), over two samples; all else is 0.
    value, gradient = jax.value_and_grad(loss)(LOGITS)
    np.testing.assert_allclose(value, (np.log(2) / 2 + np.log(2 / 3) / 2) / 2, rtol=1e-5)
    # Own minus teacher's probability over two samples.
    expected = [[(0.25 - 0.5) / 2, (0.75 - 0.5) / 2], [0, 0], [0, 0]]
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    assert not jax.grad(loss, 1)(LOGITS, TEACHERS).any()


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient():
    # For a high temperature: (own - teacher's logits, each less its mean) / classes, as squared errors.
    value, gradient = jax.value_and_grad(loss)(LOGITS, temperature=30.0)
    apart = np.log(3) / 2 * np.array([-1, 1])
    np.testing.assert_allclose(value, np.square(apart).sum() / (2 * 2) / 2, rtol=1e-2)
    np.testing.assert_allclose(gradient[0], apart / 2 / 2, rtol=1e-2)


def test_an_empty_batch_and_nobody_to_learn_from_are_zero():
    assert loss(LOGITS, mask=jnp.zeros(3, bool)) == 0
    nobody = {"neighbor_logits": NeighborLogits(0 * TEACHERS, jnp.zeros(3, bool))}
    distil = lambda z: get("logit_distillation").loss(OWN._replace(logits=z), nobody, None)
    value, gradient = jax.value_and_grad(distil)(LOGITS)
    assert value == 0 and not gradient.any()


def test_steps_against_a_loop():
    """DSGD on a ring of four; teachers are the neighbours' models before the mix."""
    run = FewSteps(objective=OBJECTIVE)
    neighbors = [[1, 3], [0, 2], [1, 3], [2, 0]]
    for t in range(2):
        before = run.state.params
        data = run.step(t, padded=2)
        for i in range(4):
            real = int(data.mask[i].sum())
            images, labels = data.images[i][:real], data.labels[i][:real]
            group = [i, *neighbors[i]]
            mixed = jax.tree.map(lambda x, g=group: sum(x[j] for j in g) / 3, before)
            said = [apply(agent(before, j), images)[1] / TAU for j in neighbors[i]]

            def total(params, images=images, labels=labels, said=said):
                logits = apply(params, images)[1]
                log_p = jax.nn.log_softmax(logits)
                entropy = -jnp.stack([log_p[b, y] for b, y in enumerate(labels)]).mean()
                log_q = jax.nn.log_softmax(logits / TAU)
                kl = [
                    (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - log_q)).sum(axis=1).mean()
                    for z in said
                ]
                return entropy + WEIGHT * TAU**2 * sum(kl), TAU**2 * sum(kl)

            gradient, expected = jax.grad(total, has_aux=True)(mixed)
            found = run.metrics.losses["logit_distillation"][i]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            close = lambda x, m, g: np.testing.assert_allclose(x, m - LR * g, rtol=1e-5, atol=1e-6)
            jax.tree.map(close, agent(run.state.params, i), mixed, gradient)


def test_it_sends_nothing_beside_the_models():
    plain, distilled = FewSteps(), FewSteps(objective=OBJECTIVE)
    plain.step(0)
    distilled.step(0)
    assert distilled.bytes_sent() == plain.bytes_sent()


def test_a_weight_of_zero_is_no_loss_bit_for_bit():
    zero = Objective(CLASSES, feature_losses=(("logit_distillation", 0.0),))
    same_program(Objective(CLASSES), zero)


@pytest.mark.parametrize("option, value", [("", 3.0), (":temperature=1.5", 1.5)])
def test_from_the_command_line(option, value, tmp_path):
    flags = ("--algorithm=dsgd", "--epochs=1", "--eval_every=1", "--batch_size=64", "--nofigures")
    chosen = f"--feature_loss=logit_distillation:0.1{option}"
    assert tiny_main.main(["tiny_main", *flags, chosen, f"--workdir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["label"] == "logit_distillation + dsgd"
    assert summary["logit_distillation_loss"] > 0
    used = summary["loss_options"].get("logit_distillation", {}).get("temperature", 3.0)
    assert used == value
