"""Every model with a recorded forward pass gives the recorded features and logits.

The recordings were made with the authors' PyTorch models. Parameters and inputs are formulas,
written out below, so the data file holds names, shapes and outputs only.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ccl_jax import models

RECORDED = np.load(Path(__file__).parents[1] / "fixtures" / "models_forward.npz")
INFO = json.loads(str(RECORDED["info"]))

CASES = {
    "lenet5_none": ("lenet5", "none"),
    "resnet20_evonorm": ("resnet20", "evonorm"),
    "resnet20_groupnorm": ("resnet20", "group"),
    "vgg11_evonorm": ("vgg11", "evonorm"),
    "mobilenetv2_evonorm": ("mobilenetv2", "evonorm"),
    "resnet18_imagenet_evonorm": ("resnet18", "evonorm"),
}


def formula_parameters(case: str) -> dict[str, np.ndarray]:
    arrays = {}
    for i, (name, shape, kind) in enumerate(INFO[case]["params"]):
        wave = np.cos(0.7 * i + 0.013 * np.arange(np.prod(shape))).reshape(shape)
        if kind == "kernel":
            arrays[name] = wave * np.sqrt(2 / np.prod(shape[1:]))
        else:
            arrays[name] = 0.1 * wave + (kind == "scale")
    return arrays


def formula_images(case: str) -> np.ndarray:
    shape = INFO[case]["input_shape_nchw"]
    k = np.arange(np.prod(shape))
    images = np.sin(0.011 * k) + 0.3 * np.cos(0.37 * k)
    return images.reshape(shape).transpose(0, 2, 3, 1).astype(np.float32)


def test_all_recordings_are_tested():
    assert set(CASES) == set(INFO)


@pytest.mark.parametrize("case", CASES)
def test_forward_pass(case):
    name, norm = CASES[case]
    model = models.make(name, 10, norm=norm)
    params = models.from_torch(name, formula_parameters(case))
    forward = jax.jit(lambda params, images: models.apply_eval(model, params, {}, images))
    features, logits = forward(params, formula_images(case))
    for ours, theirs in [(features, "features"), (logits, "logits")]:
        recorded = RECORDED[f"{case}.{theirs}"]
        np.testing.assert_allclose(ours, recorded, rtol=1e-4, atol=1e-5 * np.abs(recorded).max())


@pytest.mark.parametrize("case", CASES)
def test_conversion_back_is_exact(case):
    name, norm = CASES[case]
    arrays = {key: np.float32(value) for key, value in formula_parameters(case).items()}
    back = models.to_torch(name, models.from_torch(name, arrays), norm=norm)
    assert back.keys() == arrays.keys()
    for key in arrays:
        np.testing.assert_array_equal(back[key], arrays[key], err_msg=key)


@pytest.mark.parametrize("case", CASES)
def test_converted_parameters_are_the_models_own(case):
    name, norm = CASES[case]
    model = models.make(name, 10, norm=norm)
    shape = formula_images(case).shape[1:]
    own, _ = jax.eval_shape(lambda: models.init(model, jax.random.key(0), shape))
    converted = models.from_torch(name, formula_parameters(case))
    assert jax.tree.map(lambda leaf: leaf.shape, converted) == jax.tree.map(
        lambda leaf: leaf.shape, own
    )
