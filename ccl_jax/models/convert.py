"""Parameters between PyTorch's layout and ours, for models trained or recorded elsewhere.

PyTorch keeps convolutions as (out, in, height, width) and linear layers as (out, in); flax as
(height, width, in, out) and (in, out). EvoNorm's scale and shift are [1, C, 1, 1] in the published
code. A linear layer after a flattened image reads channel, height, width there and height, width,
channel here.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from flax import traverse_util

# PyTorch module -> path in our parameter tree; {} stands for a number.
_RESNET = {
    "conv{}": "conv{}",
    "bn{}": "norm{}",
    "layer{}.{}.conv{}": "layer{}_{}/conv{}",
    "layer{}.{}.bn{}": "layer{}_{}/norm{}",
    "layer{}.{}.downsample.0": "layer{}_{}/shortcut_conv",
    "layer{}.{}.downsample.1": "layer{}_{}/shortcut_norm",
    "fc": "head",
}


def _vgg(convolutions: Sequence[int]) -> dict[str, str]:
    """VGG-11, whose layers are one flat list: these are convolutions, a normalisation follows each."""
    names = {"classifier.0": "head"}
    for number, at in enumerate(convolutions, start=1):
        names |= {f"features.{at}": f"conv{number}", f"features.{at + 1}": f"norm{number}"}
    return names


# With EvoNorm, which is an activation, too, there are no ReLUs between.
_VGG_EVONORM = _vgg((0, 3, 6, 8, 11, 13, 16, 18))
_VGG_RELU = _vgg((0, 4, 8, 11, 15, 18, 22, 25))

_MODULES = {
    "lenet5": {"conv{}": "conv{}", "fc3": "head", "fc{}": "fc{}"},
    "mobilenetv2": {
        "conv{}": "conv{}",
        "bn{}": "norm{}",
        "layers.{}.conv{}": "block{}/conv{}",
        "layers.{}.bn{}": "block{}/norm{}",
        "layers.{}.shortcut.0": "block{}/shortcut_conv",
        "layers.{}.shortcut.1": "block{}/shortcut_norm",
        "linear": "head",
    },
    "vgg11": _VGG_EVONORM,
} | {f"resnet{depth}": _RESNET for depth in (8, 20, 18, 34, 50)}

# Our leaf -> PyTorch's.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# Linear layers that read a flattened image, and the image's channels.
_FLATTENED_CHANNELS = {("lenet5", "fc1"): 16, ("vgg11", "head"): 128}


def from_torch(
    name: str, arrays: Mapping[str, np.ndarray], *, norm: str = "evonorm", leading: int = 0
) -> dict:
    """Our parameter tree from PyTorch's named parameters.

    Args:
        name: the model's name in the registry, e.g. "resnet20".
        arrays: parameters by PyTorch's names, e.g. "layer1.0.conv1.weight", in PyTorch's layout.
        norm: the model's normalisation, by which VGG-11's layers are numbered.
        leading: number of axes in front of every array, which stay there: 1 for [agents, ...].

    Returns:
        Nested dict of float32 arrays, `variables["params"]` of the flax module.

    Raises:
        ValueError: the model has no table of names, or a parameter's name is not in it.

    Example:
        >>> from_torch("resnet20", {"fc.bias": np.zeros(10)})["head"]["bias"].shape
        (10,)
    """
    modules = _module_names(name, norm)
    flat = {}
    for torch_name, array in arrays.items():
        torch_module, _, kind = torch_name.rpartition(".")
        module = _rename(torch_module, modules)
        if module is None or kind not in ("weight", "bias"):
            raise ValueError(
                f"{torch_name!r} is no parameter of {name}; leave it out or name it right"
            )
        array = np.asarray(array, np.float32)
        if "norm" in module:
            leaf = "scale" if kind == "weight" else "bias"
            array = array.reshape(*array.shape[:leading], -1)
        elif kind == "weight":
            leaf = "kernel"
            array = _image_last(array, _FLATTENED_CHANNELS.get((name, module)))
            array = np.moveaxis(array, (leading, leading + 1), (-1, -2))
        else:
            leaf = "bias"
        flat[f"{module}/{leaf}"] = array
    return traverse_util.unflatten_dict(flat, sep="/")


def to_torch(
    name: str,
    params: Mapping,
    *,
    norm: str = "evonorm",
    leading: int = 0,
    batch_stats: Mapping | None = None,
) -> dict[str, np.ndarray]:
    """PyTorch's named parameters from our parameter tree: the inverse of `from_torch`.

    Args:
        name: the model's name in the registry.
        params: `variables["params"]` of the flax module.
        norm: the model's normalisation; EvoNorm's parameters become [1, C, 1, 1], others' [C].
        leading: number of axes in front of every array.
        batch_stats: running statistics of batch norm, running_mean and running_var; None without.

    Returns:
        float32 arrays by PyTorch's names, in the order of the tree.

    Raises:
        ValueError: the model has no table of names, or a parameter is not in it.
    """
    modules = {ours: torch for torch, ours in _module_names(name, norm).items()}
    arrays = {}
    flat = [*traverse_util.flatten_dict(params, sep="/").items()]
    flat += traverse_util.flatten_dict(batch_stats or {}, sep="/").items()
    for path, array in flat:
        module, _, leaf = path.rpartition("/")
        torch_module = _rename(module, modules)
        if torch_module is None or leaf not in _LEAVES:
            raise ValueError(f"{path!r} is no parameter of {name}; leave it out or name it right")
        array = np.asarray(array, np.float32)
        if "norm" in module and norm == "evonorm":
            array = array.reshape(*array.shape[:leading], 1, -1, 1, 1)
        elif leaf == "kernel":
            array = np.moveaxis(array, (-1, -2), (leading, leading + 1))
            array = _image_first(array, _FLATTENED_CHANNELS.get((name, module)))
        arrays[f"{torch_module}.{_LEAVES[leaf]}"] = array
    return arrays


def _module_names(name: str, norm: str) -> dict[str, str]:
    if name not in _MODULES:
        raise ValueError(
            f"no table of PyTorch's parameter names for model {name!r}; there is one for "
            + ", ".join(sorted(_MODULES))
        )
    return _VGG_RELU if name == "vgg11" and norm != "evonorm" else _MODULES[name]


def _rename(module: str, names: Mapping[str, str]) -> str | None:
    for source, target in names.items():
        pattern = re.escape(source).replace(r"\{\}", r"(\d+)")
        if match := re.fullmatch(pattern, module):
            return target.format(*match.groups())
    return None


def _image_last(weights: np.ndarray, channels: int | None) -> np.ndarray:
    """Reorders the last axis from (channel, height, width) to (height, width, channel)."""
    if channels is None:
        return weights
    image = weights.reshape(*weights.shape[:-1], channels, -1)
    return image.swapaxes(-1, -2).reshape(weights.shape)


def _image_first(weights: np.ndarray, channels: int | None) -> np.ndarray:
    """Reorders the last axis from (height, width, channel) to (channel, height, width)."""
    if channels is None:
        return weights
    image = weights.reshape(*weights.shape[:-1], -1, channels)
    return image.swapaxes(-1, -2).reshape(weights.shape)
