"""Writes what a run has trained as a file for other programs, and a JSON file that describes it.

    python -m experiments.export --run=DIR --format=npz

The formats: npz and safetensors have an array for each parameter, named params/LAYER/...; orbax is a
directory, as JAX programs read it; pytorch is a safetensors file with the names and the layout of the
paper's PyTorch models. The mean of all agents' models is written, with --agent=K that of agent K, with
--agent=all every agent's, stacked.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from flax import traverse_util

import ccl_jax
from ccl_jax.models import to_torch
from ccl_jax.names import look_up
from ccl_jax.runs.checkpoints import is_tree, save_tree
from ccl_jax.runs.directory import plain
from ccl_jax.runs.loading import LoadedRun
from experiments import cli, trained

Arrays = dict[str, np.ndarray]


class Format(NamedTuple):
    """A way to write parameters.

    Attributes:
      ending: Of the file's name.
      write: `write(path, arrays)`, arrays by name.
      load: Python that reads it back, with the path in place of {}.
      load_first: The same for the first of stacked models, where `load` takes one only.
    """

    ending: str
    write: Callable[[Path, Arrays], None]
    load: str
    load_first: str = ""


def export(
    run: LoadedRun, form: str, agent: int | str | None = None, path: Path | None = None
) -> Path:
    """Writes parameters, and a JSON file beside them, whose name ends in .json.

    Args:
      run: The loaded run.
      form: One of `FORMATS`.
      agent: Whose model; None for the consensus model, "all" for every agent's.
      path: Where to; default: in the folder `export` of the run directory.

    Returns:
      Where the parameters are.

    Raises:
      ValueError: An unknown format, one whose package is missing, or a model that has no names in it;
        or something is there that this would remove.
      OSError: It could not be written; what was there before is there still.
    """
    check(form)
    format_ = FORMATS[form]
    whose = "consensus" if agent is None else "agents" if agent == trained.ALL else f"agent-{agent}"
    variables = run.agents if agent == trained.ALL else run.variables(agent)
    if form == "pytorch":
        arrays = to_torch(
            run.config.model,
            variables["params"],
            norm=run.config.norm or "evonorm",
            leading=int(agent == trained.ALL),
            batch_stats=variables.get("batch_stats", {}),
        )
    else:
        arrays = traverse_util.flatten_dict(variables, sep="/")
    # In the order of rows: safetensors writes the memory as it lies.
    arrays = {name: np.array(x, order="C") for name, x in jax.device_get(arrays).items()}
    path = path or run.directory / "export" / f"{whose}{format_.ending}"
    if form == "orbax" and path.exists() and not is_tree(path):
        raise ValueError(
            f"{path} is there, and an export as orbax is a directory of its own; give another name"
        )
    beside = path.with_name(f"{path.name}.json")
    if beside.exists() and not path.exists():
        raise ValueError(f"{beside} is there, and no export that it describes; give another name")
    about = json.dumps(plain(describe(run, form, whose, arrays)), indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        format_.write(path, arrays)
        with cli.whole(beside) as partial:
            partial.write_text(about)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror or error})") from error
    return path


def describe(run: LoadedRun, form: str, whose: str, arrays: Arrays) -> dict[str, Any]:
    """What the JSON file says."""
    facts = run.dataset
    return {
        "model": run.config.model,
        "norm": run.config.norm,  # None for the model's own
        "classes": facts.class_names,
        "image_shape": facts.image_shape,
        "images": "[n, C, H, W]" if form == "pytorch" else "[n, H, W, C]",
        "normalisation": {
            "formula": "(pixel / scale - mean) / std",
            "scale": facts.scale,
            "mean": facts.mean,
            "std": facts.std,
        },
        "dataset": facts.name,
        "whose": whose,
        "format": form,
        "arrays": {name: [str(x.dtype), *x.shape] for name, x in arrays.items()},
        "run": str(run.directory.absolute()),
        "step": run.step,
        "metrics": run.row,
        "label": run.config.label,
        "agents": run.config.agents,
        "ccl_jax": ccl_jax.__version__,
    }


def check(form: str) -> None:
    """Raises ValueError for an unknown format, or one whose package is not installed."""
    format_ = look_up("format", form, FORMATS)
    if format_.write is _write_safetensors and importlib.util.find_spec("safetensors") is None:
        raise ValueError(
            f"--format={form} needs the package safetensors: pip install 'ccl_jax[safetensors]', or "
            "take --format=npz"
        )


def _write_safetensors(path: Path, arrays: Arrays) -> None:
    from safetensors import SafetensorError  # An optional dependency.
    from safetensors.numpy import save_file

    try:
        with cli.whole(path) as partial:
            save_file(arrays, partial)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _write_npz(path: Path, arrays: Arrays) -> None:
    # Given a path, NumPy would add an ending.
    with cli.whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _write_orbax(path: Path, arrays: Arrays) -> None:
    with cli.whole(path) as partial:
        save_tree(partial, traverse_util.unflatten_dict(arrays, sep="/"))


_UNFLATTEN = "variables = flax.traverse_util.unflatten_dict({}, sep='/')"

FORMATS: Mapping[str, Format] = {
    "safetensors": Format(
        ".safetensors",
        _write_safetensors,
        "import flax, safetensors.numpy; " + _UNFLATTEN.format("safetensors.numpy.load_file({!r})"),
    ),
    "npz": Format(
        ".npz",
        _write_npz,
        "import flax, numpy; " + _UNFLATTEN.format("dict(numpy.load({!r}))"),
    ),
    "orbax": Format(
        ".orbax",
        _write_orbax,
        "import orbax.checkpoint as ocp; variables = ocp.StandardCheckpointer().restore({!r})",
    ),
    "pytorch": Format(
        ".pytorch.safetensors",
        _write_safetensors,
        "import safetensors.torch; model.load_state_dict(safetensors.torch.load_file({!r}))",
        "import safetensors.torch; agents = safetensors.torch.load_file({!r}); "
        "model.load_state_dict({{name: x[0] for name, x in agents.items()}})",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes what the command line asks for; returns the exit code."""

    def body() -> None:
        values = trained.define(f"{trained.CONSENSUS}, a number, or {trained.ALL} (stacked)")
        names = ", ".join(FORMATS)
        flags.DEFINE_string("format", None, f"one of {names}", flag_values=values)
        flags.DEFINE_string(
            "output", None, "file to write; default: in DIR/export", flag_values=values
        )
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        form = values["format"].value
        if form is None:
            raise ValueError(f"give --format=FORMAT, one of {names}")
        check(form)
        output = values["output"].value
        if output is not None:
            output = Path(output) if form == "orbax" else cli.output(output)
        run = trained.load(values)
        everybody = values["agent"].value == trained.ALL
        agent = trained.ALL if everybody else trained.agent(values, run)
        path = export(run, form, agent, output)
        print(f"written: {path}")
        print(f"described in: {path}.json")
        load = (everybody and FORMATS[form].load_first) or FORMATS[form].load
        print(f"load it: {load.format(str(path.absolute()))}")

    return cli.guard(body)


if __name__ == "__main__":
    sys.exit(main())
