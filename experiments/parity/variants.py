"""What a recorded method is called here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Config = Mapping[str, Any]


class Variant(NamedTuple):
    """How a recorded method is built here.

    Attributes:
      name: Name in the registry.
      hyper: Its hyper-parameters.
      mixed_last: Whether a recorded step ends with the mix ("adapt, then combine"). Here that mix
        opens the next step.
      local_steps: Of our steps that make up a recorded one.
      per_step: Names of arrays [steps] that the recording must have beside the usual ones.
    """

    name: str
    hyper: dict[str, Any]
    mixed_last: bool
    local_steps: int = 1
    per_step: tuple[str, ...] = ()
