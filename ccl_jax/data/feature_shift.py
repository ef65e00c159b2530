"""Feature shift: the same classes look different to different agents.

Every agent sees its own training images through a fixed change of its own, applied in the jitted step
before augmentation. Shifts are written KIND:STRENGTH and can be put one after another; which agent
gets which degree of a shift is drawn from the seed. With N agents, k = 0 .. N - 1:

  rotation:S  turned by S k / N of a full circle; black comes in from outside.
  colour:S    each channel is multiplied by its own factor, uniform in [1 - S, 1 + S].
  blur:S      a Gaussian of S k / (N - 1) pixels.
  noise:S     Gaussian noise of standard deviation S k / (N - 1), white being 1 (as in Li et al. 2022,
              arXiv 2102.02079). An image has the same noise whenever it is seen.

The test set stays as it is: agents are compared on plain images.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.data.feeds import Feed
from ccl_jax.names import look_up
from ccl_jax.randomness import Stream, generator

PyTree = Any
# apply(degree, images [batch, H, W, C] float32, scale) -> images, for one agent.
Apply = Callable[[jax.Array, jax.Array, float], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shift:
    """A kind of shift at a strength.

    Attributes:
      kind: One of `KINDS`.
      strength: From 0 on; what it means is said above.
    """

    kind: str
    strength: float


def parse(text: str) -> Shift:
    """Reads "KIND:STRENGTH".

    Raises:
      ValueError: An unknown kind, or a strength that is no number from 0 to 100.
    """
    kind, _, strength = text.partition(":")
    look_up("feature_shift", kind, _DEGREES)
    try:
        value = float(strength)
    except ValueError:
        value = np.nan
    if not 0 <= value <= 100:
        raise ValueError(
            f"feature_shift {text!r} is not of the form {kind}:STRENGTH with a strength of 0 to 100, "
            f"as {kind}:0.5."
        )
    return Shift(kind, value)


def degrees(
    shifts: Sequence[Shift], agents: int, channels: int, seed: int
) -> tuple[np.ndarray, ...]:
    """What each shift does to each agent.

    Args:
      shifts: In the order of their application.
      agents: Number of agents.
      channels: Of the images.
      seed: 0 to 2**32 - 1.

    Returns:
      For each shift a float32 array `[agents, ...]`: angles in radians `[agents]`, factors
      `[agents, channels]`, pixels `[agents]`, standard deviations `[agents]`.
    """
    drawn = []
    for place, shift in enumerate(shifts):
        rng = generator(Stream.HETEROGENEITY, seed, 2, place)
        made = _DEGREES[shift.kind](shift.strength, rng.permutation(agents), channels, rng)
        drawn.append(np.asarray(made, np.float32))
    return tuple(drawn)


class Shifted:
    """A feed whose agents see their images shifted; see `feeds.Feed`.

    Args:
      feed: Where the images come from.
      shifts: What is done to them, in this order.
      degrees: Made by the function `degrees`.
      scale: Pixel value that counts as white.
    """

    def __init__(
        self, feed: Feed, shifts: Sequence[Shift], degrees: Sequence[np.ndarray], scale: float
    ) -> None:
        self.agents, self.steps, self.constants = feed.agents, feed.steps, feed.constants
        self.here, self.unreadable = feed.here, feed.unreadable
        # Degrees travel with the item, as all that leads with the agents axis does.
        self._degrees = tuple(degrees)
        self.item = (
            feed.item,
            tuple(jax.ShapeDtypeStruct(d.shape, jnp.float32) for d in self._degrees),
        )
        self._feed = feed
        # A bound on all blurs, so that the size of their kernel is known before they are.
        self._applies = tuple(
            _blur(float(degree.max())) if shift.kind == "blur" else _APPLY[shift.kind]
            for shift, degree in zip(shifts, degrees, strict=True)
        )
        self._scale = scale

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PyTree]:
        """The feed's items, each with the degrees; see `Feed.epoch`."""
        degrees = tuple(degree[self.here] for degree in self._degrees)
        for item in self._feed.epoch(epoch, start):
            yield item, degrees

    def fetch(self, constants: PyTree, item: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The feed's batch with shifted images; see `Feed.fetch`."""
        item, agents_degrees = item
        images, labels, mask = self._feed.fetch(constants, item)
        pixels = images.astype(jnp.float32)
        for apply, degree in zip(self._applies, agents_degrees, strict=True):
            pixels = jax.vmap(apply, in_axes=(0, 0, None))(degree, pixels, self._scale)
        top = jnp.float32(self._scale)
        return jnp.clip(jnp.round(pixels), 0.0, top).astype(jnp.uint8), labels, mask


def rotate(angle: jax.Array, images: jax.Array, scale: float = 1.0) -> jax.Array:
    """Turns images counter-clockwise about their middle, bilinearly; outside is 0.

    Args:
      angle: Scalar, radians.
      images: `[batch, H, W, C]` float32.
      scale: Not used.
    """
    del scale
    height, width = images.shape[1:3]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) - middle_y,
        jnp.arange(width, dtype=jnp.float32) - middle_x,
        indexing="ij",
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Where each pixel of the result comes from; y points down.
    source = [cos * y + sin * x + middle_y, cos * x - sin * y + middle_x]
    turn = lambda plane: jax.scipy.ndimage.map_coordinates(plane, source, order=1)
    return jax.vmap(jax.vmap(turn, -1, -1))(images)


