"""Floating-point operations of a network's forward pass.

`forward` counts convolutions and matrix products in the traced program: what could run at the rate of a
matrix product, for speeds. `forward_by_xla` has XLA's count of everything, for modelled time. Both are
the same on every machine: a CPU's faster ways of a convolution, with more operations, do not count.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ccl_jax import models
from ccl_jax.models.convolution import as_defined


@functools.cache
def forward(model: str, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Of one image; two for a multiply-add, nothing else is counted.

    Args:
      model: A key of `models.MODELS`.
      num_classes: C.
      image_shape: `(H, W, C)`.
    """
    # With any norm but "none", LeNet-5 spells its convolutions out.
    norm = "group" if model == "lenet5" else None
    apply, shapes = _forward(model, num_classes, image_shape, norm)
    with as_defined():
        return count(jax.make_jaxpr(apply)(*shapes).jaxpr)


@functools.cache
def forward_by_xla(
    model: str, num_classes: int, image_shape: tuple[int, int, int], norm: str | None = None
) -> float:
    """Of one image, everything included; arguments as `forward`, with the model's normalisation."""
    apply, shapes = _forward(model, num_classes, image_shape, norm)
    with as_defined():
        return float(jax.jit(apply).lower(*shapes).cost_analysis()["flops"])


def count(jaxpr: core.Jaxpr) -> int:
    """Twice the multiply-adds of all convolutions and matrix products in a traced function."""
    total = 0
    for eqn in jaxpr.eqns:
        total += sum(count(inner) for inner in core.jaxprs_in_params(eqn.params))
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            # A kernel's input channels are those of one group.
            kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
            depth = math.prod(kernel) // kernel[spec[0]]
        else:
            continue
        total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
    return total


def _forward(
    name: str, num_classes: int, image_shape: tuple[int, int, int], norm: str | None
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The forward pass of one image, and the shapes of its arguments."""
    model = models.make(name, num_classes, norm=norm)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    forward = lambda params, state, image: models.apply_eval(model, params, state, image)
    return forward, (*models.shapes(model, image_shape), image)
