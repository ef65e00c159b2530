"""Compressed messages: sign, top-k and 8-bit quantization, and error feedback.

A compressor turns one message tensor into what its receiver reconstructs, and knows how many bytes
that takes on the wire. Error feedback (Karimireddy et al., arXiv:1901.09847) adds what was lost in one
message to the next.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax.names import look_up

PyTree = Any


class Compressor(NamedTuple):
    """A way to make messages smaller.

    Attributes:
      name: What to call it.
      compress: `compress(x [size]) -> [size]`, what the receiver sees of one tensor.
      wire_bytes: `wire_bytes(size) -> int`, bytes that one tensor of float32 takes.
    """

    name: str
    compress: Callable[[jax.Array], jax.Array]
    wire_bytes: Callable[[int], int]

    def __call__(self, tree: PyTree, lead: int) -> PyTree:
        """Compresses every message of a tree.

        Args:
          tree: Leaves whose first `lead` axes number the messages.
          lead: 1 for one message an agent, 2 for one a neighbour.
        """

        def each(x: jax.Array) -> jax.Array:
            return jax.vmap(self.compress)(x.reshape(math.prod(x.shape[:lead]), -1)).reshape(
                x.shape
            )

        return jax.tree.map(each, tree)

    def message_bytes(self, tree: PyTree, lead: int) -> int:
        """Bytes of one message of a tree (see `__call__`)."""
        return sum(self.wire_bytes(math.prod(x.shape[lead:])) for x in jax.tree.leaves(tree))


def feedback(
    compressor: Compressor, tree: PyTree, error: PyTree, lead: int
) -> tuple[PyTree, PyTree]:
    """Compresses with error feedback: z = x + e; sends s = C(z); e <- z - s.

    Args:
      compressor: C.
      tree: x, the messages.
      error: e, like tree; zeros at first.
      lead: As in `Compressor.__call__`.

    Returns:
      s and the new e.
    """
    z = jax.tree.map(jnp.add, tree, error)
    sent = compressor(z, lead)
    return sent, jax.tree.map(jnp.subtract, z, sent)


def _sign(x: jax.Array) -> jax.Array:
    return jnp.sign(x) * jnp.abs(x).mean()


def _quantize(x: jax.Array) -> jax.Array:
    scale = jnp.abs(x).max() / 127
    # Nothing to send, or so little that a step would be no normal number and is flushed to 0.
    steps = jnp.where(scale >= jnp.finfo(x.dtype).tiny, x / scale, 0.0)
    return jnp.round(steps) * scale


def largest(x: jax.Array, count: int) -> jax.Array:
    """x `[size]` with all but `count` entries of largest magnitude set to 0."""
    places = jax.lax.top_k(jnp.abs(x), count)[1]
    return jnp.zeros_like(x).at[places].set(x[places])


def top_k(fraction: float) -> Compressor:
    """Keeps the entries of largest magnitude: 4 bytes for each value and 4 for its place.

    Args:
      fraction: Share of the entries that is kept, in (0, 1]; at least one is.

    Raises:
      ValueError: The fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"top-k keeps the fraction {fraction}; it must be in (0, 1]")
    kept = lambda size: max(1, round(fraction * size))
    return Compressor(
        f"top-k:{fraction:g}",
        lambda x: largest(x, kept(x.size)),
        lambda size: 8 * kept(size),
    )


# One bit an entry and the mean magnitude; one byte an entry and the scale.
SIGN = Compressor("sign", _sign, lambda size: -(-size // 8) + 4)
INT8 = Compressor("int8", _quantize, lambda size: size + 4)

_BUILDERS: dict[str, Callable[[str], Compressor | None]] = {
    "none": lambda option: None,
    "sign": lambda option: SIGN,
    "int8": lambda option: INT8,
    "top-k": lambda option: top_k(_fraction(option)),
}


NAMES = tuple(_BUILDERS)


def make(name: str) -> Compressor | None:
    """A compressor by name: "none", "sign", "int8", or "top-k:0.01" with the fraction kept.

    Raises:
      ValueError: Unknown name, or top-k without a fraction in (0, 1].
    """
    kind, _, option = name.partition(":")
    return look_up("compression", kind, _BUILDERS)(option)


def _fraction(option: str) -> float:
    try:
        return float(option)
    except ValueError:
        raise ValueError(
            f"top-k needs the fraction that it keeps, as top-k:0.01; got {option!r}"
        ) from None
