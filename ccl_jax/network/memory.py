"""What a network remembers from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax.network.faults import Chains

PyTree = Any


class Memory(NamedTuple):
    """What a network remembers from step to step.

    Attributes:
      faults: State of the chains that make links and agents fail; () where nothing does.
      messages: By name, what the channel keeps of each message, if it keeps anything.
      fresh: Scalar bool, whether nothing has been said yet; None in the memory of a round that is
        given none, which is fresh in step 0.
    """

    faults: Chains | tuple[()] = ()
    messages: dict[str, PyTree] = {}  # noqa: RUF012 (never changed, always replaced)
    fresh: jax.Array | None = None

    @classmethod
    def before(cls, shapes: "Memory") -> "Memory":
        """The memory before the first step, of the shapes of one after it."""
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return zeros._replace(fresh=jnp.ones((), bool))
