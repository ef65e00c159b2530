"""Measures the training step of DSGDm-N, QG-DSGDm-N and CCL side by side, on whatever JAX runs on.

    python -m experiments.benchmark --model=resnet20 --agents=16 --batch_size=32
    python -m experiments.benchmark --model=lenet5 --batch_size=8 --scaling --max_agents=1024

Steps are built as runs build them and dispatched one by one; the three methods are timed in turns
(A B C A B C ...). Images are synthetic noise of the model's size. With PyTorch installed, the same
mathematics as a PyTorch loop over agents is timed in the same turns, after parameters have been seen to
agree after two steps. With --scaling, numbers of agents double from 8 to --max_agents, and gossip is
also timed alone, by the mixing matrix (dense) and by neighbour sums (sparse). Every measurement is
appended to --output as a JSON line, with versions, device and command.

    python -m experiments.benchmark --model=lenet5 --compile_for=tpu:v5e:2x4
    python -m experiments.benchmark --model=lenet5 --compile_for=gpu:h100:8

measures nothing: it compiles a run's step for 1, 4 and 8 chips that need not be there, in float32 and
bfloat16 and both SPMD forms (--devices, --dtype and --spmd choose), and prints a chip's memory, its
messages, and a TPU's estimated cycles or a GPU's calls of cuDNN. The run is that of the flags under
"with --compile_for", as the mains have them; without a method or losses it is CCL on QG-DSGDm-N. It
needs libtpu, pip install 'ccl_jax[aot]', or JAX's CUDA plugin, pip install 'jax[cuda12]'.

    python -m experiments.benchmark --whole

measures whole runs of CCL from the command to the table, and what the seconds go into: digits,
Fashion-MNIST with LeNet-5 (where it is installed, or in --data_dir), and ResNet-20 on a little noise.
Each runs twice: with no compiled programs, and with those that the first has kept.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

from ccl_jax import graphs, models
from ccl_jax.devices import parallel
from ccl_jax.runs import runner
from ccl_jax.runs.config import Config
from experiments import cli
from experiments.benchmark import compiled, record, tables, whole, workload
from experiments.benchmark.workload import METHODS, Program, Workload
from experiments.flag_values import FlagValues

# What is of no use where nothing is measured.
_OF_MEASUREMENTS = [
    "repeats",
    "steps",
    "torch",
    "torch_threads",
    "scaling",
    "max_agents",
    "data_dir",
]
FIRST_SCALE = 8


def define_flags() -> flags.FlagValues:
    """The flags of this main, in a set of their own."""
    values = FlagValues()
    here = {"flag_values": values}
    count = here | {"lower_bound": 1}
    flags.DEFINE_string("model", "lenet5", "one of " + ", ".join(models.MODELS), **here)
    flags.DEFINE_string("norm", None, "its normalisation; default: the published one", **here)
    flags.DEFINE_enum("dtype", "float32", compiled.DTYPES, "compute type", **here)
    flags.DEFINE_integer("agents", 16, "number of agents", lower_bound=2, **here)
    flags.DEFINE_integer("batch_size", 32, "samples per agent and step", **count)
    flags.DEFINE_string("topology", "ring", "graph, as in python -m experiments.topologies", **here)
    text = "devices; default: on a CPU one virtual device an agent, else one"
    flags.DEFINE_integer("devices", None, text, **count)
    flags.DEFINE_enum("spmd", "shard_map", parallel.FORMS, "how agents are spread", **here)
    flags.DEFINE_integer("repeats", 7, "rounds in which every program is timed once", **count)
    flags.DEFINE_integer("steps", 2, "steps that one measurement takes", **count)
    flags.DEFINE_bool("torch", True, "compare with PyTorch, where it is installed", **here)
    flags.DEFINE_integer("torch_threads", os.cpu_count(), "threads of PyTorch", **count)
    flags.DEFINE_bool("scaling", False, "numbers of agents from 8 to --max_agents", **here)
    flags.DEFINE_integer("max_agents", 64, "with --scaling", lower_bound=FIRST_SCALE, **here)
    text = "compile for these chips, as tpu:v5e:2x4 or gpu:h100:8, instead of measuring"
    flags.DEFINE_string("compile_for", None, text, **here)
    flags.DEFINE_bool("whole", False, "whole runs, from the command to the table", **here)
    flags.DEFINE_string("data_dir", None, "with --whole: where Fashion-MNIST lies", **here)
    flags.DEFINE_string("output", "runs/benchmark.jsonl", "JSON lines are appended here", **here)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", **here)
    cli.define_settings(values, Config(), compiled.SETTINGS, "with --compile_for: ")
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table and writes JSON lines; returns the exit code."""
    values = define_flags()

    def body() -> None:
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        _refuse_others(values)
        if values.whole:
            whole.measure_all(values)
            print(f"JSON lines: {values.output}")
            return
        if values.compile_for is not None:
            compiled.compile_for(values)
            return
        agents = scales(values.max_agents) if values.scaling else [values.agents]
        start(values, agents[-1])
        works = [make_workload(values, number) for number in agents]
        log = record.make_log(values)
        compare_scales(works, values, log) if values.scaling else compare(works[0], values, log)
        print(f"JSON lines: {values.output}")

    return cli.guard(body)


