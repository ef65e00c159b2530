"""Settings that are known to go wrong are said before the run, others are not."""

import pytest

from ccl_jax.runs import cautions
from ccl_jax.runs.config import Config


@pytest.mark.parametrize(
    "chosen, said",
    [
        ({"model": "lenet5", "lambda_m": 0.1}, True),
        ({"model": "resnet20", "norm": "none", "lambda_m": 1.0}, True),
        ({"model": "digits-cnn", "norm": "none", "lambda_m": 1.0}, True),
        ({"model": "digits-cnn", "norm": "none", "lambda_m": 0.1}, False),
        ({"model": "digits-cnn", "lambda_m": 1.0}, False),
        ({"model": "lenet5", "lambda_m": 0.1, "distance": "huber"}, False),
        ({"model": "lenet5", "lambda_m": 0.01}, False),
        ({"model": "resnet20", "lambda_m": 0.1}, False),
        ({"model": "lenet5", "lambda_m": 0.0, "lambda_d": 1.0}, False),
    ],
)
def test_a_weight_at_which_runs_have_diverged_is_said(chosen, said):
    notes = cautions.of(Config(**chosen))
    assert len(notes) == said
    less = "take 0.1," if chosen["model"] == "digits-cnn" else "take 0.01,"
    assert all("lambda_m is" in note and less in note for note in notes)


@pytest.mark.parametrize(
    "chosen, said",
    [
        ({"algorithm": "edm", "compression": "top-k:0.1", "gossip_rate": 0.1}, True),
        ({"algorithm": "edm", "compression": "top-k:0.3"}, True),
        ({"algorithm": "edm", "compression": "top-k:0.3", "gossip_rate": 0.5}, False),
        ({"algorithm": "ed", "compression": "top-k:0.3"}, False),
        ({"algorithm": "ed", "compression": "top-k:0.1"}, True),
        ({"algorithm": "exact-diffusion", "compression": "top-k:0.1"}, True),
        ({"algorithm": "nids", "compression": "top-k:0.1"}, True),
        ({"algorithm": "nids", "compression": "top-k:0.3"}, False),
        ({"algorithm": "edm", "compression": "int8"}, False),
        ({"algorithm": "led", "compression": "top-k:0.1"}, False),
    ],
)
def test_corrections_of_what_top_k_leaves_out_are_said_to_be_unstable(chosen, said):
    notes = cautions.of(Config(**{"model": "digits-cnn"} | chosen))
    assert len(notes) == said and all("or led or beer" in note for note in notes)


@pytest.mark.parametrize(
    "chosen, said",
    [
        ({"lambda_m": 0.01}, True),
        ({"lambda_d": 0.01}, True),
        ({"lambda_m": 0.01, "distance": "huber"}, False),
        ({"lambda_m": 0.1, "model": "resnet20"}, False),
        ({}, False),
    ],
)
def test_ccl_with_relayed_models_is_said_to_be_unstable(chosen, said):
    relayed = {"model": "lenet5", "algorithm": "relaysgd", "topology": "chain"}
    notes = cautions.of(Config(**relayed | chosen))
    assert len(notes) == said
    assert all("with RelaySGD" in note and "from lambda 0.01 on" in note for note in notes)


@pytest.mark.parametrize(("weight_decay", "said"), [(19.0, True), (9.0, False), (None, False)])
def test_a_weight_decay_that_overshoots_is_said(weight_decay, said):
    notes = cautions.of(Config(model="digits-cnn", lr=0.1, weight_decay=weight_decay))
    assert len(notes) == said and all("far below 10." in note for note in notes)
