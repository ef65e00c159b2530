"""Models: every one returns (features, logits), and is written for one agent.

    model = make("resnet20", num_classes=10)
    params, model_state = init(model, jax.random.key(0), (32, 32, 3))
    features, logits = apply_eval(model, params, model_state, images)

features [batch, F] are the input of the last linear layer, `head`; logits are [batch, classes];
both are float32 whatever the compute type. Any flax.linen module with such a result works in the
models' place; it need not know `train`. Training code vmaps these functions over a leading agents
axis.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax import trees
from ccl_jax.models import lowering
from ccl_jax.models.convert import from_torch, to_torch
from ccl_jax.models.lenet import LeNet5
from ccl_jax.models.mobilenet import MobileNetV2
from ccl_jax.models.norm import NORMS
from ccl_jax.models.resnet import cifar_resnet, imagenet_resnet
from ccl_jax.models.small_cnn import SmallCNN
from ccl_jax.models.vgg import VGG11
from ccl_jax.names import look_up

__all__ = [
    "MODELS",
    "NORMS",
    "apply_eval",
    "apply_train",
    "forward_bytes",
    "from_torch",
    "init",
    "make",
    "shapes",
    "to_torch",
]

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "digits-cnn": SmallCNN,
    "lenet5": LeNet5,
    "mobilenetv2": MobileNetV2,
    "resnet8": cifar_resnet(8),
    "resnet20": cifar_resnet(20),
    "resnet18": imagenet_resnet(18),
    "resnet34": imagenet_resnet(34),
    "resnet50": imagenet_resnet(50),
    "vgg11": VGG11,
}


def make(
    name: str, num_classes: int, *, norm: str | None = None, dtype: jnp.dtype = jnp.float32
) -> nn.Module:
    """Makes a model by name.

    Args:
        name: one of MODELS.
        num_classes: number of logits, at least 1.
        norm: one of NORMS; None for the model's published one ("none" for lenet5, else "evonorm").
        dtype: compute type, e.g. bfloat16; parameters, features and logits are float32.

    Returns:
        A flax module: images [batch, H, W, C] -> (features [batch, F], logits [batch, classes]).

    Raises:
        ValueError: unknown name or norm, num_classes < 1, or the model has no such field.
    """
    build = look_up("model", name, MODELS)
    if norm is not None:
        look_up("norm", norm, dict.fromkeys(NORMS))
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; give the number of classes, at least 1")
    published = {} if norm is None else {"norm": norm}
    takes = inspect.signature(build, follow_wrapped=False).parameters.values()
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)
    for field in ("num_classes", "dtype", *published):
        if not free and field not in {parameter.name for parameter in takes}:
            leave = "; leave out norm" if field == "norm" else ", which every model has"
            raise ValueError(f"model {name} has no field {field}{leave}")
    return build(num_classes=num_classes, dtype=dtype, **published)


def init(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> tuple[dict, dict]:
    """Draws one agent's parameters.

    Args:
        model: a flax module as described above.
        key: a key of jax.random.key.
        image_shape: (H, W, C).

    Returns:
        params: float32 tree.
        model_state: the other collections, {"batch_stats": ...} with batch norm, else {}.

    Raises:
        ValueError: image_shape is not three positive sizes.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape is {image_shape}; give (height, width, channels), each >= 1")
    # Compiled, so that the forward pass, whose result nobody reads, is never run.
    draw = jax.jit(
        lambda key: model.init(key, jnp.zeros((1, *image_shape)), **_train(model, False))
    )
    variables = dict(draw(key))
    return variables.pop("params"), variables


def shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[dict, dict]:
    """Works out what `init` would return, and so whether the model can read such images at all.

    Args:
        model: a flax module as described above.
        image_shape: (H, W, C).

    Returns:
        params and model_state with shapes and types (`jax.ShapeDtypeStruct`) in place of arrays.

    Raises:
        ValueError: the images are too small for the model, or it cannot read them for another reason.
    """
    try:
        return _shapes(model, image_shape)
    except (ValueError, TypeError, ArithmeticError) as error:
        size = " x ".join(map(str, image_shape))
        fitting = ", ".join(_fitting(image_shape)) or "of your own"
        raise ValueError(
            f"{type(model).__name__} cannot read images of {size} ({error}); take a model made for this "
            f"size ({fitting}), or larger images"
        ) from error


def _shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[dict, dict]:
    with _without_devices():
        params, model_state = jax.eval_shape(lambda: init(model, jax.random.key(0), image_shape))
    if not all(x.size for x in jax.tree.leaves(params)):
        raise ValueError("they are too small: nothing is left after the pooling")
    return params, model_state


def _fitting(image_shape: tuple[int, int, int]) -> list[str]:
    """The models that can read such images."""
    found = []
    for name in MODELS:
        with contextlib.suppress(Exception):  # Whatever a model of a user's own says.
            _shapes(make(name, 2), image_shape)
            found.append(name)
    return found


def forward_bytes(model: nn.Module, image_shape: tuple[int, int, int], batch_size: int) -> int:
    """How many bytes all operations of one forward pass give, as a measure of the memory of a step.

    Args:
        model: a flax module as described above.
        image_shape: (H, W, C).
        batch_size: images.

    Raises:
        ValueError: the model cannot read such images, see `shapes`, or returns something else than
            (features, logits).
    """
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    variables = shapes(model, image_shape)
    with _without_devices():
        trace = jax.make_jaxpr(functools.partial(apply_eval, model), return_shape=True)
        program, outputs = trace(*variables, images)
    _check_outputs(model, outputs, batch_size)
    made = (variable.aval for equation in program.eqns for variable in equation.outvars)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in made)


def _check_outputs(model: nn.Module, outputs: Any, batch_size: int) -> None:
    """Makes sure that a model has returned (features, logits), as far as shapes tell."""
    name, classes = type(model).__name__, getattr(model, "num_classes", None)
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        is_ = (
            f"{len(outputs)} values" if isinstance(outputs, (tuple, list)) else trees.form(outputs)
        )
        raise ValueError(f"{name} returns {is_}; a model must return (features, logits)")
    for what, x, last in zip(("features", "logits"), outputs, ("F", classes), strict=True):
        size = jnp.shape(x)
        fits = len(size) == 2 and size[0] == batch_size and last in ("F", None, size[-1])
        if not fits or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(
                f"{name} returns {what} {trees.form(x)}; a model must return (features, logits), "
                f"features [{batch_size}, F] and logits [{batch_size}, {classes or 'classes'}]"
            )


def _without_devices() -> contextlib.AbstractContextManager[None]:
    """In which a model can be traced before JAX starts: shapes are the same on all platforms."""
    return lowering.compiled_for("cpu")


def apply_train(
    model: nn.Module, params: Any, model_state: Mapping, images: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], dict]:
    """Features and logits in training mode: batch norm uses and records this batch's statistics.

    Args:
        model: a flax module as described above.
        params: one agent's parameters.
        model_state: one agent's other collections.
        images: [batch, H, W, C].

    Returns:
        (features [batch, F], logits [batch, classes]), and the new model_state.
    """
    outputs, new_state = model.apply(
        {"params": params, **model_state},
        images,
        mutable=list(model_state),
        **_train(model, True),
    )
    return outputs, dict(new_state)


def apply_eval(
    model: nn.Module, params: Any, model_state: Mapping, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Features and logits in evaluation mode: nothing is recorded; arguments as in `apply_train`.

    Returns:
        features [batch, F], logits [batch, classes].
    """
    return model.apply({"params": params, **model_state}, images, **_train(model, False))


def _train(model: nn.Module, train: bool) -> dict[str, bool]:
    """The `train` argument, for modules that take one."""
    takes_train = "train" in inspect.signature(type(model).__call__).parameters
    return {"train": train} if takes_train else {}
