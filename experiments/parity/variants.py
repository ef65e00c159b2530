"""What a recorded method is called here."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ccl_jax.network.compression import Compressor
from experiments.parity.traces import Trace

Config = Mapping[str, Any]


class Compression(NamedTuple):
    """How the messages of a recording are compressed.

    Attributes:
      name: In words.
      start: Where the copies start, "model" or "zero".
      at: `at(trace, step) -> Compressor` of the messages of a step, which may have drawn something.
    """

    name: str
    start: str
    at: Callable[[Trace, jax.Array], Compressor]


class Variant(NamedTuple):
    """How a recorded method is built here.

    Attributes:
      name: Name in the registry.
      hyper: Its hyper-parameters.
      mixed_last: Whether a recorded step ends with the mix ("adapt, then combine"). Here that mix
        opens the next step.
      compression: Of its messages; None where they are exact.
      local_steps: Of our steps that make up a recorded one.
      per_step: Names of arrays [steps] that the recording must have beside the usual ones.
    """

    name: str
    hyper: dict[str, Any]
    mixed_last: bool
    compression: Compression | None = None
    local_steps: int = 1
    per_step: tuple[str, ...] = ()
