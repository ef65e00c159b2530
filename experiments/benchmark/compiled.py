"""Compiles the step of a run for TPUs that are not here, and reads what their compiler says.

libtpu holds the compiler and needs no TPU; `jax.experimental.topologies` describes the chips. Cycles are
estimates of the compiler's cost model, not measurements.
"""

import dataclasses
import importlib.util
import os
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from ccl_jax import training
from ccl_jax.devices import parallel
from ccl_jax.losses import Batch
from ccl_jax.models import lowering
from ccl_jax.runs import runner, settings, trainer
from ccl_jax.runs.config import Config
from ccl_jax.runs.runner import Run
from experiments import cli
from experiments.benchmark import hlo, record, tables, workload

CHIPS = (1, 4, 8)
DTYPES = ("float32", "bfloat16")

# What is compiled where no method and no loss is named.
CCL = {"algorithm": "qg-dsgdm-n", "lambda_m": 0.1, "lambda_d": 0.1}
# Settings of a run that change its step, beside those that the benchmark has for all that it does.
_of_group = lambda group: [
    f.name for f in dataclasses.fields(Config) if f.metadata["group"] == group
]
METHOD_SETTINGS = frozenset(_of_group(settings.METHOD))
SETTINGS = (
    *(name for name in _of_group(settings.NETWORK) if name not in ("agents", "topology")),
    *_of_group(settings.METHOD),
    *("precision", "gossip_batch_stats"),
)

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


def facts(run: Run) -> dict[str, Any]:
    """Compiles a run's step.

    Args:
      run: Its plan is among chips.

    Returns:
      Seconds to trace and to compile, bytes a chip, estimated cycles by kind and their sum, numbers and
      bytes of collectives; or only `error`, a line, where the compiler fails.
    """
    began = time.perf_counter()
    try:
        with lowering.compiled_for("tpu"):
            lowered = lower(run)
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


def lower(run: Run) -> jax.stages.Lowered:
    """The step of a run, ready to be compiled."""
    with runner.precision(run.config):
        return jax.jit(trainer.make_step(run), donate_argnums=0).lower(*_expected(run))


def _expected(run: Run) -> tuple[training.TrainState, Batch]:
    """Shapes and places of what the step is given: the state, and a batch of every agent."""
    shape = (run.config.agents, run.config.batch_size)
    batch = Batch(
        jax.ShapeDtypeStruct((*shape, *run.dataset.image_shape), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, bool),
    )
    return run.plan.expected((trainer.first_state(run), batch))


def prepare(values: flags.FlagValues, dtype: str, plan: parallel.Plan) -> Run:
    """The run of the flags, on noise in place of its data.

    Args:
      values: Of the benchmark's command line.
      dtype: Compute type.
      plan: Where the agents are.

    Raises:
      ValueError: Settings do not fit.
    """
    given = cli.given_settings(values, SETTINGS)
    config = Config(
        agents=values.agents,
        topology=values.topology,
        model=values.model,
        norm=values.norm,
        dtype=dtype,
        batch_size=values.batch_size,
        partition="iid",
        compile_cache="none",
        **(given if given.keys() & METHOD_SETTINGS else CCL | given),
    )
    samples = config.agents * config.batch_size  # Of one step.
    return runner.prepare(config, workload.noise(values.model, samples), plan)


def compile_for(values: flags.FlagValues) -> None:
    """Compiles the step of a run for chips, and prints a table of what their compiler says.

    Args:
      values: Of the benchmark's command line.

    Raises:
      ValueError: libtpu or the chips are not known, settings do not fit, or it does not compile.
    """
    among = chips(values.compile_for)
    log, rows, errors = record.make_log(values), [], []
    asked = lambda name, every: [values[name].value] if values[name].present else every
    dtypes, forms = asked("dtype", DTYPES), asked("spmd", parallel.FORMS)
    todo = variants(among, values.agents, dtypes, forms, values.devices)
    left = sorted(set(CHIPS) - {n for n, *_ in todo})
    if left and not values.devices:
        print(
            f"not for {left} chips: {values.compile_for} has {len(among)}, and the number has to divide "
            f"{values.agents} agents",
            file=sys.stderr,
        )
    for n, dtype, form in todo:
        run = prepare(values, dtype, parallel.Plan(n, form, among=among))
        name = f"{n} x {dtype}, {form}" if n > 1 else f"1 x {dtype}"
        print(f"compiling for {name}", file=sys.stderr)
        fields = facts(run)
        error = fields.get("error")
        errors += [f"{name}: {error}"] if error else []
        about = {
            "target": values.compile_for,
            "libtpu": version(),
            "method": run.config.label,
            "settings": {name: getattr(run.config, name) for name in SETTINGS},
        }
        log("compiled", workload.of(run), **about, **fields)
        rows.append((name, "no" if error else "yes", *tables.cells(fields, _COLUMNS)))
    print(
        f"{run.config.label}: {values.model}, {values.topology}, {values.agents} agents x "
        f"{values.batch_size} samples; {values.compile_for} by libtpu {version()} and JAX "
        f"{jax.__version__}. Of a chip: memory, the compiler's estimate of its cycles, what it has of "
        "collectives"
    )
    print(tables.table(("chips", "compiles", *(head for head, *_ in _COLUMNS)), rows))
    print(f"JSON lines: {values.output}")
    if errors:
        raise ValueError("does not compile: " + "; ".join(errors))


# Heading, field, scale, format.
_COLUMNS = (
    ("trace s", "seconds_trace", 1, ".1f"),
    ("compile s", "seconds_compile", 1, ".1f"),
    ("chip MB", "chip_bytes", 1e-6, ".1f"),
    ("temporary MB", "temporary_bytes", 1e-6, ".1f"),
    ("M cycles", "cycles", 1e-6, ".2f"),
    *((kind, f"cycles_{kind}", 1e-6, ".2f") for kind in hlo.KINDS),
    ("collectives", "collective_count", 1, "d"),
    ("their KB", "collective_bytes", 1e-3, ".0f"),
)