def _refuse_others(values: flags.FlagValues) -> None:
    """A flag that would be ignored beside another is an error.

    Raises:
      ValueError: There is one.
    """
    given = lambda names: ", ".join(f"--{name}" for name in names if values[name].present)
    if values.whole:
        obeyed = ("whole", "data_dir", "output", "extension")
        if others := given(name for name in values if name not in obeyed):
            raise ValueError(
                f"--whole takes no {others}; it goes with --data_dir and --output only"
            )
    elif values.compile_for is None:
        ignored = {"data_dir": "it goes with --whole only"}
        if values.scaling:
            ignored["agents"] = "--scaling has numbers of its own"
            for name in ("torch_threads", *["torch"] * values.torch):
                ignored[name] = "--scaling does without PyTorch"
        else:
            ignored["max_agents"] = "it goes with --scaling only"
            if not values.torch:
                ignored["torch_threads"] = "--notorch does without PyTorch"
        for name, why in ignored.items():
            if given([name]):
                raise ValueError(f"--{name}: {why}; leave it out")
        if others := given(compiled.SETTINGS):
            raise ValueError(
                f"{others}: only with --compile_for; what is measured are {', '.join(METHODS)}"
            )
    elif others := given(_OF_MEASUREMENTS):
        raise ValueError(
            f"--compile_for measures nothing and takes no {others}; leave one of them out"
        )


def scales(most: int) -> list[int]:
    """8, 16, 32, ... up to `most`."""
    return [n for n in (FIRST_SCALE * 2**k for k in range(most.bit_length())) if n <= most]


def start(values: flags.FlagValues, agents: int) -> None:
    """What a run does before JAX starts."""
    shape = workload.image_shape(values.model)
    model = models.make(values.model, workload.CLASSES, norm=values.norm, dtype=values.dtype)
    runner.prepare_memory(model, shape, values.batch_size)
    parallel.request_cpu_devices(values.devices or min(agents, runner.MOST_CPU_DEVICES))


def make_workload(
    values: flags.FlagValues,
    agents: int,
    dtype: str | None = None,
    plan: parallel.Plan | None = None,
) -> Workload:
    """What the flags ask for, with this number of agents, and another dtype or plan if given.

    Raises:
      ValueError: It cannot be.
    """
    if plan is None:
        on_cpu = jax.default_backend() == "cpu"
        devices = values.devices or (parallel.usable_devices(agents) if on_cpu else 1)
        plan = parallel.Plan(devices, values.spmd)
    topology = graphs.make(values.topology, agents)
    work = Workload(
        values.model, values.norm, dtype or values.dtype, topology, values.batch_size, plan
    )
    models.shapes(work.make_model(), work.image_shape)
    return work


def compare(work: Workload, values: flags.FlagValues, log: record.Log) -> None:
    """The three methods, and PyTorch where it can be, in turns."""
    rate = workload.matmul_gflops(work.dtype)
    log("matmul", work, gflops=rate)
    programs = {method: Program(work, method) for method in METHODS}
    contenders = {method: program.run for method, program in programs.items()}
    errors = {}
    if values.torch and (reason := why_not_torch(work)):
        print(f"no comparison with PyTorch: {reason}")
    elif values.torch:
        from experiments.benchmark import torch_loop  # Needs PyTorch, an optional extra.

        torch_loop.torch.set_num_threads(values.torch_threads)
        for method in ("qg-dsgdm-n", "ccl"):
            loop = torch_loop.Contender(work, method, programs[method].parameters())
            errors[method] = check(programs[method], loop)
            contenders[f"torch {method}"] = loop.run
    times = workload.alternate(contenders, values.repeats, values.steps)

    rows = []
    for name, seconds in times.items():
        method = name.removeprefix("torch ")
        gflops = workload.step_gflop(work, method) / seconds.median
        fields = {
            "method": method,
            **seconds.row(),
            "gflops": gflops,
            "matmul_share": gflops / rate,
        }
        if name != method:
            fields |= {"torch_version": torch_loop.torch.__version__}
            fields |= {"torch_threads": values.torch_threads}
            fields |= {"ratio_to_qg": seconds.ratio_to(times["torch qg-dsgdm-n"])}
            log("torch", work, **fields)
        else:
            fields |= {"ratio_to_qg": seconds.ratio_to(times["qg-dsgdm-n"])}
            fields |= programs[method].facts() | workload.memory()
            if method in errors:
                fields |= {"ratio_to_torch": seconds.ratio_to(times[f"torch {method}"])}
                fields |= {"torch_error": errors[method]}
            log("step", work, **fields)
        rows.append((name, *tables.cells(fields, _STEP_COLUMNS)))
    print(title(work))
    print(f"matrix products run at {rate:.0f} GFLOP/s here in {work.dtype}")
    print(tables.table(("method", *(head for head, *_ in _STEP_COLUMNS)), rows))
    for method, error in errors.items():
        print(f"{method}: {error:.1e} from PyTorch, relative to the move of the first two steps")


