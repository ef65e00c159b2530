"""Compiles the benchmark's steps for TPUs that are not here, and reads what their compiler says.

libtpu holds the compiler and needs no TPU; `jax.experimental.topologies` describes the chips. Cycles are
estimates of the compiler's cost model, not measurements.
"""

import importlib.util
import os
import re
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from ccl_jax.models import lowering
from experiments.benchmark import hlo, workload
from experiments.benchmark.workload import Workload

CHIPS = (1, 4, 8)

# What libtpu would otherwise ask the machine for, complaining on stderr where there is no TPU. The lock
# would keep two programs from compiling side by side.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Generations of which one host can have up to eight chips.
_EIGHT_A_HOST = ("v5e", "v6e")


def chips(target: str) -> list[jax.Device]:
    """The chips of a slice of TPUs.

    Args:
      target: `tpu:GENERATION:SHAPE`, as `tpu:v5e:2x4`.

    Raises:
      ValueError: It is not of this form, libtpu is not installed or does not know it.
    """
    found = re.fullmatch(r"tpu:(\w+):(\d+(?:x\d+){1,2})", target)
    if not found:
        raise ValueError(
            f"compile_for is {target!r}; it must be tpu:GENERATION:SHAPE, as tpu:v5e:2x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compile_for needs libtpu, which is not installed: pip install 'ccl_jax[aot]'"
        )
    for name, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # All else is done here, also where a TPU is at hand.
    from jax.experimental import topologies  # Loads libtpu, which reads the environment.

    generation, shape = found.groups()
    sides = [int(side) for side in shape.split("x")]
    options = {}
    if generation in _EIGHT_A_HOST and len(sides) == 2 and sides[0] * sides[1] <= 8:
        options = {"chips_per_host_bounds": (*sides, 1)}
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{generation}:{shape}", **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"compile_for is {target!r}, and libtpu {version()} does not know it ({error}); it may be "
            "tpu:v5e:2x4, tpu:v6e:2x2, tpu:v5p:2x2x2 ..."
        ) from None
    if len({tuple(device.coords) for device in devices}) < len(devices):
        raise ValueError(
            f"compile_for is {target!r}, whose chips are several devices each, of which JAX makes no "
            "mesh; take v5e, v5p or v6e"
        )
    return list(devices)


def version() -> str:
    """Of libtpu."""
    return metadata.version("libtpu")


def variants(
    devices: Sequence[jax.Device],
    agents: int,
    dtypes: Sequence[str],
    forms: Sequence[str],
    count: int | None = None,
) -> list[tuple[int, str, str]]:
    """What is compiled: numbers of chips, dtypes and SPMD forms.

    One chip knows no forms, and over several processes pmap is made of shard_map: where programs would
    be the same, only the first form stays.

    Args:
      devices: The chips that there are.
      agents: Number of agents; a number of chips has to divide it.
      dtypes: Compute types.
      forms: SPMD forms.
      count: The only number of chips; default: those of CHIPS that can be.
    """
    counts = [count] if count else [n for n in CHIPS if n <= len(devices) and agents % n == 0]
    alike = lambda n: n == 1 or len({d.process_index for d in devices[:n]}) > 1
    return [
        (n, dtype, form)
        for n in counts
        for dtype in dtypes
        for form in (forms[:1] if alike(n) else forms)
    ]


def facts(work: Workload, method: str) -> dict[str, Any]:
    """Compiles one method's step.

    Args:
      work: What it works on; its plan is among chips.
      method: Key of `workload.METHODS`.

    Returns:
      Seconds to trace and to compile, bytes a chip, estimated cycles by kind and their sum, numbers and
      bytes of collectives; or only `error`, a line, where the compiler fails.
    """
    step, state = workload.make_step(work, method)
    expected = work.plan.expected((state, jax.eval_shape(work.batch)))
    began = time.perf_counter()
    try:
        with lowering.compiled_for("tpu"):
            lowered = jax.jit(step, donate_argnums=0).lower(*expected)
        traced = time.perf_counter()
        compiled = lowered.compile()
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return {"error": " ".join(str(error).split())[:300]}
    seconds = time.perf_counter() - traced
    program = hlo.Hlo(compiled.as_text())
    cycles, collectives = program.cycles(), program.collectives()
    return {
        "seconds_trace": traced - began,
        "seconds_compile": seconds,
        "chip_bytes": workload.program_bytes(compiled),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "cycles": sum(cycles.values()),
        **{f"cycles_{kind}": number for kind, number in cycles.items()},
        "collectives": {name: number for name, (number, _) in collectives.items()},
        "collective_count": sum(number for number, _ in collectives.values()),
        "collective_bytes": sum(size for _, size in collectives.values()),
    }
