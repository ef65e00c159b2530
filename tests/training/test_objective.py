"""What an objective computes, reports and refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.training import Objective

PROTOTYPE = (("prototype", 0.5),)


@pytest.mark.parametrize(
    ("chosen", "weights", "needs"),
    [
        ({}, {}, set()),
        ({"lambda_m": 0.1}, {"model_variant": 0.1}, {"neighbor_features"}),
        ({"lambda_d": 0.2}, {"data_variant": 0.2}, {"class_sums"}),
        ({"feature_losses": PROTOTYPE}, {"prototype": 0.5}, {"neighbor_prototypes"}),
        ({"feature_losses": (("prototype", 0.0),)}, {}, set()),
        (
            {"lambda_m": 0.1, "lambda_d": 0.2, "feature_losses": PROTOTYPE},
            {"model_variant": 0.1, "data_variant": 0.2, "prototype": 0.5},
            {"neighbor_features", "class_sums", "neighbor_prototypes"},
        ),
    ],
)
def test_losses_with_a_weight_are_computed_and_reported(chosen, weights, needs):
    objective = Objective(10, **chosen)
    assert objective.weights == weights
    assert objective.needs == needs
    assert objective.reported == tuple(weights)
    assert objective.measured_needs == set()


@pytest.mark.parametrize(
    ("chosen", "reported", "measured"),
    [
        ({}, {"model_variant", "data_variant"}, {"neighbor_features", "class_sums"}),
        ({"lambda_m": 0.1}, {"model_variant", "data_variant"}, {"class_sums"}),
        ({"lambda_m": 0.1, "lambda_d": 0.1}, {"model_variant", "data_variant"}, set()),
        (
            {"feature_losses": PROTOTYPE},
            {"prototype", "model_variant", "data_variant"},
            {"neighbor_features", "class_sums"},
        ),
    ],
)
def test_measuring_adds_the_two_losses_of_the_paper_to_the_report(chosen, reported, measured):
    objective = Objective(10, measure=True, **chosen)
    assert set(objective.reported) == reported and len(objective.reported) == len(reported)
    assert objective.measured_needs == measured
    assert objective.weights == Objective(10, **chosen).weights


@pytest.mark.parametrize("steps, done, part", [(0, 0, 1.0), (4, 0, 0.0), (4, 1, 0.25), (4, 9, 1.0)])
def test_weights_rise_linearly(steps, done, part):
    rise = Objective(10, lambda_warmup_steps=steps).rise(jnp.int32(done))
    np.testing.assert_allclose(rise, part)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((("x", 1.0),), "unknown feature loss 'x'"),
        ((("prototpye", 1.0),), "did you mean 'prototype'"),
        (
            (("prototype", -1.0),),
            "weight of feature loss prototype is -1.0; it must be a number >= 0",
        ),
        ((("prototype", float("inf")),), "weight of feature loss prototype is inf"),
        (PROTOTYPE * 2, "prototype is given twice; give it once"),
        ((("model_variant", 1.0),), "model_variant has a setting of its own: lambda_m"),
        ((("data_variant", 0.0),), "data_variant has a setting of its own: lambda_d"),
    ],
)
def test_feature_losses_that_are_refused(losses, says):
    with pytest.raises(ValueError, match=says):
        Objective(10, feature_losses=losses)


@pytest.mark.parametrize(
    "bad",
    [
        {"lambda_m": -1.0},
        {"lambda_d": float("nan")},
        {"clip_norm": 0.0},
        {"distance": "l3"},
        {"lambda_warmup_steps": -1},
    ],
)
def test_objective_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad)).split("_")[0]):
        Objective(10, **bad)
