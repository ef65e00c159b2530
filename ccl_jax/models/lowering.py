"""How the work of several agents on one device is computed: chosen here, by platform and shape.

Models are written for one agent and vmapped. What a convolution or a normalisation of many agents with
kernels of their own becomes is decided here, and carried out by `convolution` and `norm`:

  batched   JAX's own way: one operation with the agents as a batch,
  unrolled  one operation for each agent,
  patches   products of matrices,
  folded    agents side by side in the channels. A TPU works on 128 channels at once and pads what has
            fewer; a block-diagonal kernel of several agents fills them.

Three smaller choices by platform stand beside what they choose: how many outputs of a row one agent's
convolution computes at once, and how kernel gradients are written for GPUs (both in `convolution`), and
how many images and models evaluation shows together (`ccl_jax.training.evaluation`).
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching, mlir

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)

# Numbers in the patches of one agent up to which patches are at least as fast as unrolling; measured.
SMALL = 2**17
# So many agents on one device are unrolled at most: the time to compile grows with them.
MOST_UNROLLED = 64
# A TPU works on so many channels at once.
LANES = 128
# From so many channels on, the arithmetic of folding is no longer free.
_WIDE = 64
# Images of so few channels are pictures: of a network's first layer.
_COLOURS = 4


def platform() -> str:
    """What is compiled for: "cpu", "gpu" or "tpu"; the platform of the devices that JAX has found."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def compiled_for(name: str) -> Iterator[None]:
    """What is traced inside is lowered for "cpu", "gpu" or "tpu", whatever devices are here."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def of_convolution(
    agents: int, groups: int, numbers: int, inputs: int, outputs: int, side_by_side: bool = True
) -> str:
    """How a convolution of several agents on one device is computed.

    Args:
      agents: How many they are.
      groups: Groups of channels.
      numbers: In the patches of one agent's images.
      inputs: Channels of the images.
      outputs: Channels of the result.
      side_by_side: Whether agents may be folded.
    """
    if platform() == "tpu":
        # Colours, or channels in eights: what is between would be laid out anew in every layer.
        fits = (
            side_by_side
            and groups == 1
            and outputs % 8 == 0
            and (inputs <= _COLOURS or inputs % 8 == 0)
        )
        return "folded" if fits else "batched"
    if platform() != "cpu":
        return "batched"
    if agents > 1 and groups == 1 and numbers <= SMALL:
        return "patches"
    return "unrolled" if agents <= MOST_UNROLLED else "batched"


def together(agents: int, inputs: int, outputs: int) -> int:
    """How many agents lie side by side in the channels of one image.

    Args:
      agents: How many there are.
      inputs: Channels of one agent's images.
      outputs: Channels of what is made of them.

    Returns:
      A divisor of `agents`; 1 where an image is wide enough alone.
    """
    channels = outputs if inputs <= _COLOURS else inputs
    if channels >= _WIDE:
        return 1
    return max(n for n in range(1, LANES // channels + 1) if agents % n == 0)


def with_rule(op: Callable[..., Any], rule: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a batching rule of its own, for what is not differentiated.

    Unlike `jax.custom_batching.custom_vmap`, it is told where the axis of agents lies, and says where
    it lies in the results. So agents that lie side by side stay there through all that JAX does in
    between.

    Args:
      op: Of arrays, to a tuple of arrays.
      rule: `rule(agents, axes, *arrays) -> (results, axes)`; an axis is None where an array is the same
        for all agents. The agents of several runs, which are one more axis, are to it as many agents.
    """

    def call(*arrays):
        return tuple(_ruled.bind(*arrays, jaxpr=jax.make_jaxpr(op)(*arrays), rule=rule))

    return call


def stacked(agents: int, axis: int | None, x: jax.Array) -> jax.Array:
    """`[agents, ...]`, wherever the axis is."""
    if axis is None:
        return jnp.broadcast_to(x[None], (agents, *x.shape))
    return jnp.moveaxis(x, axis, 0)