def colour(factors: jax.Array, images: jax.Array, scale: float = 1.0) -> jax.Array:
    """Multiplies channels by factors `[C]`; images `[batch, H, W, C]`."""
    del scale
    return images * factors[None, None, None, :]


def noise(std: jax.Array, images: jax.Array, scale: float = 1.0) -> jax.Array:
    """Adds Gaussian noise that depends on the image and the standard deviation only.

    Args:
      std: Scalar, in units of pixel / scale; every agent has another.
      images: `[batch, H, W, C]` float32.
      scale: Pixel value that counts as 1.
    """

    def one(image: jax.Array) -> jax.Array:
        # Drawn from the image itself: the same image looks the same in every epoch. Odd weights,
        # modulo 2**32 (Knuth's multiplicative hash), tell images apart.
        places = jnp.arange(image.size, dtype=jnp.uint32) * jnp.uint32(2654435761) + jnp.uint32(1)
        content = (image.reshape(-1).astype(jnp.uint32) * places).sum(dtype=jnp.uint32)
        key = jax.random.fold_in(jax.random.key(0), content)
        key = jax.random.fold_in(key, jax.lax.bitcast_convert_type(std, jnp.uint32))
        return image + std * scale * jax.random.normal(key, image.shape, jnp.float32)

    return jax.vmap(one)(images)


def _blur(largest: float) -> Apply:
    reach = int(np.ceil(3 * largest))

    def blur(sigma: jax.Array, images: jax.Array, scale: float = 1.0) -> jax.Array:
        """Gaussian blur of sigma pixels along H and W; what lies outside repeats the edge."""
        del scale
        offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
        weights = jnp.exp(-0.5 * jnp.square(offsets / jnp.maximum(sigma, 1e-3)))
        weights = weights / weights.sum()
        for axis in (1, 2):
            size = images.shape[axis]
            around = [(0, 0)] * 4
            around[axis] = (reach, reach)
            padded = jnp.pad(images, around, mode="edge")
            images = sum(
                weights[k] * jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
                for k in range(2 * reach + 1)
            )
        return images

    return blur


def _spread(strength: float, ranks: np.ndarray) -> np.ndarray:
    """0 to strength, evenly over the agents; a single agent has all of it."""
    return strength * (ranks / (len(ranks) - 1) if len(ranks) > 1 else np.ones(1))


# degrees(strength, ranks [agents], channels, rng) -> [agents, ...]
_DEGREES: dict[str, Callable[..., np.ndarray]] = {
    "rotation": lambda s, ranks, channels, rng: 2 * np.pi * s * ranks / len(ranks),
    "colour": lambda s, ranks, channels, rng: np.maximum(
        rng.uniform(1 - s, 1 + s, (len(ranks), channels)), 0
    ),
    "blur": lambda s, ranks, channels, rng: _spread(s, ranks),
    "noise": lambda s, ranks, channels, rng: _spread(s, ranks),
}
_APPLY: dict[str, Apply] = {"rotation": rotate, "colour": colour, "noise": noise}

KINDS = tuple(_DEGREES)
"""The kinds of shift."""
