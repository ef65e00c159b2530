"""Compares recorded orthogonalised matrices (`case<i>.G`, `case<i>.out`) with ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.algorithms import muon
from experiments.parity import traces
from experiments.parity.traces import Trace

TOLERANCE = 1e-5  # absolute


def recognises(trace: Trace) -> bool:
    """Whether a recording is one of Newton-Schulz iterations."""
    return "case0.G" in trace and "case0.out" in trace


def replay(trace: Trace) -> dict[str, Any]:
    """Orthogonalises every recorded matrix.

    Returns:
      method, cases (how many), max_error (absolute, against float64), passed.

    Raises:
      ValueError: An entry is missing or does not fit.
    """
    config = traces.read_config(trace, {"method": str, "cases": list})
    errors = []
    for index, case in enumerate(config["cases"]):
        steps = case.get("steps") if isinstance(case, dict) else None
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"the recording's case {index} has steps = {steps!r}; give 0 or more")
        names = (f"case{index}.G", f"case{index}.out")
        traces.check_arrays(trace, dict.fromkeys(names, ("rows", "columns")))
        # In float32 a matrix that lacks rank can be further off: each iteration makes what rounding has
        # left of its zero singular values 3.4 times as large.
        with jax.enable_x64(True):
            ours = muon.newton_schulz(jnp.asarray(trace[names[0]], float), steps)
        errors.append(float(np.abs(np.asarray(ours) - trace[names[1]]).max()))
    error = float(np.max(errors))  # NaN stays.
    return {
        "method": config["method"],
        "cases": len(errors),
        "max_error": error,
        "passed": bool(error <= TOLERANCE),
    }
