"""Conversion of parameters: the permutations by hand, leading axes, wrong names."""

import jax
import numpy as np
import pytest

from ccl_jax import models
from ccl_jax.models import from_torch, to_torch, vgg


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_names_and_layouts_by_hand():
    conv, linear, scale = numbered(2, 3, 5, 5), numbered(10, 64), numbered(1, 4, 1, 1)
    params = from_torch(
        "resnet20",
        {
            "layer2.0.conv1.weight": conv,
            "layer2.0.downsample.1.weight": scale,
            "layer2.0.bn2.bias": scale,
            "fc.weight": linear,
        },
    )
    block = params["layer2_0"]
    assert block["conv1"]["kernel"][1, 4, 2, 0] == conv[0, 2, 1, 4]
    assert block["conv1"]["kernel"].shape == (5, 5, 3, 2)
    assert params["head"]["kernel"][63, 7] == linear[7, 63]
    np.testing.assert_array_equal(block["shortcut_norm"]["scale"], [0, 1, 2, 3])
    np.testing.assert_array_equal(block["norm2"]["bias"], [0, 1, 2, 3])


def test_flattened_image_is_reordered():
    """PyTorch's input 57 is channel 2, row 1, column 2; ours is (1 * 5 + 2) * 16 + 2 = 114."""
    weight = numbered(120, 400)
    kernel = from_torch("lenet5", {"fc1.weight": weight})["fc1"]["kernel"]
    assert kernel[114, 3] == weight[3, 57]
    # Input 1 * 4 + 3 is channel 1, row 1, column 1; ours is (1 * 2 + 1) * 128 + 1.
    weight = numbered(10, 512)
    kernel = from_torch("vgg11", {"classifier.0.weight": weight})["head"]["kernel"]
    assert kernel[385, 9] == weight[9, 7]
    # fc2 reads no image: a plain transpose.
    square = numbered(84, 120)
    np.testing.assert_array_equal(
        from_torch("lenet5", {"fc2.weight": square})["fc2"]["kernel"], square.T
    )


@pytest.mark.parametrize("norm", ["evonorm", "batch"])
def test_vgg_is_one_flat_list(norm):
    """As the published code makes it: convolution, normalisation, ReLU but with EvoNorm; poolings."""
    sequence = []
    for layer in vgg.LAYERS:
        between = [] if norm == "evonorm" else ["relu"]
        sequence += ["pool"] if layer == "M" else ["conv", "norm", *between]
    convs = [at for at, kind in enumerate(sequence) if kind == "conv"]
    model = models.make("vgg11", 10, norm=norm)
    params, state = jax.eval_shape(lambda: models.init(model, jax.random.key(0), (32, 32, 3)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape), state.get("batch_stats", {}))
    arrays = to_torch("vgg11", zeros, norm=norm, batch_stats=stats)
    wide = {
        key: value.shape for key, value in arrays.items() if value.ndim == 4 and value.size > 128
    }
    channels = [layer for layer in vgg.LAYERS if layer != "M"]
    assert wide == {
        f"features.{at}.weight": (out, into, 3, 3)
        for at, into, out in zip(convs, [3, *channels], channels, strict=False)
    }
    kinds = {int(key.split(".")[1]) for key in arrays if key.startswith("features")}
    assert kinds == {at for at, kind in enumerate(sequence) if kind in ("conv", "norm")}
    weights = {key: value for key, value in arrays.items() if "running" not in key}
    back = from_torch("vgg11", weights, norm=norm)
    assert jax.tree.map(np.shape, back) == jax.tree.map(np.shape, zeros)


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("lenet5", "conv2.weight", (16, 6, 5, 5)),
        ("lenet5", "fc1.weight", (120, 400)),
        ("lenet5", "fc3.bias", (10,)),
        ("vgg11", "features.12.weight", (1, 128, 1, 1)),
        ("mobilenetv2", "layers.3.conv2.weight", (144, 1, 3, 3)),
    ],
)
def test_leading_agents_axis(name, key, shape):
    stacked = numbered(3, *shape)
    params = from_torch(name, {key: stacked}, leading=1)
    ((module, leaves),) = params.items()
    while not hasattr(leaves, "shape"):
        ((_, leaves),) = leaves.items()
    for agent in range(3):
        alone = from_torch(name, {key: stacked[agent]})[module]
        while not hasattr(alone, "shape"):
            ((_, alone),) = alone.items()
        np.testing.assert_array_equal(leaves[agent], alone)
    np.testing.assert_array_equal(to_torch(name, params, leading=1)[key], stacked)


def test_wrong_names():
    with pytest.raises(ValueError, match="no table of PyTorch's parameter names for model 'vit'"):
        from_torch("vit", {})
    with pytest.raises(ValueError, match=r"'layer1\.conv\.weight' is no parameter of resnet20"):
        from_torch("resnet20", {"layer1.conv.weight": np.zeros(1)})
    with pytest.raises(ValueError, match=r"'bn1\.running_mean' is no parameter of resnet20"):
        from_torch("resnet20", {"bn1.running_mean": np.zeros(16)})
    with pytest.raises(ValueError, match="'stem/kernel' is no parameter of lenet5"):
        to_torch("lenet5", {"stem": {"kernel": np.zeros((1, 1, 1, 1))}})


def test_batch_statistics_get_pytorchs_names():
    stats = {"layer1_0": {"norm2": {"mean": numbered(16), "var": numbered(16) + 1}}}
    params = {"norm1": {"scale": numbered(16)}}
    arrays = to_torch("resnet20", params, norm="batch", batch_stats=stats)
    assert list(arrays) == ["bn1.weight", "layer1.0.bn2.running_mean", "layer1.0.bn2.running_var"]
    np.testing.assert_array_equal(arrays["layer1.0.bn2.running_var"], np.arange(1, 17))
