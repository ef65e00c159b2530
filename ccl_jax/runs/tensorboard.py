"""The rows of metrics for TensorBoard, as an option: `pip install '.[tensorboard]'`."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any


def check() -> None:
    """Raises ValueError where tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "tensorboard needs the package tensorboardX: pip install 'ccl_jax[tensorboard]', or "
            "leave --tensorboard out"
        )


@contextlib.contextmanager
def scalars(path: str | os.PathLike) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens a TensorBoard log.

    Args:
      path: Its directory; one that is there already is added to.

    Yields:
      `write(row)`: writes all numbers of a row of metrics at the row's `step`.
    """
    from tensorboardX import SummaryWriter  # An optional dependency.

    with SummaryWriter(os.fspath(path)) as writer:

        def write(row: Mapping[str, Any]) -> None:
            for name, value in row.items():
                if isinstance(value, Real) and name not in ("epoch", "step"):
                    writer.add_scalar(name, float(value), row["step"])
            writer.flush()

        yield write
