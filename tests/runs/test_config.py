"""A Config takes what its fields are declared as, and says what they may be."""

import dataclasses
import inspect

import numpy as np
import pytest

from ccl_jax import models
from ccl_jax.data import datasets
from ccl_jax.runs.config import Config


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"agents": "8"}, "agents is '8'; it must be a whole number"),
        ({"agents": 8.0}, "agents is 8.0; it must be a whole number"),
        ({"agents": True}, "agents is True; it must be a whole number"),
        ({"lr": None}, "lr is None; it must be a number"),
        ({"lr": True}, "lr is True; it must be a number"),
        ({"resume": 1}, "resume is 1; it must be True or False"),
        ({"topology": 3}, "topology is 3; it must be a text"),
        ({"momentum": "0.9"}, "momentum is '0.9'; it must be a number or None"),
        ({"gossip_rate": (1,)}, r"gossip_rate is \(1,\); it must be a text or a number or None"),
        ({"eval_every": 0.5}, "eval_every is 0.5; it must be auto or a whole number, at least 1"),
        ({"hparam": "ema_factor=0.1"}, "hparam is 'ema_factor=0.1'; it must be texts"),
        ({"hparam": (0.1,)}, r"hparam is \(0.1,\); it must be texts"),
    ],
)
def test_a_value_of_another_type(given, allowed):
    with pytest.raises(ValueError, match=f"^{allowed}"):
        Config(**given)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ("algoritm", "did you mean 'algorithm'?"),
        ("agent", "did you mean 'agents'?"),
        ("learning_rate", "did you mean 'lr'?"),
        ("zzz", "`--help` of a command lists all"),
    ],
)
def test_a_setting_that_there_is_not(wrong, hint):
    for make in (Config, Config().replace):
        with pytest.raises(TypeError) as error:
            make(**{wrong: 1})
        assert str(error.value) == f"there is no setting {wrong!r}; {hint}"


def test_what_settings_there_are_can_be_asked():
    """As a notebook does to show them."""
    named = inspect.signature(Config).parameters
    assert named.keys() == {field.name for field in dataclasses.fields(Config)}
    assert named["lr"].default == 0.1


def test_a_plain_config_fits_its_dataset():
    config = Config()
    shape = datasets.load(config.dataset).image_shape
    params, _ = models.shapes(models.make(config.model, 10), shape)
    assert params["head"]["kernel"].shape[1] == 10


def test_numbers_of_numpy_are_numbers():
    config = Config(seed=np.int64(3), lr=np.float32(0.5), alpha=1, lambda_m=np.float64(0.1))
    assert (config.seed, config.lr, config.alpha, config.lambda_m) == (3, 0.5, 1, 0.1)