def why_not_torch(work: Workload) -> str | None:
    """Why this cannot be compared with PyTorch; None if it can."""
    if importlib.util.find_spec("torch") is None:
        return "it is not installed (pip install 'ccl_jax[torch]')"
    from experiments.benchmark import torch_loop

    if work.model not in torch_loop.MODELS:
        return f"the loop has no {work.model}, only {', '.join(torch_loop.MODELS)}"
    if work.norm is not None or work.dtype != "float32" or jax.default_backend() != "cpu":
        return "the loop is for published normalisation and float32 on a CPU"
    if work.topology.rounds > 1 or work.topology.directed:
        return "the loop is for undirected graphs that do not change"
    return None


def check(program: Program, loop: Any, tolerance: float = 1e-4) -> float:
    """Takes two steps with both and compares the parameters.

    Returns:
      The norm of their difference, relative to the norm of how far they moved.

    Raises:
      ValueError: It is larger than the tolerance.
    """
    start = program.parameters()
    program.run(2)
    loop.run(2)
    ours, theirs = program.parameters(), loop.parameters()
    norm = lambda a, b: float(optax.tree.norm(jax.tree.map(np.subtract, a, b)))
    error = norm(ours, theirs) / norm(theirs, start)
    if not error <= tolerance:
        raise ValueError(
            f"after two steps our parameters differ from PyTorch's by {error:.1e} of their move; "
            f"more than {tolerance:g} is a mistake in one of them: report it, or give --notorch"
        )
    return error


def compare_scales(works: Sequence[Workload], values: flags.FlagValues, log: record.Log) -> None:
    """CCL's step at growing numbers of agents, and gossip alone, each in turns."""
    programs = [Program(work, "ccl") for work in works]
    runs = {str(p.work.topology.agents): p.run for p in programs}
    times = workload.alternate(runs, values.repeats, values.steps)
    first = times[str(FIRST_SCALE)]
    rows = []
    for program, seconds in zip(programs, times.values(), strict=True):
        work, agents = program.work, program.work.topology.agents
        edges = int(work.topology.mask[0].sum())
        gossip = workload.alternate(
            workload.gossip_programs(work.topology, program.parameters()),
            values.repeats,
            values.steps,
        )
        fields = {
            "method": "ccl",
            "edges": edges,
            **seconds.row(),
            "seconds_an_agent": seconds.median / agents,
            "ratio_an_agent": seconds.ratio_to(first) * FIRST_SCALE / agents,
            **program.facts(),
            **workload.memory(),
        }
        log("scaling", work, **fields)
        for way, measured in gossip.items():
            fields |= {f"seconds_{way}": measured.median}
            log("gossip", work, way=way, edges=edges, **measured.row())
        rows.append((str(agents), *tables.cells(fields, _SCALING_COLUMNS)))
    print(title(works[-1]))
    print(tables.table(("agents", *(head for head, *_ in _SCALING_COLUMNS)), rows))


# Heading, field, scale, format.
_STEP_COLUMNS = (
    ("ms a step", "seconds_median", 1e3, ".1f"),
    ("min", "seconds_min", 1e3, ".1f"),
    ("max", "seconds_max", 1e3, ".1f"),
    ("CPU ms", "cpu_seconds_median", 1e3, ".1f"),
    ("/ QG", "ratio_to_qg", 1, ".2f"),
    ("/ torch", "ratio_to_torch", 1, ".2f"),
    ("GFLOP/s", "gflops", 1, ".1f"),
    ("of matmul", "matmul_share", 1, ".1%"),
    ("trace s", "seconds_trace", 1, ".1f"),
    ("compile s", "seconds_compile", 1, ".1f"),
    ("program MB", "program_bytes", 1e-6, ".0f"),
    ("device peak MB", "device_peak_bytes", 1e-6, ".0f"),
    ("RSS peak MB", "rss_peak_bytes", 1e-6, ".0f"),
)
_SCALING_COLUMNS = (
    ("devices", "devices", 1, "d"),
    ("edges", "edges", 1, "d"),
    ("ms a step", "seconds_median", 1e3, ".1f"),
    ("min", "seconds_min", 1e3, ".1f"),
    ("max", "seconds_max", 1e3, ".1f"),
    ("ms an agent", "seconds_an_agent", 1e3, ".2f"),
    (f"/ {FIRST_SCALE} agents", "ratio_an_agent", 1, ".2f"),
    ("compile s", "seconds_compile", 1, ".1f"),
    ("program MB", "program_bytes", 1e-6, ".0f"),
    ("RSS peak MB", "rss_peak_bytes", 1e-6, ".0f"),
    ("dense gossip ms", "seconds_dense", 1e3, ".1f"),
    ("sparse", "seconds_sparse", 1e3, ".1f"),
)


def title(work: Workload) -> str:
    """One line that says what was measured on what."""
    devices = f"{jax.devices()[0].device_kind} x {work.plan.devices} ({work.plan.form})"
    return (
        f"{work.model}, {work.dtype}, {work.topology.name}, {work.topology.agents} agents x "
        f"{work.batch_size} samples; {devices}, {os.cpu_count()} cores of {record.cpu_name()}"
    )