def fold(agents: int, axis: int | None, x: jax.Array, count: int) -> jax.Array:
    """Lays agents side by side: `[..., C]` of each -> `[..., agents / count, count C]`."""
    if axis is None:
        x = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], agents, x.shape[-1]))
    else:
        x = jnp.moveaxis(x, axis, -2)
    return x.reshape(*x.shape[:-2], agents // count, -1)


def unfold(agents: int, x: jax.Array) -> tuple[jax.Array, int]:
    """The way back, `[..., agents, C]`, and where the axis of agents lies in it."""
    return x.reshape(*x.shape[:-2], agents, -1), x.ndim - 2


def fold_kernels(kernels: jax.Array, count: int) -> jax.Array:
    """`[agents, h, w, C, F]` -> block-diagonal kernels `[agents / count, h, w, count C, count F]`."""
    agents, *size, inputs, outputs = kernels.shape
    kernels = kernels.reshape(agents // count, count, *size, inputs, outputs)
    own = jnp.eye(count, dtype=kernels.dtype)
    wide = jnp.einsum("gahwio,ab->ghwaibo", kernels, own)
    return wide.reshape(-1, *size, count * inputs, count * outputs)


def unfold_kernels(kernels: jax.Array, count: int) -> jax.Array:
    """The diagonal blocks: `[groups, h, w, count C, count F]` -> `[groups count, h, w, C, F]`."""
    groups, *size, inputs, outputs = kernels.shape
    kernels = kernels.reshape(groups, *size, count, inputs // count, count, outputs // count)
    blocks = jnp.einsum("ghwaiao->gahwio", kernels)
    return blocks.reshape(groups * count, *size, inputs // count, outputs // count)


def _evaluate(*arrays: jax.Array, jaxpr: core.ClosedJaxpr, **_: Any) -> list[jax.Array]:
    return core.jaxpr_as_fun(jaxpr)(*arrays)


def _batch(arrays, axes, *, jaxpr, rule):
    """Over agents. Where all arrays are theirs, the result can be batched once more, in one piece."""
    del jaxpr
    agents, found = _size(arrays, axes), []
    if None in axes:
        return rule(agents, axes, *arrays)

    def apply(*arrays):
        results, found[:] = rule(agents, axes, *arrays)
        return tuple(results)

    jaxpr = jax.make_jaxpr(apply)(*arrays)
    return _of_agents.bind(*arrays, jaxpr=jaxpr, rule=rule, axes=axes, found=tuple(found)), found


def _batch_again(arrays, outer, *, jaxpr, rule, axes, found):
    """Over several runs: their agents are as many more, side by side with those of one run."""
    runs = _size(arrays, outer)
    if None in outer:
        results = jax.vmap(core.jaxpr_as_fun(jaxpr), outer)(*arrays)
        return results, [0] * len(results)
    beside = [jnp.moveaxis(*each) for each in zip(arrays, outer, axes, strict=True)]
    agents = beside[0].shape[axes[0] + 1]
    join = lambda x, at: x.reshape(*x.shape[:at], runs * agents, *x.shape[at + 2 :])
    results, ends = rule(runs * agents, axes, *map(join, beside, axes))
    part = lambda x, at: x.reshape(*x.shape[:at], runs, agents, *x.shape[at + 1 :])
    # Without the axis of runs, that of agents lies where it lies for one run.
    place = lambda x, end, at: jnp.moveaxis(part(x, end), (end, end + 1), (at, at + 1))
    return [place(*each) for each in zip(results, ends, found, strict=True)], list(found)


def _size(arrays: Any, axes: Any) -> int:
    return next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)


_ruled = core.Primitive("ruled")
_ruled.multiple_results = True
_ruled.def_impl(_evaluate)
_ruled.def_abstract_eval(lambda *_, jaxpr, rule: jaxpr.out_avals)
mlir.register_lowering(_ruled, mlir.lower_fun(_evaluate, multiple_results=True))
batching.primitive_batchers[_ruled] = _batch

_of_agents = core.Primitive("ruled_of_agents")
_of_agents.multiple_results = True
_of_agents.def_impl(_evaluate)
_of_agents.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
mlir.register_lowering(_of_agents, mlir.lower_fun(_evaluate, multiple_results=True))
batching.primitive_batchers[_of_agents] = _batch_again
