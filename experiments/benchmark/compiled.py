"""Compiles the step of a run for chips that are not here, and reads what their compiler says.

Cycles are estimates of the TPU compiler's cost model, not measurements; for GPUs there are none.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
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
from experiments.benchmark import hlo, record, tables, targets, workload

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
      Seconds to trace and to compile, bytes a chip, numbers and bytes of collectives; of TPUs estimated
      cycles by kind and their sum, of GPUs the calls of cuDNN. Or only `error`, a line, where the
      compiler fails.
    """
    began = time.perf_counter()
    try:
        with lowering.compiled_for(run.plan.platform):
            lowered = lower(run)
        traced = time.perf_counter()
        compiled = lowered.compile()
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return {"error": " ".join(str(error).split())[:300]}
    seconds = time.perf_counter() - traced
    program = hlo.Hlo(compiled.as_text())
    collectives = program.collectives()
    return {
        "seconds_trace": traced - began,
        "seconds_compile": seconds,
        "chip_bytes": workload.program_bytes(compiled),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        **(_calls(program) if run.plan.platform == "gpu" else _cycles(program)),
        "collectives": {name: number for name, (number, _) in collectives.items()},
        "collective_count": sum(number for number, _ in collectives.values()),
        "collective_bytes": sum(size for _, size in collectives.values()),
    }


def _cycles(program: hlo.Hlo) -> dict[str, int]:
    cycles = program.cycles()
    return {"cycles": sum(cycles.values())} | {f"cycles_{kind}": n for kind, n in cycles.items()}


def _calls(program: hlo.Hlo) -> dict[str, Any]:
    calls = program.convolutions()
    numbers = {f"convolutions_{kind}": number for kind, (number, _) in calls.items()}
    return numbers | {"largest_window": "x".join(map(str, max(w for _, w in calls.values())))}


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
      ValueError: The chips are not known or their compiler is not installed, settings do not fit, or it
        does not compile.
    """
    among, compiler = targets.chips(values.compile_for), targets.compiler(values.compile_for)
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
            **compiler,
            "method": run.config.label,
            "settings": {name: getattr(run.config, name) for name in SETTINGS},
        }
        log("compiled", workload.of(run), **about, **fields)
        rows.append((name, "no" if error else "yes", *tables.cells(fields, _COLUMNS)))
    made_by, meaning = " ".join(*compiler.items()), _MEANING[among[0].platform]
    print(
        f"{run.config.label}: {values.model}, {values.topology}, {values.agents} agents x "
        f"{values.batch_size} samples; {values.compile_for} by {made_by} and JAX {jax.__version__}. "
        f"Of a chip: memory, {meaning}, what it has of collectives"
    )
    print(tables.table(("chips", "compiles", *(head for head, *_ in _COLUMNS)), rows))
    print(f"JSON lines: {values.output}")
    if errors:
        raise ValueError("does not compile: " + "; ".join(errors))


_MEANING = {
    "tpu": "the compiler's estimate of its cycles",
    "gpu": "calls of cuDNN for convolutions forward, by the images and by the kernels",
}
# Heading, field, scale, format.
_COLUMNS = (
    ("trace s", "seconds_trace", 1, ".1f"),
    ("compile s", "seconds_compile", 1, ".1f"),
    ("chip MB", "chip_bytes", 1e-6, ".1f"),
    ("temporary MB", "temporary_bytes", 1e-6, ".1f"),
    ("M cycles", "cycles", 1e-6, ".2f"),
    *((kind, f"cycles_{kind}", 1e-6, ".2f") for kind in hlo.KINDS),
    *((kind, f"convolutions_{kind}", 1, "d") for kind in hlo.CALLS.values()),
    ("largest window", "largest_window", 1, "s"),
    ("collectives", "collective_count", 1, "d"),
    ("their KB", "collective_bytes", 1e-3, ".0f"),
)
